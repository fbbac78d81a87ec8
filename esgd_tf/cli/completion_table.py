"""The table of what can be typed after each command, from which shell completions are made.

It is read off the flags themselves, so that a new flag, choice or preset is completed without
another edit. This module loads no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

from esgd_tf.cli.commands import COMMANDS
from esgd_tf.cli.completion import SHELLS
from esgd_tf.cli.flags import define_flags
from esgd_tf.cli.parsers import PathParser
from esgd_tf.cli.presets import presets
from esgd_tf.data.corruption import CORRUPTIONS
from esgd_tf.models import names as model_names

__all__ = ["Command", "Completed", "commands"]

# Flags whose values are paths, though any text is taken: patterns.
_PATTERNS = {"input"}
# Words that may stand in the place of a path.
_BESIDE_PATHS = {"checkpoint": ("last", "best")}


@dataclasses.dataclass(frozen=True)
class Completed:
    """The part of a flag's definition that completion needs.

    Args:
        names: tuple of str. Its names without dashes, the long one first.
        help: str. The purpose of the flag.
        is_switch: bool. Whether it takes no value.
        is_on: bool. Whether it is a switch that is on by default.
        is_path: bool. Whether its value is a file or a folder.
        words: tuple of str. Its possible or usual values; empty if they cannot be listed.
    """

    names: tuple[str, ...]
    help: str
    is_switch: bool
    is_on: bool
    is_path: bool
    words: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Command:
    """The part of a command's definition that completion needs.

    Args:
        name: str. Its name.
        summary: str. A sentence about its purpose.
        flags: tuple of Completed. Its flags.
        words: tuple of str. The possible first words. Defaults to (), for a file or a folder.
    """

    name: str
    summary: str
    flags: tuple[Completed, ...]
    words: tuple[str, ...] = ()


def commands() -> list[Command]:
    """Return all commands, and `walkers plot`, in the order of `--help`."""
    words = {"walkers": ("plot",), "completion": SHELLS}
    found = [
        Command(name, summary, _completed(name, _flags_of(module, name)), words.get(name, ()))
        for name, (module, summary) in COMMANDS.items()
    ]
    plot = _flags_of("esgd_tf.cli.walkers_plot", "walkers plot")
    return [*found, Command("walkers plot", "plot a run", _completed("walkers plot", plot))]


def _flags_of(module: str, command: str) -> Sequence[Any]:
    """Return the flags of a command, whose module has either `command_line` or `define_flags`."""
    if command == "train":
        fv = define_flags()
    else:
        there = importlib.import_module(module)
        if hasattr(there, "command_line"):
            return there.command_line().all_flags
        fv = there.define_flags()
    return [fv[name] for name in fv if fv[name].name == name]  # short names are names too


def _completed(command: str, flags: Sequence[Any]) -> tuple[Completed, ...]:
    return tuple(
        Completed(
            names=(flag.name,) if flag.short_name is None else (flag.name, flag.short_name),
            help=" ".join(flag.help.split()),
            is_switch=flag.boolean,
            is_on=flag.boolean and bool(flag.default),
            is_path=isinstance(flag.parser, PathParser) or flag.name in _PATTERNS,
            words=_words(command, flag),
        )
        for flag in flags
    )


def _words(command: str, flag: Any) -> tuple[str, ...]:
    if getattr(flag.parser, "enum_values", None) and not flag.boolean:
        return tuple(flag.parser.enum_values)
    if flag.name == "preset":
        return tuple(presets())
    if flag.name == "corrupt":
        return ("none", *CORRUPTIONS)
    if flag.name == "model":
        return ("nn", "lenet", *model_names()) if command == "walkers" else model_names()
    return _BESIDE_PATHS.get(flag.name, ())
