"""The flags of train.py: their names, their help, and their checks, all without TensorFlow.

Most of them are made from the settings of a run (`esgd_tf/runs/experiment.py`), the others, which
say where a run lies and what is shown of it, are defined here.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from esgd_tf.cli.parsers import (
    FlagError,
    PathParser,
    SwitchParser,
    parse_flags,
    parser_of,
)
from esgd_tf.cli.suggestions import dashed
from esgd_tf.runs.experiment import GROUPS, Experiment, RunSettings
from esgd_tf.runs.setting import Setting, Switch, Text, setting, setting_of, settings_of
from esgd_tf.runs.train_command import train_command

__all__ = ["FlagError", "define_flags", "define_switch", "flag_help", "help_text", "parse"]

_OF_THE_OUTPUT = (
    "A training outlives its output: where nobody reads it any more (| head), the run",
    "goes on, and Ctrl-C still saves it. With NO_COLOR in the environment nothing is",
    "colored. Completion in bash and zsh: python3 -m esgd_tf completion --help.",
)
_WHAT, _GOING_ON, _DATA, _RUN = (GROUPS[i] for i in (0, 1, 4, 6))


class _Path(Text):
    """A file or a folder."""


@dataclasses.dataclass(frozen=True)
class _OfTheCommand:
    """The flags that are not settings of a run."""

    preset: str | None = setting(
        Text(),
        "experiment of a paper, or quickstart (see --presets); by default the one that fits "
        "--dataset and --model",
        _WHAT,
        default=None,
        rank=2,
    )
    name: str | None = setting(
        Text(), "name of the run, and of its folder in --logdir", _WHAT, short="n", default=None
    )
    restore_last: bool = setting(
        Switch(),
        "go on with the run --name, or with the last run there is",
        _GOING_ON,
        short="rl",
        default=False,
    )
    restore_path: str | None = setting(
        _Path(),
        "go on from this checkpoint, or from the last one of this run folder",
        _GOING_ON,
        short="r",
        default=None,
    )
    data_dir: str = setting(
        _Path(),
        "where data sets lie prepared, or are put once built",
        _DATA,
        default="tfrecords",
        rank=0,
    )
    raw_dir: str | None = setting(
        _Path(),
        "folder with the archives of a data set, to build it from",
        _DATA,
        default=None,
        rank=1,
    )
    download: bool = setting(
        Switch(),
        "whether to download a data set that is not there",
        _DATA,
        default=True,
        rank=2,
    )
    logdir: str = setting(_Path(), "where run folders lie", _RUN, default="runs", rank=0)
    checkpoint_dir: str | None = setting(
        _Path(),
        "where the checkpoints go; by default into the run folder",
        _RUN,
        default=None,
        rank=1,
    )
    verbose: bool = setting(
        Switch(),
        "print the norms of the inner loop after each epoch",
        _RUN,
        short="v",
        default=False,
    )
    help: bool = setting(Switch(), "show this", _RUN, short="h", default=False)
    presets: bool = setting(Switch(), "show the presets", _RUN, default=False)
    version: bool = setting(
        Switch(), "show the versions of esgd_tf, TensorFlow and Keras", _RUN, default=False
    )
    debug: bool = setting(Switch(), "show the traceback of an error too", _RUN, default=False)


def define_flags(experiment: type = Experiment) -> flags.FlagValues:
    """Return the flags of train.py, not parsed yet; None stands for the preset's value.

    Args:
        experiment: type. The dataclass whose fields are the numbers. Defaults to Experiment.
    """
    fv = flags.FlagValues()
    for part in (experiment, RunSettings, _OfTheCommand):
        for field in dataclasses.fields(part):
            known = setting_of(field)
            # The presets set the experiment's values, so these flags have no default.
            default = None if part is experiment else field.default
            if field.name == "optimizer":
                default = "entropy-sgd"
            if isinstance(known.kind, Switch):
                define_switch(fv, field.name, bool(default), known.help, known.short)
                continue
            parser = PathParser() if isinstance(known.kind, _Path) else parser_of(known.kind)
            flags.DEFINE(
                parser, field.name, default, known.help, fv, flags.ArgumentSerializer(),
                short_name=known.short,
            )  # fmt: skip
    return fv


def _of_group(title: str, experiment: type) -> list[tuple[str, Setting]]:
    """Return the flags of a group in the order in which the help shows them."""
    of_all = settings_of(experiment, RunSettings, _OfTheCommand)
    return sorted(
        ((name, known) for name, known in of_all.items() if known.group == title),
        key=lambda pair: pair[1].rank,
    )


def parse(fv: flags.FlagValues, argv: Sequence[str]) -> None:
    """Parse the command line into `fv`.

    Args:
        fv: flags.FlagValues. The flags, from `define_flags`.
        argv: sequence of str. The command line, like `sys.argv`.

    Raises:
        FlagError: A flag is unknown or has a bad value, or a word belongs to no flag.
    """
    rest = parse_flags(fv, argv)
    if rest:
        raise FlagError(f"{rest[0]!r} belongs to no flag")


def define_switch(
    fv: flags.FlagValues, name: str, default: bool, help: str, short: str | None = None
) -> None:
    """Define a flag that is on or off.

    Args:
        fv: flags.FlagValues. The flags to which it is added.
        name: str. The flag's name; with "no" in front it is off.
        default: bool. Whether it is on.
        help: str. The purpose of the flag.
        short: str. A second, shorter name. Defaults to None, which means none.
    """
    flag = flags.BooleanFlag(name, default, help, short)
    flag.parser = SwitchParser()
    flags.DEFINE_flag(flag, fv)


def help_text(
    fv: flags.FlagValues, defaults: Mapping[str, Any], experiment: type = Experiment
) -> str:
    """Return the help, the main flags first, in 80 columns.

    Args:
        fv: `flags.FlagValues`. The flags, from `define_flags`.
        defaults: mapping from str. The values of the default preset by flag.
        experiment: type. The dataclass that `define_flags` was given. Defaults to Experiment.
    """
    command = " ".join(train_command())
    lines = [
        "Trains a Keras model with Entropy-SGD, or with what it is compared to.",
        "",
        f"  {command} --preset quickstart -opt entropy-sgd -L 20",
        f"  {command} -opt entropy-sgd -L 20        (CIFAR-10, wrn-28-10)",
    ]
    for title in GROUPS:
        lines += ["", f"{title}:"]
        for name, _ in _of_group(title, experiment):
            lines += flag_help(fv[name], defaults.get(name))
    lines += ["", "Defaults shown as (preset: ...) are those of the preset in force without flags."]
    lines += ["", *_OF_THE_OUTPUT]
    return "\n".join(lines)


def flag_help(flag: flags.Flag, preset_value: Any = None) -> list[str]:
    """Return the lines of the help about one flag, in 80 columns.

    Args:
        flag: flags.Flag. The flag.
        preset_value: any value of the flag. Its value in the preset in force. Defaults to None,
            which means that presets do not set it.
    """
    name = f"--{flag.name}"
    if flag.short_name is not None:
        name = f"{dashed(flag.short_name)}, {name}"
    choices = getattr(flag.parser, "enum_values", None)
    help = flag.help if not choices else f"{flag.help}: {', '.join(choices)}"
    if flag.default is not None and not flag.boolean:
        help += f" (default: {flag.default})"
    elif preset_value is not None and preset_value != ():
        help += f" (preset: {preset_value})"
    elif flag.boolean and flag.default:
        help += f" (default: on; --no{flag.name})"
    return textwrap.wrap(
        f"{name:<24} {help}",
        width=79,
        initial_indent="  ",
        subsequent_indent=" " * 27,
        break_on_hyphens=False,
    )
