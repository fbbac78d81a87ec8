"""The callbacks of `train.py`: what is logged, what is written, and what stops a run."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType
from typing import Any

import keras

from esgd_tf.training.checkpoints import Progress, save_checkpoint
from esgd_tf.training.evaluation import local_entropy_optimizer
from esgd_tf.training.run_folder import RunFolder

__all__ = ["Diagnostics", "Guard", "Interrupted", "NotFiniteError", "Recorder"]


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal asked the run to stop; carries the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class NotFiniteError(Exception):
    """The training loss has become NaN or infinite."""


class Diagnostics(keras.callbacks.Callback):
    """Adds to Keras' logs what there is to see of the algorithm; every later callback gets it.

    Each minibatch: the scope. Each epoch: gradient evaluations, outer updates, learning rate,
    scope, and the statistics of the last outer update (see `LangevinStatistics`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._scope: float | None = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Show the scope in the progress bar."""
        optimizer = local_entropy_optimizer(self.model)
        if optimizer is None or optimizer.langevin_steps == 0 or logs is None:
            return
        if self._scope is None or batch % optimizer.langevin_steps == 0:
            self._scope = float(optimizer.scope)
        logs["scope"] = self._scope

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the epoch's diagnostics to the logs."""
        if logs is not None:
            logs.update(self._measure())

    def _measure(self) -> dict[str, float]:
        optimizer = self.model.optimizer
        local_entropy = local_entropy_optimizer(self.model)
        to_numpy = keras.ops.convert_to_numpy
        evaluations = int(to_numpy(optimizer.iterations))
        measured: dict[str, float] = {
            "gradient_evaluations": evaluations,
            "outer_updates": evaluations,
            "learning_rate": float(to_numpy(optimizer.learning_rate)),
        }
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
    """

    def __init__(self, folder: RunFolder, steps_per_epoch: int, progress: Progress) -> None:
        super().__init__()
        self._folder = folder
        self._steps_per_epoch = steps_per_epoch
        self._batches = progress.batches
        self._seconds = progress.seconds
        self._resumed = progress
        self._running: dict[str, float] = dict(progress.running)
        self._since = time.monotonic()
        epoch = progress.batches / steps_per_epoch
        self.rows = [row for row in folder.read_history() if row["epoch"] <= epoch]

    @property
    def progress(self) -> Progress:
        """Where the run stands now."""
        seconds = self._seconds + time.monotonic() - self._since
        running = self._running if self._batches % self._steps_per_epoch else {}
        return Progress(self._batches, seconds, running)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self._seconds, self._since = self.progress.seconds, time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the minibatch."""
        self._batches += 1
        self._running = self._with_the_part_before(batch + 1, logs or {})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's line and the checkpoints."""
        logs = dict(logs or {})
        # Of this epoch, how much was trained since the run was started or resumed.
        trained = self._batches - max(self._resumed.batches, epoch * self._steps_per_epoch)
        logs.update(self._with_the_part_before(trained, logs))
        row: dict[str, float] = {"epoch": self._batches / self._steps_per_epoch}
        for name in ("gradient_evaluations", "outer_updates", "learning_rate", "scope"):
            if name in logs:
                row[name] = logs.pop(name)
        row |= {name: float(value) for name, value in logs.items()}
        row["seconds"] = round(self.progress.seconds, 3)
        self.rows.append(row)
        # The checkpoint before the line: a line without its checkpoint would be dropped by a
        # resume, a checkpoint without its line would leave a gap.
        save_checkpoint(self.model, self._folder.last, self.progress)
        best = max((r.get("val_accuracy", -math.inf) for r in self.rows[:-1]), default=-math.inf)
        if row.get("val_accuracy", -math.inf) > best:
            save_checkpoint(self.model, self._folder.best, self.progress)
        self._folder.write_history(self.rows)

    def _with_the_part_before(self, batches: int, logs: dict[str, Any]) -> dict[str, float]:
        """Return the epoch's running means, with the part before an interruption.

        Batches are of equal size, so means over parts of an epoch combine by their lengths.
        """
        before = self._resumed.batches % self._steps_per_epoch
        first_epoch = self._resumed.batches // self._steps_per_epoch
        if not before or (self._batches - 1) // self._steps_per_epoch != first_epoch:
            before = 0
        names = [name for name in ("loss", "accuracy") if name in logs]
        return {
            name: (before * self._resumed.running.get(name, 0.0) + batches * float(logs[name]))
            / (before + batches)
            for name in names
        }


class Guard(keras.callbacks.Callback):
    """Stops a run that cannot go on, or that a signal asks to stop, between two steps.

    Used as a context manager around `fit`, it takes SIGINT (Ctrl-C) and SIGTERM. The first signal
    lets the step under way end; a second SIGINT ends the process at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Guard:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Raise if a signal has come or the loss is not finite.

        Raises:
            NotFiniteError: The mean loss of this epoch is NaN or infinite.
            Interrupted: A signal has come.
        """
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise NotFiniteError(f"The training loss became {loss} at minibatch {batch + 1}")
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
        if self._received is not None:
            raise Interrupted(self._received)
