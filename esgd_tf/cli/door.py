"""The entry point of all commands, which handles their errors, Ctrl-C, and their output.

Every error of a command ends in one sentence and an exit status, and never in a traceback, unless
`--debug` asks for one. This module loads no TensorFlow and almost nothing else, so that Ctrl-C is
handled from the first moment on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from esgd_tf._extras import MissingExtraError
from esgd_tf.cli.parsers import FlagError
from esgd_tf.cli.startup import one_sentence, plain_warnings, say
from esgd_tf.cli.streams import OutputError, ReaderGoneError, standard_streams
from esgd_tf.data.errors import DataError
from esgd_tf.runs.errors import CheckpointError, RunFolderError
from esgd_tf.training.errors import ClusterError, StrategyError

__all__ = [
    "BAD_FLAGS",
    "FAILED",
    "READER_GONE",
    "STOPPED",
    "asks_for_traceback",
    "enter",
    "reason_of",
    "was_interrupted",
]

FAILED, BAD_FLAGS, STOPPED = 1, 2, 130
# The exit status that a shell reports for a program that SIGPIPE has ended.
READER_GONE = 128 + signal.SIGPIPE

# Errors whose messages are sentences for users.
_FORESEEN = (
    DataError,
    RunFolderError,
    CheckpointError,
    StrategyError,
    ClusterError,
    MissingExtraError,
)


def asks_for_traceback(argv: Sequence[str]) -> bool:
    """Return whether --debug is among the flags, even if others of them are wrong."""
    words = list(argv)
    own = words[: words.index("--")] if "--" in words else words
    return "--debug" in own or "-debug" in own


def enter(
    name: str,
    body: Callable[[], int],
    *,
    see: str | None = None,
    debug: bool = False,
    outlives_output: bool = False,
    stopped: str = "Stopped; nothing half-written is left.",
) -> int:
    """Call a command and turn its errors into a sentence and an exit status.

    Args:
        name: str. The command's name, which stands in front of the sentence.
        body: callable. The command, which returns its exit status.
        see: str. The command that shows help about bad flags, such as "train.py --help". Defaults
            to None, which names none.
        debug: bool. Whether to print the traceback too. Defaults to False.
        outlives_output: bool. Whether the command goes on when its output cannot be written, as a
            training does. Defaults to False.
        stopped: str. The sentence after Ctrl-C. Defaults to "Stopped; nothing half-written is
            left.".

    Returns:
        The exit status: what the body returned; 2 for bad flags; 130 for Ctrl-C; 141, and no
        sentence, where nobody reads the output any more, as after `| head`; 1 for other errors.
    """
    streams = standard_streams(name, may_be_lost=outlives_output)
    with streams, plain_warnings(name), _ctrl_c() as was_pressed:
        try:
            _require_working_folder()
            status = body()
            sys.stdout.flush()
            return status
        except ReaderGoneError:
            return READER_GONE
        except Exception as error:
            if debug:
                traceback.print_exc()
            if was_pressed() and not isinstance(error, (FlagError, *_FORESEEN)):
                return _complain(name, stopped, STOPPED)  # Ctrl-C caused the error
            return _complain(name, *_sentence(error, see))
        except KeyboardInterrupt:
            if debug:
                traceback.print_exc()
            return _complain(name, stopped, STOPPED)


_interrupted = threading.Event()


def was_interrupted() -> bool:
    """Return whether Ctrl-C has been pressed since the command began.

    Code that catches exceptions asks this, since an import may turn Ctrl-C into another error, and
    Python drops a Ctrl-C that comes in a destructor.
    """
    return _interrupted.is_set()


def reason_of(error: Exception) -> str:
    """Return a sentence about an exception that does not end the command."""
    return _sentence(error, None)[0]


def _sentence(error: Exception, see: str | None) -> tuple[str, int]:
    """Return a sentence about an exception, and the exit status."""
    if isinstance(error, FlagError):
        return _with_stop(str(error)) + (f" See {see}." if see else ""), BAD_FLAGS
    if isinstance(error, _FORESEEN):
        return _with_stop(str(error).rstrip()), FAILED
    if isinstance(error, OutputError):
        return f"Standard output cannot be written to ({error}).", FAILED
    if isinstance(error, RecursionError):
        return (
            "Something is nested too deeply: a file, or a network of too many layers "
            "(--debug shows where).",
            FAILED,
        )
    if _is_of_users(error):
        return one_sentence(error), FAILED
    kind = type(error).__name__
    return (
        f"Something unforeseen went wrong ({kind}: {one_sentence(error).rstrip('.')}). It may be a "
        "defect of esgd_tf: --debug shows where it happened.",
        FAILED,
    )


def _with_stop(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _is_of_users(error: Exception) -> bool:
    """Return whether an exception is about a user's mistake or about missing resources."""
    if isinstance(error, MemoryError | OSError):
        return True
    if isinstance(error, ValueError):
        # If this library raised it on purpose, its message is a whole sentence.
        return _is_ours(error) and str(error).rstrip().endswith((".", "?"))
    tensorflow = sys.modules.get("tensorflow")
    errors = getattr(tensorflow, "errors", None)
    return errors is not None and isinstance(error, errors.OpError)


def _is_ours(error: Exception) -> bool:
    """Return whether code of this library itself raised the error, not code that it called."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").startswith("esgd_tf")


def _require_working_folder() -> None:
    try:
        os.getcwd()  # noqa: PTH109 - the question is whether there is one
    except FileNotFoundError:
        raise RunFolderError(
            "The working folder does not exist any more: change to another one."
        ) from None


@contextlib.contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Remember whether Ctrl-C was pressed, since an import may turn it into another error."""
    pressed = False
    _interrupted.clear()

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        _interrupted.set()
        raise KeyboardInterrupt

    # A handler that someone else has set, or an ignored signal, is left alone.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: pressed
        return
    try:
        signal.signal(signal.SIGINT, press)
    except ValueError:  # not in the main thread
        yield lambda: pressed
        return
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _complain(name: str, message: str, status: int) -> int:
    # Earlier output is written first. Left until Python ends, writing it could fail then.
    with contextlib.suppress(OutputError):
        sys.stdout.flush()
    say(f"{name}: {message}")
    return status
