"""`completion`: a script that lets bash or zsh complete commands, flags and their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.parsers import FlagError
from esgd_tf.cli.suggestions import did_you_mean

__all__ = ["SHELLS", "command_line", "main"]

SHELLS = ("bash", "zsh")


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: sequence of str. "completion" and the shell.

    Returns:
        The exit status.
    """
    return command_line().run(argv, _completion)


def command_line() -> CommandLine:
    """Return the command's flags and help."""
    return CommandLine(
        "completion",
        "SHELL",
        "Prints a script for SHELL, which is bash or zsh, that completes commands, flags, presets, "
        "data sets and other choices, after `esgd-tf`, `python3 -m esgd_tf` and "
        "`python3 train.py`. To install it, put the line below for your shell at the end of "
        "~/.bashrc or ~/.zshrc and open a new terminal. It takes part of a second at each start; "
        "where that is too long, write the script to a file, source that, and write it anew after "
        "an update of esgd_tf. Lines of python3 that are not of esgd_tf are completed as before.",
        [],
        calls=[f'eval "$(python3 -m esgd_tf completion {shell})"' for shell in SHELLS],
    )


def _completion(fv: Any, words: list[str]) -> None:
    del fv
    shell = words[0]
    if shell not in SHELLS:
        near = did_you_mean(shell, SHELLS)
        raise FlagError(f"there is no completion for {shell!r}, but for {', '.join(SHELLS)}{near}")
    from esgd_tf.cli import completion_bash, completion_table, completion_zsh

    of_shell = {"bash": completion_bash, "zsh": completion_zsh}[shell]
    print(of_shell.script(completion_table.commands()))
