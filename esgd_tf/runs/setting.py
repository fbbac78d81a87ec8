"""The description of one setting of a run: its values, its meaning, and where it applies.

A setting is a field of a dataclass (`Experiment`, `RunSettings`), and this stands in the field's
metadata. Flags, help, checks of config.json and the table of settings are made from it, so that a
new setting is one edit. This module loads no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, Protocol

__all__ = [
    "LARGEST",
    "Choice",
    "Growing",
    "Kind",
    "Names",
    "Number",
    "Setting",
    "Switch",
    "Text",
    "Whole",
    "setting",
    "setting_of",
    "settings_of",
]

#: No setting needs a larger number, and TensorFlow's 32-bit counters would overflow.
LARGEST = 2**31 - 1


class Kind(Protocol):
    """The values that a setting may have."""

    def accepts(self, value: Any) -> bool:
        """Return whether the setting may have a value, which comes from a JSON file.

        Args:
            value: any JSON value. The value; its type counts too: a switch does not accept 1.
        """


@dataclasses.dataclass(frozen=True)
class Text:
    """Any text."""

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str)


@dataclasses.dataclass(frozen=True)
class Switch:
    """On or off."""

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number in a range.

    Args:
        at_least: int. The smallest number.
        at_most: int. The largest number. Defaults to LARGEST.
    """

    at_least: int
    at_most: int = LARGEST

    def accepts(self, value: Any) -> bool:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return is_whole and self.at_least <= value <= self.at_most


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number in a range.

    Args:
        above: float. The number must be above this. Defaults to None, which means at least 0.
        below: float. The number must be below this. Defaults to None, which means no bound.
    """

    above: float | None = None
    below: float | None = None

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        # The last comparison refuses integers that are too large for a float.
        return (
            (value >= 0 if self.above is None else value > self.above)
            and (self.below is None or value < self.below)
            and value <= sys.float_info.max
        )


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several words.

    Args:
        words: tuple of str. The words.
    """

    words: tuple[str, ...]

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.words


@dataclasses.dataclass(frozen=True)
class Names:
    """A list of names."""

    def accepts(self, value: Any) -> bool:
        return (
            isinstance(value, list)
            and bool(value)
            and all(isinstance(name, str) and bool(name.strip()) for name in value)
        )


@dataclasses.dataclass(frozen=True)
class Growing:
    """Growing finite numbers above 0; there may be none."""

    def accepts(self, value: Any) -> bool:
        number = Number(above=0)
        return (
            isinstance(value, list | tuple)
            and all(number.accepts(each) for each in value)
            and sorted(value) == list(value)
        )


@dataclasses.dataclass(frozen=True)
class Setting:
    """The description of a setting, kept in the metadata of its field.

    Args:
        kind: Kind. The values that the setting may have.
        help: str. Its meaning, in the words of `--help`.
        group: str. The title under which `--help` shows it.
        short: str. A second, shorter name of its flag. Defaults to None, which means that it has
            one name.
        means: callable of the optimizer's name and whether there is an inner loop. Returns whether
            the setting means anything there. Defaults to None, which means everywhere.
        instead: str. The setting to use where this one has no meaning. Defaults to "".
        may_be_none: bool. Whether None stands for something; a flag never gives it. Defaults to
            False.
        may_change: bool. Whether it may change when a run is resumed, such as its length and its
            devices. Defaults to False.
        is_quiet: bool. Whether the table of settings leaves it out if it has its default.
            Defaults to False.
        rank: int. Where in its group `--help` shows it; equal ranks keep the order of the
            fields. Defaults to 50.
    """

    kind: Kind
    help: str
    group: str
    short: str | None = None
    means: Callable[[str, bool], bool] | None = None
    instead: str = ""
    may_be_none: bool = False
    may_change: bool = False
    is_quiet: bool = False
    rank: int = 50

    def has_meaning(self, optimizer: str, *, inner_loop: bool) -> bool:
        """Return whether the setting means anything for an optimizer.

        Args:
            optimizer: str. The name of the optimizer, as `-opt` takes it.
            inner_loop: bool. Whether it has an inner loop of at least one step.
        """
        return self.means is None or self.means(optimizer, inner_loop)


def setting(
    kind: Kind, help: str, group: str, *, default: Any = dataclasses.MISSING, **options: Any
) -> Any:
    """Return a dataclass field with a `Setting` in its metadata.

    Args:
        kind: Kind. The values that the setting may have.
        help: str. The description that `--help` shows.
        group: str. The title under which `--help` shows it.
        default: any value of the kind. The setting's value if it is not given. Defaults to
            dataclasses.MISSING, which means that it must be given.
        **options: Further fields of `Setting`.
    """
    return dataclasses.field(
        default=default, metadata={"setting": Setting(kind, help, group, **options)}
    )


def setting_of(field: dataclasses.Field[Any]) -> Setting:
    """Return the `Setting` of a field that `setting` made."""
    found: Setting = field.metadata["setting"]
    return found


def settings_of(*classes: type) -> dict[str, Setting]:
    """Return the settings of dataclasses by their names, in the order of the fields."""
    return {field.name: setting_of(field) for one in classes for field in dataclasses.fields(one)}
