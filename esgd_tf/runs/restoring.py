"""Restore a run from its checkpoint and history, and check that all processes see the same."""

from __future__ import annotations

import dataclasses
import json
import sys
import zlib
from pathlib import Path

import keras

from esgd_tf.runs.checkpoints import load_checkpoint
from esgd_tf.runs.errors import DamagedCheckpointError
from esgd_tf.runs.progress import Progress, require_run
from esgd_tf.runs.run_folder import RunFolder
from esgd_tf.runs.settings import Settings
from esgd_tf.runs.trained import trained
from esgd_tf.training.strategies import Processes, StrategyError

__all__ = ["Restored", "restore"]


@dataclasses.dataclass(frozen=True)
class Restored:
    """The point from which a run goes on.

    Attributes:
        progress: The progress so far, which is zero for a new run.
        is_intact: Whether its last checkpoint is whole, and so worth keeping as the previous one.
    """

    progress: Progress
    is_intact: bool


def restore(
    model: keras.Model,
    checkpoint: Path | None,
    folder: RunFolder,
    steps_per_epoch: int,
    processes: Processes,
    settings: Settings,
) -> Restored:
    """Load the checkpoint of a run that goes on, in all processes.

    Args:
        model: keras.Model. The compiled model, whose state is set.
        checkpoint: Path. The checkpoint to go on from; None for a new run.
        folder: RunFolder. The folder of the run.
        steps_per_epoch: int >= 1. Minibatches of an epoch.
        processes: Processes. The processes that take part.
        settings: Settings. The numbers in force.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        StrategyError: The processes differ in their flags or in what they have loaded.
    """
    restored = _restored(model, checkpoint, folder)
    if processes.is_chief:
        _tell_of_lost_lines(folder, restored.progress, steps_per_epoch)
    if not processes.agree(_fingerprint(settings, restored.progress)):
        raise StrategyError(
            f"Worker {processes.index} of {processes.count} and the others differ in their "
            "flags or in the checkpoint they see: give all the same flags, and a run folder "
            "and checkpoint folder that all of them share."
        )
    return restored


def _restored(model: keras.Model, checkpoint: Path | None, folder: RunFolder) -> Restored:
    """Load the checkpoint, or the previous one if it is damaged."""
    if checkpoint is None:
        return Restored(Progress(), True)
    try:
        return Restored(_load(model, checkpoint, folder), True)
    except DamagedCheckpointError as error:
        if checkpoint != folder.last or not folder.previous.exists():
            raise
        progress = _load(model, folder.previous, folder)
        evaluations = progress.batches * trained(model).gradients_per_step
        print(
            f"{error}\nGoing on from {folder.previous} instead, after {evaluations:,} "
            "gradient evaluations.",
            file=sys.stderr,
        )
        return Restored(progress, False)


def _load(model: keras.Model, checkpoint: Path, folder: RunFolder) -> Progress:
    progress = load_checkpoint(model, checkpoint)
    if folder.run_id is not None:  # only the chief has one, since it holds the lock
        require_run(progress, folder.run_id, checkpoint)
    return progress


def _tell_of_lost_lines(folder: RunFolder, progress: Progress, steps_per_epoch: int) -> None:
    """Print which epochs have no line in history.csv any more."""
    there = {row["epoch"] for row in folder.read_history()}
    lost = [e for e in range(1, progress.batches // steps_per_epoch + 1) if e not in there]
    if lost:
        which = f"epoch {lost[0]}" if len(lost) == 1 else f"{len(lost)} epochs, from {lost[0]} on"
        print(
            f"{folder.history} has lost the lines of {which}: table and picture will lack them.",
            file=sys.stderr,
        )


def _fingerprint(settings: Settings, progress: Progress) -> int:
    """Return a number that differs if two processes would not compute the same."""
    numbers = settings.to_dict()
    own = ("devices", "logical_devices")  # these may differ between processes
    numbers["run"] = {k: v for k, v in numbers["run"].items() if k not in own}
    return zlib.crc32(json.dumps([numbers, progress.batches], sort_keys=True).encode())
