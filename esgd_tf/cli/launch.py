"""`python3 -m esgd_tf launch`: start the workers of one training, all on this machine.

Every worker is a process with its own TF_CONFIG. Their output is printed together, each line with
its worker's number in front. When one of them fails, the others are stopped.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import IO, Any

from absl import flags

from esgd_tf.cli.door import FAILED, asks_for_traceback, enter
from esgd_tf.cli.flags import define_switch, flag_help
from esgd_tf.cli.parsers import FlagError, NumberParser, WholeParser, parse_flags
from esgd_tf.cli.startup import say

__all__ = ["define_flags", "main"]

# The largest number of workers that is accepted; no machine trains with as many.
_MOST_WORKERS = 1024
_HELP = """Starts several workers of one training, all on this machine.

  python3 -m esgd_tf launch --workers 2 -- train.py --preset quickstart

What follows -- is a Python script with its flags, run once per worker. Lines of
output get their worker's number in front. When a worker fails, all are stopped
and the launcher ends with its status. Ctrl-C, SIGTERM and SIGHUP (a closed
terminal) go to all workers.
Workers go on where nobody reads their output any more (| head).

Flags:"""
# The parser (None for a switch), the default and the help of each flag.
_FLAGS: dict[str, tuple[flags.ArgumentParser | None, Any, str]] = {
    "workers": (WholeParser(1, _MOST_WORKERS), 2, "how many"),
    "gpus_per_worker": (WholeParser(1), None, "GPUs that each worker sees, the first ones to the "
                        "first worker; by default all workers see all"),
    "grace": (NumberParser(), 60.0, "seconds that workers get to save their state once they are "
              "asked to stop"),
    "debug": (None, False, "show the traceback of an error too"),
    "help": (None, False, "show this"),
}  # fmt: skip
# The number of a failed worker's last lines that are shown again.
_TAIL = 20


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: sequence of str. "launch", the flags, "--", and the script with its own flags.

    Returns:
        0 if all workers ended well; the status of the first that did not; 2 for bad flags.
    """
    own = argv[: list(argv).index("--")] if "--" in argv else argv
    return enter(
        "esgd_tf launch",
        lambda: _launch(argv),
        see="python3 -m esgd_tf launch --help",
        debug=asks_for_traceback(argv),
        outlives_output=not {"-h", "-help", "--help"} & set(own),
        stopped="Stopped before the workers began.",
    )


def _launch(argv: Sequence[str]) -> int:
    own, command = list(argv), []
    if "--" in own:
        cut = own.index("--")
        own, command = own[:cut], own[cut + 1 :]
    fv = define_flags()
    rest = parse_flags(fv, own)
    if fv.help:
        print("\n".join([_HELP, *(line for name in _FLAGS for line in flag_help(fv[name]))]))
        return 0
    if rest or not command:
        raise FlagError("what to run must follow --, such as: -- train.py --preset quickstart")
    if command[0].endswith(".py"):
        command = [sys.executable, *command]
    return _Workers(fv.workers, command, fv.gpus_per_worker, fv.grace).run()


def define_flags() -> flags.FlagValues:
    """Return the flags of the launcher, not parsed yet."""
    fv = flags.FlagValues()
    for name, (parser, default, help) in _FLAGS.items():
        if parser is None:
            define_switch(fv, name, False, help, "h" if name == "help" else None)
        else:
            flags.DEFINE(parser, name, default, help, fv, flags.ArgumentSerializer())
    return fv


