"""The callbacks of `train.py`: what is logged, what is written, and what stops a run."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import tensorflow as tf

from esgd_tf.replicas.replicas import Replicas
from esgd_tf.runs.checkpoints import Progress, save_checkpoint
from esgd_tf.runs.counting import evaluations_counted, steps_taken
from esgd_tf.runs.errors import NotFiniteError
from esgd_tf.runs.run_folder import RunFolder
from esgd_tf.training.batch_norm import BatchNormAveraging
from esgd_tf.training.evaluation import local_entropy_optimizer

__all__ = ["Diagnostics", "Guard", "Interrupted", "NotFiniteError", "Recorder"]


# The columns of history.csv that say where the run stands, before those that say how good it is.
_FIRST = (
    "gradient_evaluations", "outer_updates", "skipped", "learning_rate", "scope", "coupling",
)  # fmt: skip


class Interrupted(BaseException):
    """A signal asked the run to stop; carries the signal's number.

    Not an `Exception`, as KeyboardInterrupt is none: what is traced when it comes would take it for
    an error of its own.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class Diagnostics(keras.callbacks.Callback):
    """Adds to Keras' logs what there is to see of the algorithm; every later callback gets it.

    Each minibatch: the scope, or the strength of the coupling of replicas. Each epoch: its means
    with the part of it before an interruption, gradient evaluations, outer updates, learning rate,
    scope, and the statistics of the last outer update (see `LangevinStatistics`).

    Args:
        recorder: Knows what was before.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self._scope: float | None = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Show the scope in the progress bar."""
        optimizer = local_entropy_optimizer(self.model)
        if logs is None:
            return
        if isinstance(self.model, Replicas):
            logs["coupling"] = self.model.optimizer.last_gamma
            return
        if optimizer is None or optimizer.langevin_steps == 0:
            return
        if self._scope is None or batch % optimizer.langevin_steps == 0:
            self._scope = float(optimizer.scope)
        logs["scope"] = self._scope

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the epoch's diagnostics to the logs."""
        if logs is not None:
            logs.update(self._recorder.running)
            logs.update(self._measure())

    def _measure(self) -> dict[str, float]:
        to_numpy = keras.ops.convert_to_numpy
        evaluations = evaluations_counted(self.model)
        recorder = self._recorder
        skipped = recorder.progress.batches * recorder.evaluations_a_step - evaluations
        measured: dict[str, float] = {
            "gradient_evaluations": evaluations,
            "outer_updates": evaluations,
            "learning_rate": float(to_numpy(self.model.optimizer.learning_rate)),
        }
        if skipped:
            measured["skipped"] = skipped
        if isinstance(self.model, Replicas):
            return measured | _of_replicas(self.model)
        local_entropy = local_entropy_optimizer(self.model)
        if local_entropy is not None and local_entropy.langevin_steps > 0:
            measured["outer_updates"] = int(to_numpy(local_entropy.outer_iterations))
            measured["scope"] = float(local_entropy.scope)
            # Before the first outer update there are none yet.
            if local_entropy.keeps_statistics and measured["outer_updates"] > 0:
                measured.update(local_entropy.statistics()._asdict())
        return measured


