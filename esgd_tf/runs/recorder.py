"""Writes the history and the checkpoints of a run."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import keras

from esgd_tf.runs.checkpoints import Progress, save_checkpoint
from esgd_tf.runs.run_folder import RunFolder
from esgd_tf.runs.trained import Trained, trained

__all__ = ["Recorder"]

# The columns of history.csv about the progress of the run, which precede those about its quality.
_FIRST = (
    "gradient_evaluations", "outer_updates", "skipped", "learning_rate", "scope", "coupling",
)  # fmt: skip


class Recorder(keras.callbacks.Callback):
    """Counts minibatches and seconds; writes history.csv and the checkpoints after each epoch.

    Args:
        folder: RunFolder. The folder to write to.
        steps_per_epoch: int >= 1. Minibatches of one pass over the data.
        progress: Progress. The progress of the run when training starts.
        every: int >= 1. Save after every so many minibatches too. Defaults to None, which saves
            after epochs only.
        keep_every: int >= 1. Keep the checkpoint of every so many epochs for good. Defaults to
            None, which keeps none.
        writes: bool. Whether this process is the one that writes. Defaults to True.
        keeps_previous: bool. Whether the last checkpoint in the folder is whole, and so worth
            keeping as the previous one. Defaults to True.
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
        self._steps = 0
        self._trained: Trained | None = None
        self._since = time.monotonic()
        epoch = progress.batches / steps_per_epoch
        self.rows = [row for row in folder.read_history() if row["epoch"] <= epoch]

    @property
    def progress(self) -> Progress:
        """The current progress of the run."""
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
        """Gradient evaluations of a step: one in every replica, two of SAM."""
        return trained(self.model).gradients_per_step

    @property
    def running(self) -> dict[str, float]:
        """Means over the epoch under way, or the last one, with the part before an interruption."""
        return dict(self._running)

    def save(self) -> None:
        """Write last.keras, and keep the former one as previous.keras.

        With several processes, all of them must call this at the same point.
        """
        self._bring_together()
        if self._writes:
            self._write_last()

    def _bring_together(self) -> None:
        """Collect the state of other processes that the saving process needs."""
        if self._trained is None:
            self._trained = trained(self.model)
        self._trained.prepare_to_save()

    def _write_last(self, same: Path | None = None) -> None:
        """Write last.keras, or link it to a checkpoint of this state that exists already."""
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
        self._steps = self._clock()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the minibatch, tell the callbacks that follow, and save if it is due."""
        if self._batches % self._steps_per_epoch == 0:
            self._counted = 0
        self._batches += 1
        before, self._steps = self._steps, self._clock()
        self._counted += self._steps - before
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
        self._bring_together()
        if not self._writes:
            return
        # last.keras is written last. A run that dies earlier goes on from the previous checkpoint,
        # and makes the line and the other checkpoints again. If last.keras existed without them,
        # they would be missing for good.
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

    def _clock(self) -> int:
        """Return the number of steps that the optimizer has counted."""
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