class _Workers:
    """The processes, from start to end."""

    def __init__(
        self, count: int, command: Sequence[str], gpus_per_worker: int | None, grace: float
    ) -> None:
        self._count = count
        self._command = list(command)
        self._gpus = gpus_per_worker
        self._grace = grace
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        self._tails = [collections.deque[str](maxlen=_TAIL) for _ in range(count)]
        self._lock = threading.Lock()
        self._stopping_since: float | None = None
        self._told: set[int] = set()

    def run(self) -> int:
        """Start all, wait for all, and return the status."""
        # A signal may come as soon as a worker has written its first output.
        with _forwarded(self._stop):
            try:
                addresses = _free_addresses(self._count)
                for index in range(self._count):
                    self._start(index, addresses)
                # Readers start only now, since a process should have one thread when it forks.
                for index, process in enumerate(self._processes):
                    self._read(index, process)
            except OSError as error:
                self._stop(signal.SIGKILL)
                say(f"esgd_tf launch: {self._command[0]}: {error.strerror}.")
                return FAILED
            if self._stopping_since is not None:
                self._stop_the_others()  # those that were started after the signal
            failed = self._wait()
        for reader in self._readers:
            reader.join()
        return 0 if failed is None else self._report(failed)

    def _start(self, index: int, addresses: list[str]) -> None:
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        environment["TF_CONFIG"] = json.dumps(
            {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        )
        if self._gpus:
            first = index * self._gpus
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(
                str(gpu) for gpu in range(first, first + self._gpus)
            )
        process = subprocess.Popen(
            self._command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # Ctrl-C is for the launcher, which passes it on.
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - there are no threads yet
        )
        self._processes.append(process)

    def _read(self, index: int, process: subprocess.Popen[str]) -> None:
        for stream, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            reader = threading.Thread(
                target=self._copy, args=(index, stream, out, out is sys.stderr), daemon=True
            )
            reader.start()
            self._readers.append(reader)

    def _copy(self, index: int, stream: IO[str], out: IO[str], is_error: bool) -> None:
        with stream:
            for line in stream:
                if is_error:
                    self._tails[index].append(line)
                with self._lock:
                    out.write(f"[{index}] {line.rstrip()}\n")
                    out.flush()

    def _wait(self) -> int | None:
        """Wait until all have ended; return the first that failed, if any."""
        failed: int | None = None
        while any(process.poll() is None for process in self._processes):
            if failed is None:
                failed = self._first_failed()
                if failed is not None:
                    self._stop_the_others()
            since = self._stopping_since
            if since is not None and time.monotonic() - since > self._grace:
                self._stop(signal.SIGKILL)
            time.sleep(0.05)
        return self._first_failed() if failed is None else failed

    def _first_failed(self) -> int | None:
        for index, process in enumerate(self._processes):
            if process.poll():
                return index
        return None

    def _stop(self, number: int) -> None:
        """Send a signal to all that still run; the first signal starts their time limit."""
        self._signal(number, range(len(self._processes)))

    def _stop_the_others(self) -> None:
        """Ask the workers without a signal so far to end; one that is saving is not asked twice."""
        self._signal(signal.SIGTERM, set(range(len(self._processes))) - self._told)

    def _signal(self, number: int, indices: Iterable[int]) -> None:
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
        for index in indices:
            if self._processes[index].poll() is None:
                self._told.add(index)
                with contextlib.suppress(ProcessLookupError):
                    self._processes[index].send_signal(number)

    def _report(self, failed: int) -> int:
        code = self._processes[failed].returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        others = " The others were stopped." if self._count > 1 else ""
        say(f"esgd_tf launch: worker {failed} {how}.{others}")
        for line in self._tails[failed]:
            say(f"  {line.rstrip()}")
        return 128 - code if code < 0 else code


@contextlib.contextmanager
def _forwarded(stop: Any) -> Iterator[None]:
    """Pass SIGINT, SIGTERM and SIGHUP on to the workers, which have no terminal of their own."""

    def forward(number: int, frame: FrameType | None) -> None:
        stop(number)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup
        numbers.remove(signal.SIGHUP)
    previous = {n: signal.signal(n, forward) for n in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _free_addresses(count: int) -> list[str]:
    """Return addresses with free ports, which differ because all are held open at once."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def _die_with_parent() -> None:
    """Let Linux end a worker whose launcher was killed, since nothing else would."""
    with contextlib.suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