class Recorder(keras.callbacks.Callback):
    """Counts minibatches and seconds; writes history.csv and the checkpoints after each epoch.

    Args:
        folder: Where to write.
        steps_per_epoch: Minibatches of one pass over the data.
        progress: Where the run stands when training starts.
        every: Save after every so many minibatches too; None for epochs only.
        keep_every: Keep the checkpoint of every so many epochs for good; None for none.
        writes: Whether this process is the one that writes.
        keeps_previous: Whether the last checkpoint in the folder is whole, and so worth keeping
            as the previous one.
    """

    def __init__(
        self,
        folder: RunFolder,
        steps_per_epoch: int,
        progress: Progress,
        *,
        every: int | None = None,
        keep_every: int | None = None,
        writes: bool = True,
        keeps_previous: bool = True,
    ) -> None:
        super().__init__()
        self._folder = folder
        self._steps_per_epoch = steps_per_epoch
        self._every = every
        self._keep_every = keep_every
        self._writes = writes
        self._keeps_previous = keeps_previous
        self._batches = progress.batches
        self._seconds = progress.seconds
        self._resumed = progress
        self._running: dict[str, float] = dict(progress.running)
        self._counted = progress.counted
        self._evaluations = 0
        self._average_batch_norm: BatchNormAveraging | None = None
        self._since = time.monotonic()
        epoch = progress.batches / steps_per_epoch
        self.rows = [row for row in folder.read_history() if row["epoch"] <= epoch]

    @property
    def progress(self) -> Progress:
        """Where the run stands now."""
        seconds = self._seconds + time.monotonic() - self._since
        run = self._folder.run_id
        if self._batches % self._steps_per_epoch == 0:
            return Progress(self._batches, seconds, run=run)
        return Progress(self._batches, seconds, self._counted, self._running, run)

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches of one epoch."""
        return self._steps_per_epoch

    @property
    def evaluations_a_step(self) -> int:
        """Gradient evaluations of a minibatch: one in every replica."""
        return self.model.replicas if isinstance(self.model, Replicas) else 1

    @property
    def running(self) -> dict[str, float]:
        """Means over the epoch under way, or the last one, with the part before an interruption."""
        return dict(self._running)

    def save(self) -> None:
        """Write last.keras, and keep what it was as previous.keras.

        With several processes, all of them must call this at the same point.
        """
        self._settle()
        if self._writes:
            self._write_last()

    def _settle(self) -> None:
        """Bring together what the saving process needs of the others."""
        if isinstance(self.model, Replicas):
            self.model.gather()
            return
        if self._average_batch_norm is None:
            self._average_batch_norm = BatchNormAveraging(self.model)
        self._average_batch_norm()

    def _write_last(self, same: Path | None = None) -> None:
        """Write last.keras, or let it be a checkpoint of this state that is there already."""
        if self._keeps_previous:
            self._folder.keep_previous()
        self._write(self._folder.last, same)
        self._keeps_previous = True

    def _write(self, path: Path, same: Path | None) -> Path:
        if same is None:
            save_checkpoint(self.model, path, self.progress)
        else:
            self._folder.let_be(path, same)
        return path

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self._seconds, self._since = self.progress.seconds, time.monotonic()
        self._evaluations = steps_taken(self.model)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the minibatch, tell the callbacks that follow, and save where it is time."""
        if self._batches % self._steps_per_epoch == 0:
            self._counted = 0
        self._batches += 1
        before, self._evaluations = self._evaluations, steps_taken(self.model)
        self._counted += self._evaluations - before
        self._running = self._with_the_part_before(logs or {})
        if logs is not None:
            logs.update(self._running)
        within_epoch = self._batches % self._steps_per_epoch != 0
        if self._every and self._batches % self._every == 0 and within_epoch:
            self.save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's line and the checkpoints."""
        logs = dict(logs or {}) | self._running
        row: dict[str, float] = {"epoch": self._batches / self._steps_per_epoch}
        for name in _FIRST:
            if name in logs:
                row[name] = logs.pop(name)
        row |= {name: float(value) for name, value in logs.items()}
        row["seconds"] = round(self.progress.seconds, 3)
        self.rows.append(row)
        best = max((r.get("val_accuracy", -math.inf) for r in self.rows[:-1]), default=-math.inf)
        is_best = row.get("val_accuracy", -math.inf) > best
        self._settle()
        if not self._writes:
            return
        # The last checkpoint comes last: where a run dies before, it goes on from the one before
        # and makes the line and the other checkpoints again; a last checkpoint without them would
        # leave a gap for good.
        written = self._write(self._folder.best, None) if is_best else None
        epochs, part = divmod(self._batches, self._steps_per_epoch)
        if self._keep_every and not part and epochs % self._keep_every == 0:
            written = self._write(self._folder.kept_checkpoint(epochs), written)
        self._folder.write_history(self.rows)
        self._write_last(written)

    def _with_the_part_before(self, logs: dict[str, Any]) -> dict[str, float]:
        """Return the epoch's running means, with the part before an interruption.

        Batches are of equal size, so means over parts of an epoch combine by their lengths.
        """
        first_epoch = self._resumed.batches // self._steps_per_epoch
        in_first_epoch = (self._batches - 1) // self._steps_per_epoch == first_epoch
        before = self._resumed.counted if in_first_epoch else 0
        names = [name for name in ("loss", "accuracy") if name in logs]
        if not before:
            return {name: float(logs[name]) for name in names}
        now = self._counted - before
        return {
            name: (before * self._resumed.running.get(name, 0.0) + now * float(logs[name]))
            / (before + now)
            for name in names
        }


class Guard(keras.callbacks.Callback):
    """Stops a run that a signal asks to stop, between two steps.

    Used as a context manager around `fit`, it takes SIGINT (Ctrl-C), SIGTERM, which schedulers
    send before they take a machine away, and SIGHUP, which a closed terminal sends. The first
    signal lets the step under way end; a second SIGINT ends the process at once. While the first
    step is still being traced, which takes minutes for many replicas, there is none to wait for. Of
    several processes all stop after the same step, whichever got the signal.

    Args:
        gather: Returns the numbers of all processes; see `Processes`.
        alone: Whether there is one process only.
    """

    def __init__(
        self, gather: Callable[[int], list[int]] = lambda value: [value], *, alone: bool = True
    ) -> None:
        super().__init__()
        self._alone = alone
        self._has_stepped = False
        self._received: int | None = None
        self._previous: dict[int, Any] = {}
        self._gather = gather

    def __enter__(self) -> Guard:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup has a process ignore that its terminal was closed.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
        if self._alone and not self._has_stepped and tf.inside_function():
            raise Interrupted(number)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Raise if a signal has come.

        Raises:
            Interrupted: A signal has come.
        """
        self._has_stepped = True
        # After the last minibatch the epoch is better ended: its line and validation would be
        # missing for good.
        if batch + 1 < (self.params or {}).get("steps", 0):
            self._stop_if_asked()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Raise if a signal has come during validation.

        Raises:
            Interrupted: A signal has come.
        """
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        received = max(self._gather(self._received or 0))
        if received:
            raise Interrupted(received)


def _of_replicas(model: Replicas) -> dict[str, float]:
    """Return the diagnostics of replicas with an inner loop; updates are those of all of them."""
    first = model.optimizer.replicas[0]
    if first.langevin_steps == 0:
        return {}
    updates = sum(int(o.outer_iterations.numpy()) for o in model.optimizer.replicas)
    return {"outer_updates": updates, "scope": float(first.scope)}
