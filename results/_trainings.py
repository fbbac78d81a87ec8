"""One training of a plan, through the commands that everybody has: train.py, evaluate, landscape.

Each of them runs as a process of its own. A signal to this one is passed on to it: train.py then
saves its state, from which the next call goes on bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from results._jobs import Job
from results._shared import ROOT, history
from results._summaries import (
    MEASURES,
    known_measures,
    lacking,
    make_summary,
    measured,
    write_summary,
)

__all__ = ["Children", "FailedError", "Places", "StoppedError", "TakenError", "train"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MODULE = (sys.executable, "-m", "esgd_tf")
# Images of each split that are measured on.
_IMAGES = 2000


class FailedError(Exception):
    """A command failed; the message says which, and what it said last."""


class TakenError(Exception):
    """Another process trains this."""


class StoppedError(Exception):
    """A signal came, or the time is over.

    Args:
        reason: str. Which of them, in words.
        status: int. The exit status that follows from it.
    """

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the files of a plan are.

    Args:
        plan: str. The name of the plan.
        runs: Path. The folder of the run folders.
        summaries: Path. The folder of the summaries.
        data_dir: str. The folder in which data sets lie prepared.
        raw_dir: str. The folder with their archives; None if there is none.
    """

    plan: str
    runs: Path
    summaries: Path
    data_dir: str
    raw_dir: str | None

    @property
    def data_flags(self) -> list[str]:
        """The flags by which commands find the data."""
        raw = [] if self.raw_dir is None else [f"--raw_dir={self.raw_dir}"]
        return [f"--data_dir={self.data_dir}", *raw]


class Children:
    """Runs commands, passes signals on to them, and ends them when the time is over.

    As a context manager it takes the signals, and gives them back.

    Args:
        deadline: float. When the time is over, in the seconds of `time.time`; None for never.
        cores: int >= 1. How many threads a command may use.
    """

    def __init__(self, deadline: float | None, cores: int) -> None:
        self._deadline = deadline
        threads = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        self._environment = os.environ | dict.fromkeys(threads, str(cores))
        self._child: subprocess.Popen[bytes] | None = None
        self._signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Children:
        """Take the signals."""
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, words: Sequence[str], log: Path) -> None:
        """Run a command to its end.

        Args:
            words: sequence of str. The command line.
            log: Path. The file to which its output is added.

        Raises:
            StoppedError: A signal came, or the time is over; the command has ended.
            FailedError: The command failed.
        """
        self._check()
        with log.open("ab") as output:
            # In a session of its own: Ctrl-C would reach it twice, and the second one means "at
            # once" to train.py.
            self._child = subprocess.Popen(
                words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, env=self._environment, start_new_session=True,
            )  # fmt: skip
            if self._signal is not None:  # it came before there was anybody to pass it on to
                self._tell(self._signal)
            status = self._wait(self._child)
            self._child = None
        self._check()
        if status:
            raise FailedError(f"failed with status {status}: {_last_line(log)} (see {log})")

    def _wait(self, child: subprocess.Popen[bytes]) -> int:
        told = False
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=0.2)
            if self._is_over() and not told:
                told = True
                self._tell(signal.SIGTERM)

    def _check(self) -> None:
        if self._signal is not None:
            raise StoppedError(self._signal.name, 128 + self._signal)
        if self._is_over():
            raise StoppedError("the time is over", 0)

    def _is_over(self) -> bool:
        return self._deadline is not None and time.time() >= self._deadline

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        self._tell(self._signal)

    def _tell(self, number: signal.Signals) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)


def train(
    job: Job, places: Places, children: Children, summary: Mapping[str, Any] | None = None
) -> None:
    """Train what is missing of a training, measure its last network, and write its summary.

    Args:
        job: Job. The training.
        places: Places. Where files are.
        children: Children. Runs the commands.
        summary: mapping. A summary of the same run, to which only measures are added. Defaults to
            None; one of other flags is replaced.

    Raises:
        StoppedError: A signal came, or the time is over.
        FailedError: A command failed.
        TakenError: Another process trains this.
    """
    places.runs.mkdir(parents=True, exist_ok=True)
    folder = places.runs / job.folder
    lock = FileLock(places.runs / f".{job.folder}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise TakenError from None
    try:
        if summary is not None and summary["flags"] == dict(job.flags):
            _measure_more(job, folder, places, children, dict(summary))
        else:
            _train(job, folder, places, children)
    finally:
        lock.release()


def _train(job: Job, folder: Path, places: Places, children: Children) -> None:
    log = places.runs / f"{job.folder}.log"
    words = [sys.executable, "train.py", f"--logdir={places.runs}", f"--name={job.folder}",
             *places.data_flags]  # fmt: skip
    words += ["--restore_last"] if (folder / "config.json").exists() else job.words
    children.run(words, log)
    config = json.loads((folder / "config.json").read_text())
    rows = history(folder)
    if not rows or float(rows[-1]["epoch"]) < config["experiment"]["epochs"]:
        raise FailedError(f"train.py ended before its last epoch (see {log})")
    numbers = folder / "train.json"
    children.run(
        [*_MODULE, "evaluate", str(folder), "--split=train", f"--json={numbers}",
         *places.data_flags],
        log,
    )  # fmt: skip
    # Of candidates nothing but the error matters.
    report = {} if job.candidate else _landscape(folder, known_measures(), places, children, log)
    train_numbers = json.loads(numbers.read_text())
    write_summary(
        places.summaries, make_summary(places.plan, job, config, rows, train_numbers, report)
    )


def _measure_more(
    job: Job, folder: Path, places: Places, children: Children, summary: dict[str, Any]
) -> None:
    """Add to a summary what `landscape` did not know when it was written."""
    log = places.runs / f"{job.folder}.log"
    report = _landscape(folder, lacking(summary), places, children, log)
    kept, missing = measured(report)
    summary["measures"] = {**summary["measures"], **kept}
    summary["missing"] = {**summary["missing"], **missing}
    write_summary(places.summaries, summary)


def _landscape(
    folder: Path, names: Sequence[str], places: Places, children: Children, log: Path
) -> dict[str, Any]:
    """Return the landscape.json of a run; what failed is named in it."""
    if not names:
        return {}
    out = folder / "landscape"
    flags = [flag for name in names for flag in (f"--{name}", *MEASURES[name].flags)]
    words = [*_MODULE, "landscape", str(folder), *flags, f"--samples={_IMAGES}", f"--out={out}",
             *places.data_flags]  # fmt: skip
    report = out / "landscape.json"
    report.unlink(missing_ok=True)
    try:
        children.run(words, log)
    except FailedError:
        # A measure that fails is no reason to lose the training; without a report, all failed.
        if not report.exists():
            raise
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
