"""One command's flags and words: their definition, their help, and what becomes of its errors.

absl has no words without a flag in its help and one list of flags per process in its `app.run`;
here each command has a `FlagValues` of its own, so that commands can be called one after another
in one process. No TensorFlow here.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from esgd_tf.cli.flags import FlagError, flag_error, flag_help
from esgd_tf.cli.startup import one_sentence
from esgd_tf.data.errors import DataError
from esgd_tf.training.errors import CheckpointError, RunFolderError

__all__ = ["CommandLine"]

_BAD_FLAGS, _FAILED, _STOPPED = 2, 1, 130

Body = Callable[[Any, list[str]], None]


class CommandLine:
    """The command line of one command.

    Args:
        name: The command.
        words: What stands for its words in the help: "RUN IMAGE...".
        summary: What it does, for the help.
        examples: What follows the command's name in each example.
        at_least: How many words it needs.
        at_most: How many it takes; None for any number.
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
    ) -> None:
        self._name, self._words, self._summary = name, words, summary
        self._examples = examples
        self._at_least, self._at_most = at_least, at_most
        self._fv = flags.FlagValues()
        self._fv.set_gnu_getopt(True)  # flags may follow words
        self._names: list[str] = []

    def text(self, name: str, default: str | None, help: str) -> None:
        """Define a flag with any value."""
        flags.DEFINE_string(name, default, help, flag_values=self._fv)
        self._names.append(name)

    def texts(self, name: str, help: str, short: str) -> None:
        """Define a flag that may be given several times; its value is a list, or None."""
        flags.DEFINE_multi_string(name, None, help, flag_values=self._fv, short_name=short)
        self._fv[name].help = help  # absl adds a sentence, and spaces in front of it
        self._names.append(name)

    def choice(self, name: str, choices: Sequence[str], default: str, help: str) -> None:
        """Define a flag with one of several values."""
        flags.DEFINE_enum(name, default, list(choices), help, flag_values=self._fv)
        self._names.append(name)

    def integer(
        self, name: str, at_least: int, default: int | None, help: str, short: str | None = None
    ) -> None:
        """Define a flag with a whole number."""
        flags.DEFINE_integer(name, default, help, at_least, flag_values=self._fv, short_name=short)
        self._names.append(name)

    def switch(self, name: str, default: bool, help: str, short: str | None = None) -> None:
        """Define a flag that is on or off."""
        flags.DEFINE_boolean(name, default, help, flag_values=self._fv, short_name=short)
        self._names.append(name)

    def checkpoint_flags(self) -> None:
        """Define which checkpoint of the run is meant, and how its BatchNorm is treated."""
        self.text("checkpoint", "last", "last, best, or the path of a .keras file of this run")
        self.integer("bn_reestimate", 0, None, "training batches from which BatchNorm statistics "
                     "are estimated anew; 0 keeps the stored ones (default: only after an "
                     "interruption inside an epoch, as many as the run uses)")  # fmt: skip

    def data_flags(self) -> None:
        """Define where the run's data set lies, as train.py does."""
        self.text("data_dir", "tfrecords", "where data sets lie prepared, or are put once built")
        self.text("raw_dir", None, "folder with the archives of the data set, to build it from")
        self.switch("download", True, "whether to download a data set that is not there")

    def run(self, argv: Sequence[str], body: Body) -> int:
        """Parse the command line and call the command.

        Args:
            argv: The command's name, its flags and words.
            body: Called with the flags and the words.

        Returns:
            The exit status: 0; 2 for bad flags; 1 for what else failed; 130 for Ctrl-C.
        """
        self.switch("help", False, "show this", "h")
        try:
            if {"-h", "-help", "--help"} & set(argv[1:]):
                print(self.help_text())
                return 0
            body(self._fv, self._parse(argv))
        except FlagError as error:
            see = f"See python3 -m esgd_tf {self._name} --help."
            return self._complain(f"{error}. {see}", _BAD_FLAGS)
        except KeyboardInterrupt:
            return self._complain("Stopped; nothing half-written is left.", _STOPPED)
        except (DataError, RunFolderError, CheckpointError) as error:
            return self._complain(str(error))
        except Exception as error:
            if not _of_users(error):
                raise
            return self._complain(one_sentence(error))
        return 0

    def help_text(self) -> str:
        """Return the help, in 80 columns."""
        call = f"python3 -m esgd_tf {self._name}"
        lines = [f"{call} {self._words} [flags]", "", textwrap.fill(self._summary, 79), ""]
        lines += [f"  {call} {example}" for example in self._examples]
        lines += ["", "Flags:"]
        for name in self._names:
            lines += flag_help(self._fv[name])
        return "\n".join(lines)

    def _parse(self, argv: Sequence[str]) -> list[str]:
        try:
            words = self._fv(list(argv))[1:]
        except flags.Error as error:
            raise FlagError(flag_error(error)) from None
        if len(words) < self._at_least:
            raise FlagError(f"give {self._words}")
        if self._at_most is not None and len(words) > self._at_most:
            raise FlagError(f"{words[self._at_most]!r} is one word too many: give {self._words}")
        return words

    def _complain(self, message: str, status: int = _FAILED) -> int:
        print(f"esgd_tf {self._name}: {message}", file=sys.stderr)
        return status


def _of_users(error: Exception) -> bool:
    """Whether an exception tells of what users can get wrong or run out of."""
    if isinstance(error, MemoryError | OSError | ValueError):
        return True
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(error, tensorflow.errors.OpError)
