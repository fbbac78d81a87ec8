"""One command's flags and words: their definition, their help, and the handling of errors.

absl has no words without a flag in its help and one list of flags per process in its `app.run`;
here each command has a `FlagValues` of its own, so that commands can be called one after another
in one process. This module loads no TensorFlow.
"""

from __future__ import annotations

import errno
import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from esgd_tf._files import expanded
from esgd_tf.cli.door import asks_for_traceback, enter
from esgd_tf.cli.flags import FlagError, define_switch, flag_help
from esgd_tf.cli.parsers import ChoiceParser, PathParser, WholeParser, parse_flags

__all__ = ["CommandLine", "output_path"]

Body = Callable[[Any, list[str]], None]


class CommandLine:
    """The command line of one command.

    Args:
        name: str. The command's name.
        words: str. The placeholder of its words in the help: "RUN IMAGE...".
        summary: str. What the command does, for the help.
        examples: sequence of str. The words after the command's name in each example of the help.
        at_least: int >= 0. The number of words that the command needs. Defaults to 1.
        at_most: int. The largest number of words; None for any number. Defaults to 1.
        outlives_output: bool. Whether the command goes on when its output cannot be written, as a
            training does. Defaults to False.
        calls: sequence of str. Further examples, as they are typed. Defaults to ().
        stopped: str. The sentence after Ctrl-C. Defaults to None, which says that nothing
            half-written is left.
    """

    def __init__(
        self,
        name: str,
        words: str,
        summary: str,
        examples: Sequence[str],
        *,
        at_least: int = 1,
        at_most: int | None = 1,
        outlives_output: bool = False,
        calls: Sequence[str] = (),
        stopped: str | None = None,
    ) -> None:
        self._stopped = {} if stopped is None else {"stopped": stopped}
        self._name, self._words, self._summary = name, words, summary
        self._examples = [*(f"python3 -m esgd_tf {name} {each}" for each in examples), *calls]
        self._at_least, self._at_most = at_least, at_most
        self._outlives_output = outlives_output
        self._fv = flags.FlagValues()
        self._fv.set_gnu_getopt(True)  # flags may follow words
        self._names: list[str] = []

    def text(self, name: str, default: str | None, help: str) -> None:
        """Define a flag with any value."""
        flags.DEFINE_string(name, default, help, flag_values=self._fv)
        self._names.append(name)

    def path(self, name: str, default: str | None, help: str) -> None:
        """Define a flag with a file or folder."""
        self._define(PathParser(), name, default, help)

    def texts(self, name: str, help: str, short: str) -> None:
        """Define a flag that may be given several times; its value is a list, or None."""
        flags.DEFINE_multi_string(name, None, help, flag_values=self._fv, short_name=short)
        self._fv[name].help = help  # absl adds a sentence, and spaces in front of it
        self._names.append(name)

    def choice(self, name: str, choices: Sequence[str], default: str, help: str) -> None:
        """Define a flag with one of several values."""
        self._define(ChoiceParser(list(choices)), name, default, help)

    def integer(
        self, name: str, at_least: int, default: int | None, help: str, short: str | None = None
    ) -> None:
        """Define a flag with a whole number."""
        self._define(WholeParser(at_least), name, default, help, short)

    def switch(self, name: str, default: bool, help: str, short: str | None = None) -> None:
        """Define a flag that is on or off."""
        define_switch(self._fv, name, default, help, short)
        self._names.append(name)

    def checkpoint_flags(self) -> None:
        """Define the flags for the checkpoint of the run, and for its BatchNorm statistics."""
        self.path("checkpoint", "last", "last, best, or the path of a .keras file of this run")
        self.integer("bn_reestimate", 0, None, "training batches from which BatchNorm statistics "
                     "are estimated anew; 0 keeps the stored ones (default: only after an "
                     "interruption inside an epoch, as many as the run uses)")  # fmt: skip

    def data_flags(self) -> None:
        """Define the flags for the place of the run's data set, as in train.py."""
        self.path("data_dir", "tfrecords", "where data sets lie prepared, or are put once built")
        self.path("raw_dir", None, "folder with the archives of the data set, to build it from")
        self.switch("download", True, "whether to download a data set that is not there")

    def run(self, argv: Sequence[str], body: Body) -> int:
        """Parse the command line and call the command.

        Args:
            argv: sequence of str. The command's name, its flags and its words.
            body: callable. The command itself, which is called with the flags and the words.

        Returns:
            The exit status: 0; 2 for bad flags; 130 for Ctrl-C; 1 for other errors.
        """
        asks_for_help = bool({"-h", "-help", "--help"} & set(argv[1:]))
        self._define_common()

        def call() -> int:
            if asks_for_help:
                print(self.help_text())
            else:
                body(self._fv, self._parse(argv))
            return 0

        return enter(
            f"esgd_tf {self._name}",
            call,
            see=f"python3 -m esgd_tf {self._name} --help",
            debug=asks_for_traceback(argv),
            outlives_output=self._outlives_output and not asks_for_help,
            **self._stopped,
        )

    @property
    def all_flags(self) -> list[flags.Flag]:
        """The flags, in the order of the help."""
        self._define_common()
        return [self._fv[name] for name in self._names]

    def help_text(self) -> str:
        """Return the help, in 80 columns."""
        call = f"python3 -m esgd_tf {self._name}"
        lines = [f"{call} {self._words} [flags]", "", textwrap.fill(self._summary, 79), ""]
        lines += [f"  {example}" for example in self._examples]
        lines += ["", "Flags:"]
        for flag in self.all_flags:
            lines += flag_help(flag)
        return "\n".join(lines)

    def _define_common(self) -> None:
        if "help" not in self._fv:
            self.switch("debug", False, "show the traceback of an error too")
            self.switch("help", False, "show this", "h")

    def _parse(self, argv: Sequence[str]) -> list[str]:
        words = parse_flags(self._fv, argv)
        if len(words) < self._at_least:
            raise FlagError(f"give {self._words}")
        if self._at_most is not None and len(words) > self._at_most:
            raise FlagError(f"{words[self._at_most]!r} is one word too many: give {self._words}")
        return words

    def _define(
        self,
        parser: flags.ArgumentParser,
        name: str,
        default: Any,
        help: str,
        short: str | None = None,
    ) -> None:
        serializer = flags.ArgumentSerializer()
        flags.DEFINE(parser, name, default, help, self._fv, serializer, short_name=short)
        self._names.append(name)


def output_path(flag: str, text: str, *suffixes: str, may_be_in_new_folder: bool = False) -> Path:
    """Return the file that a flag names for a result, after checking that it can be written.

    The check comes before anything is computed, because a result that cannot be written is lost.

    Args:
        flag: str. The flag, with its dashes.
        text: str. The flag's value; `~` is the home of the user.
        *suffixes: The endings that it may have; none allows any.
        may_be_in_new_folder: bool. Whether the command makes the folder of the file. Defaults to
            False.

    Raises:
        FlagError: It is a folder, in a folder that does not exist, or has another ending.
        PermissionError: It may not be written.
    """
    path = Path(expanded(text))
    if suffixes and path.suffix.lower() not in suffixes:
        kinds = " or ".join(suffixes)
        raise FlagError(f"{flag}={text}: must be the name of a {kinds} file")
    if path.is_symlink() and not path.exists():
        path = path.resolve()  # a link to a missing file: write to its target
    folder = path.absolute().parent
    if path.is_dir() or not (folder.is_dir() or (may_be_in_new_folder and not folder.exists())):
        raise FlagError(f"{flag}={text}: must be a file in a folder that exists")
    probe = path if path.exists() else folder
    if not probe.exists():
        return path
    if not os.access(probe, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return path
