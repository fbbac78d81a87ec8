"""Standard output and error that never end a run: closed, full, without a reader, or in ASCII.

If the environment has NO_COLOR (https://no-color.org), these streams also leave out the colors of
Keras' progress bars and of everything else that is printed.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

__all__ = ["Output", "OutputError", "ReaderGoneError", "standard_streams"]

# Replacements for terminals that can only show ASCII or Latin-1.
_PLAIN = {
    "∇": "grad ", "±": "+/-", "…": "...", "━": "-", "╸": "-", "–": "-", "γ": "gamma",
    "σ": "sigma", "μ": "mu", "’": "'", "→": "->",
}  # fmt: skip
# Escape codes for colors, bold and the like (ECMA-48's SGR), but not for moving the cursor.
_COLORS = re.compile(r"\x1b\[[0-9;:]*m")


class OutputError(Exception):
    """Standard output cannot be written to; the message says why."""


class ReaderGoneError(OutputError):
    """Standard output is a pipe whose reader has ended, as `head` does."""


class Output:
    """A text stream that outlives its reader, and reports once that it can no longer write.

    Args:
        stream: file. The stream; None for one that was closed before the process began.
        lost: callable. Called once, with an OutputError that says why, when the stream can no
            longer be written to. Later writes are dropped, unless this raises.
        colors: bool. Whether colors are written. Defaults to True.
    """

    def __init__(
        self,
        stream: TextIO | None,
        lost: Callable[[OutputError], None],
        *,
        colors: bool = True,
    ) -> None:
        self.stream, self._lost, self._colors = stream, lost, colors
        self._is_lost = False

    def write(self, text: str) -> int:
        """Write, and return the number of characters."""
        shown = text if self._colors else _COLORS.sub("", text)
        self._try(lambda stream: stream.write(shown))
        return len(text)

    def flush(self) -> None:
        """Flush."""
        if self.stream is not None:  # a closed stream has nothing to flush
            self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Return whether this is a terminal."""
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:  # closed
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, action: Callable[[TextIO], Any]) -> None:
        if self._is_lost:
            return
        try:
            if self.stream is None:
                raise ValueError("it is closed")
            action(self.stream)
        except (OSError, ValueError) as error:
            self._is_lost = True
            self._point_at_nothing()
            kind = ReaderGoneError if isinstance(error, BrokenPipeError) else OutputError
            self._lost(kind(getattr(error, "strerror", None) or str(error)))

    def _point_at_nothing(self) -> None:
        """Redirect the stream to /dev/null, because Python flushes its buffer at exit."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nothing, self.stream.fileno())  # type: ignore[union-attr]
            finally:
                os.close(nothing)


@contextlib.contextmanager
def standard_streams(name: str, *, may_be_lost: bool) -> Iterator[None]:
    """Let standard output and error fail without harm.

    Args:
        name: str. The command's name, for messages.
        may_be_lost: bool. Whether the command goes on without its output, as a training does; else
            the block gets an `OutputError`. Standard error may always be lost.
    """
    _open_closed_descriptors()

    def lost(reason: OutputError) -> None:
        if not may_be_lost:
            raise reason
        print(
            f"{name}: Standard output cannot be written to ({reason}): going on without it.",
            file=sys.stderr,
        )

    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as restored:
        out, error = (
            restored.enter_context(_with_plain_characters(_unwrapped(each))) for each in before
        )
        colors = not os.environ.get("NO_COLOR")
        sys.stderr = Output(error, lambda _: None, colors=colors)
        sys.stdout = Output(out, lost, colors=colors)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def _unwrapped(stream: Any) -> TextIO | None:
    return stream.stream if isinstance(stream, Output) else stream


def _open_closed_descriptors() -> None:
    """Open descriptors 0 to 2 on /dev/null if they are closed.

    Otherwise the next file that is opened would get such a number, and printed text would go there.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


@contextlib.contextmanager
def _with_plain_characters(stream: TextIO | None) -> Iterator[TextIO | None]:
    """Let a stream replace characters that its encoding lacks by plain ones."""
    before = getattr(stream, "errors", None)
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is None or before == "esgd_tf.plain":
        yield stream
        return
    with contextlib.suppress(OSError, ValueError):  # this call flushes
        reconfigure(errors="esgd_tf.plain")
    try:
        yield stream
    finally:
        with contextlib.suppress(OSError, ValueError):
            reconfigure(errors=before)


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(plain), error.end


codecs.register_error("esgd_tf.plain", _in_plain_characters)
