"""A message to a user who waits, printed by a process beside this one.

While TensorFlow joins its workers it holds Python's lock: no thread runs and no handler of Ctrl-C
is called until all of them are there, which may be never. So Ctrl-C ends the process at once, and
a child process, which runs this file as a script, prints the messages.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

__all__ = ["waiting"]

_STEP = 0.1


@contextlib.contextmanager
def waiting(seconds: float, message: str, stopped: str) -> Iterator[None]:
    """Print a message if the block takes long, or if this process is ended within it.

    Args:
        seconds: float >= 0. How long a wait may be before something is said.
        message: str. The sentence that is then written to standard error.
        stopped: str. The sentence when a signal has ended the process.
    """
    command = [sys.executable, "-I", "-S", __file__, str(seconds), message, stopped]
    with contextlib.ExitStack() as undone:
        with contextlib.suppress(ValueError):  # not in the main thread
            handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
            undone.callback(signal.signal, signal.SIGINT, handler)
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield
        finally:
            child.kill()
            child.wait()


def _wait(seconds: float, message: str, stopped: str) -> None:
    # Ctrl-C in a terminal reaches this child process too, which must outlive its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent, end = os.getppid(), time.monotonic() + seconds
    while os.getppid() == parent:
        if message and time.monotonic() > end:
            print(message, file=sys.stderr, flush=True)
            message = ""
        time.sleep(_STEP)
    print(stopped, file=sys.stderr, flush=True)


if __name__ == "__main__":
    _wait(float(sys.argv[1]), *sys.argv[2:])
