"""Parsers of flag values, and the errors for bad values. This module loads no TensorFlow.

absl's own parsers do the work; here their complaints ("invalid literal for int() with base 10")
become sentences that the user understands.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from esgd_tf._files import expanded
from esgd_tf.cli.suggestions import dashed, did_you_mean
from esgd_tf.runs.setting import (
    LARGEST,
    Choice,
    Growing,
    Kind,
    Names,
    Number,
    Switch,
    Text,
    Whole,
)

__all__ = [
    "ChoiceParser",
    "FlagError",
    "GrowingParser",
    "NamesParser",
    "NumberParser",
    "PathParser",
    "SwitchParser",
    "TextParser",
    "WholeParser",
    "check_folder_name",
    "flag_error",
    "parse_flags",
    "parser_of",
]

# The longest name in bytes that file systems allow.
_LONGEST_NAME = 255
# The number of characters of a value that an error shows; a file may be pasted by accident.
_SHOWN = 60


class FlagError(Exception):
    """A flag is unknown or has a bad value; the message is one sentence without its full stop."""


class TextParser(flags.ArgumentParser):
    """Any text; subclasses restrict it."""

    def flag_type(self) -> str:
        """Return the name of the type."""
        return "string"


class WholeParser(flags.IntegerParser):
    """A whole number in a range.

    Args:
        at_least: int. The smallest number.
        at_most: int. The largest number. Defaults to LARGEST.
    """

    def __init__(self, at_least: int, at_most: int = LARGEST) -> None:
        super().__init__(at_least, at_most)

    def parse(self, argument: Any) -> int:
        """Return the number.

        Raises:
            ValueError: It is none, or outside of the range.
        """
        with contextlib.suppress(ValueError, TypeError):
            return super().parse(argument)
        allowed = f"of at least {self.lower_bound}"
        if self.upper_bound < LARGEST or str(argument).isdecimal():
            allowed = f"from {self.lower_bound} to {self.upper_bound:,}"
        raise ValueError(f"must be a whole number {allowed}")


class NumberParser(flags.FloatParser):
    """A finite number in a range.

    Args:
        above: float. The number must be above this. Defaults to None, which means at least 0.
        below: float. The number must be below this. Defaults to None, which means no bound.
    """

    def __init__(self, above: float | None = None, below: float | None = None) -> None:
        super().__init__()
        self._number = Number(above, below)

    def parse(self, argument: Any) -> float:
        """Return the number.

        Raises:
            ValueError: It is none, or outside of the range.
        """
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            number = super().parse(argument)
            if self._number.accepts(number):
                return number
        above, below = self._number.above, self._number.below
        wanted = "at least 0" if above is None else f"above {above:g}"
        wanted += "" if below is None else f" and below {below:g}"
        raise ValueError(f"must be a finite number {wanted}")


class ChoiceParser(flags.EnumParser):
    """One of several words."""

    def parse(self, argument: Any) -> str:
        """Return the word.

        Raises:
            ValueError: It is none of them.
        """
        try:
            return super().parse(argument)
        except (ValueError, TypeError):
            raise ValueError(
                f"must be one of {', '.join(self.enum_values)}"
                + did_you_mean(argument, self.enum_values)
            ) from None


class SwitchParser(flags.BooleanParser):
    """On or off."""

    def parse(self, argument: Any) -> bool:
        """Return whether it is on.

        Raises:
            ValueError: It is neither.
        """
        try:
            return super().parse(argument)
        except (ValueError, TypeError):
            raise ValueError("is on or off, and takes no other value") from None


class PathParser(TextParser):
    """A file or folder; `~` is the home of the user, which the shell does not see after a `=`."""

    def parse(self, argument: Any) -> str:
        """Return the path.

        Raises:
            ValueError: It is empty.
        """
        if not argument:
            raise ValueError("must be a path")
        return expanded(argument)


class NamesParser(flags.ListParser):
    """Names with commas between them."""

    def parse(self, argument: Any) -> list[str]:
        """Return the names.

        Raises:
            ValueError: One is empty, or there is none.
        """
        names = super().parse(argument)
        if not Names().accepts(names):
            raise ValueError("must be names with commas between them")
        return names


class GrowingParser(flags.ListParser):
    """Growing finite numbers above 0 with commas between them; there may be none."""

    def parse(self, argument: Any) -> tuple[float, ...]:
        """Return the numbers.

        Raises:
            ValueError: They do not grow, or one is not a finite number above 0.
        """
        with contextlib.suppress(ValueError, TypeError):
            numbers = [float(part) for part in super().parse(argument)]
            if Growing().accepts(numbers):
                return tuple(numbers)
        raise ValueError("must be growing finite numbers above 0")


def parser_of(kind: Kind) -> flags.ArgumentParser:
    """Return the parser of the flag of a setting.

    Args:
        kind: Kind. The values that the setting may have.
    """
    parser: flags.ArgumentParser
    match kind:
        case Whole(at_least, at_most):
            parser = WholeParser(at_least, at_most)
        case Number(above, below):
            parser = NumberParser(above, below)
        case Choice(words):
            parser = ChoiceParser(list(words))
        case Switch():
            parser = SwitchParser()
        case Names():
            parser = NamesParser()
        case Growing():
            parser = GrowingParser()
        case Text():
            parser = TextParser()
        case _:
            raise TypeError(f"There is no parser for {kind!r}.")
    return parser


def parse_flags(fv: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parse a command line into `fv` and return the words that belong to no flag.

    Args:
        fv: flags.FlagValues. The flags, which get their values.
        argv: sequence of str. The command line, like `sys.argv`.

    Raises:
        FlagError: A flag is unknown or has a bad value.
    """
    try:
        return fv(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        raise FlagError(_unknown_flag(error.flagname, fv, argv)) from None
    except flags.CantOpenFlagFileError:
        raise FlagError("the file of --flagfile cannot be read") from None
    except (flags.Error, ValueError) as error:  # --noverbose=1 gives a ValueError
        raise FlagError(_as_typed(flag_error(error), fv, argv)) from None


def _unknown_flag(name: str, fv: flags.FlagValues, argv: Sequence[str]) -> str:
    """Return a complaint about an unknown flag, with its dashes as they were typed."""
    typed = {word.partition("=")[0] for word in argv}
    known = [*fv, *(f"no{each}" for each in fv if fv[each].boolean)]
    near = did_you_mean(name, known, dashed)
    return f"there is no flag {f'-{name}' if f'-{name}' in typed else f'--{name}'}{near}"


def _as_typed(text: str, fv: flags.FlagValues, argv: Sequence[str]) -> str:
    """Return a complaint with the name by which the flag was given, such as --lr."""
    found = re.match(r"--(\w+)(.*)", text, flags=re.DOTALL)
    if found is None or found[1] not in fv:
        return text
    long, rest = found.groups()
    short = fv[long].short_name
    typed = {word.partition("=")[0] for word in argv}
    return f"--{short}{rest}" if f"--{short}" in typed and f"--{long}" not in typed else text


def flag_error(error: Exception) -> str:
    """Return a complaint about a flag in the form that all commands print."""
    text = str(error).replace("flag --", "--").replace("flag -", "-").rstrip(".: ")
    flag, equals, rest = text.partition("=")
    value, colon, reason = rest.rpartition(": ")
    if colon and len(value) > _SHOWN:
        text = f"{flag}{equals}{value[:_SHOWN]}...{colon}{reason}"
    return text


def check_folder_name(name: str) -> None:
    """Check that a name, such as a run's, names one folder directly inside another.

    Raises:
        FlagError: It is empty, too long, or leads elsewhere.
    """
    if len(name.encode(errors="surrogateescape")) > _LONGEST_NAME:
        raise FlagError(
            f"--name={name[:_SHOWN]}...: is longer than file systems allow ({_LONGEST_NAME} bytes)"
        )
    if name in ("", ".", "..") or Path(name).name != name:
        raise FlagError(f"--name={name}: must be the name of a folder, without slashes")
