"""The door to all commands: `python3 -m esgd_tf COMMAND ...`.

A command is a module with `main(argv) -> int`, which is imported only when the command is called.
It gets the part of the command line that begins with its own name.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from esgd_tf.cli.door import asks_for_traceback, enter
from esgd_tf.cli.parsers import FlagError
from esgd_tf.cli.suggestions import did_you_mean
from esgd_tf.cli.version import version_line

__all__ = ["COMMANDS", "help_text", "main"]

# The name, the module and a summary of each command, in the order of a run's life.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("esgd_tf.cli.presets", "train a network: what train.py is in a clone"),
    "launch": ("esgd_tf.cli.launch", "start several workers of a training on this machine"),
    "evaluate": ("esgd_tf.cli.evaluate", "accuracy, loss and calibration of a run"),
    "predict": ("esgd_tf.cli.predict", "classify image files with a run's network"),
    "export": ("esgd_tf.cli.export", "write a network that loads without esgd_tf"),
    "landscape": ("esgd_tf.cli.landscape", "how wide the valleys are that runs ended in"),
    "walkers": ("esgd_tf.cli.walkers", "many networks at once, and what lies between them"),
    "compare": ("esgd_tf.cli.compare", "a table and a picture of several runs"),
    "completion": ("esgd_tf.cli.completion", "let bash or zsh complete commands and flags"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Call the command that the first word names.

    Args:
        argv: sequence of str. The command line, like `sys.argv`. Defaults to None, which takes
            the command line of the process.

    Returns:
        The exit status: 2 for a command that is missing or unknown, else the command's.
    """
    argv = list(sys.argv if argv is None else argv)
    # The command handles its own errors; this call handles those that come earlier.
    return enter(
        "esgd_tf",
        lambda: _call(argv[1:]),
        see="python3 -m esgd_tf --help",
        debug=asks_for_traceback(argv),
    )


def _call(words: list[str]) -> int:
    if not words:
        raise FlagError(f"name a command: {', '.join(COMMANDS)}")
    name = words[0]
    if name in ("-h", "-help", "--help", "help"):
        print(help_text())
        return 0
    if name in ("-version", "--version"):
        print(version_line())
        return 0
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        raise FlagError(f"there is no command {name!r}{near}")
    return importlib.import_module(COMMANDS[name][0]).main(words)


def help_text() -> str:
    """Return the list of commands, in 80 columns."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "Trains networks, and looks at what training gave.",
            "",
            "  esgd-tf COMMAND ...             or: python3 -m esgd_tf COMMAND ...",
            "  esgd-tf COMMAND --help",
            "",
            "Commands:",
            *(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()),
            "",
            "  esgd-tf --version               of esgd_tf, TensorFlow and Keras",
            "",
            "With NO_COLOR in the environment nothing is colored.",
        ]
    )
