"""One training run, from data to final table. It reads from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from esgd_tf import data
from esgd_tf.cli.settings import REPLICATED, Settings
from esgd_tf.replicas import ReplicaMonitor, Replicas
from esgd_tf.runs.callbacks import (
    Diagnostics,
    Guard,
    Interrupted,
    Recorder,
)
from esgd_tf.runs.checkpoints import DamagedCheckpointError, load_checkpoint
from esgd_tf.runs.components import Batches
from esgd_tf.runs.errors import NotFiniteError
from esgd_tf.runs.figures import plot_history
from esgd_tf.runs.final_table import final_table
from esgd_tf.runs.network import make_model
from esgd_tf.runs.nonfinite_guard import NotFiniteGuard
from esgd_tf.runs.progress import Progress, require_run
from esgd_tf.runs.progress_bar import ProgressBar
from esgd_tf.runs.run_folder import RunFolder, State
from esgd_tf.runs.run_words import go_on_with, has_had_enough, on_what, what
from esgd_tf.training import AnchorCallback
from esgd_tf.training.precision import set_precision
from esgd_tf.training.strategies import Processes, StrategyError

__all__ = ["run_training", "segments"]


def run_training(
    settings: Settings,
    path: Path,
    checkpoint: Path | None,
    strategy: tf.distribute.Strategy,
    *,
    seen: State | None = None,
    checkpoint_dir: Path | None = None,
    data_dir: str = "tfrecords",
    raw_dir: str | None = None,
    download: bool = True,
    verbose: bool = False,
) -> int:
    """Train, evaluate, write the run folder, and print the final table.

    Args:
        settings: The numbers in force.
        path: The run folder.
        checkpoint: Where to go on from, or None for a new run.
        strategy: On what to train. Of several processes, the chief writes and prints.
        seen: The run folder's `state` on which `checkpoint` rests; None for any.
        checkpoint_dir: Where the checkpoints go; None for the run folder.
        data_dir: Where data sets lie prepared.
        raw_dir: Where their archives lie.
        download: Whether a missing data set may be downloaded.
        verbose: Whether to print the norms of the inner loop.

    Returns:
        0.

    Raises:
        DataError: The data set is not to be had.
        RunFolderError: The run folder is in use or damaged.
        CheckpointError: The checkpoint cannot be loaded.
        NotFiniteError: A gradient, the loss or that on the test set became NaN or infinite; the
            last checkpoint is kept.
        StrategyError: The batch cannot be split over the devices, or the processes differ.
        Interrupted: A signal stopped the run after its state was saved.
    """
    experiment, run = settings.experiment, settings.run
    seed, limit = run["seed"], run["limit_steps"]
    keras.utils.set_random_seed(seed)
    precision = set_precision(run["mixed_precision"])
    processes = Processes(strategy)
    replicas = strategy.num_replicas_in_sync
    replicated = experiment.optimizer in REPLICATED
    if experiment.batch_size % replicas and not replicated:
        raise StrategyError(
            f"--batch_size={experiment.batch_size} cannot be split evenly over the {replicas} "
            f"devices: choose a multiple of {replicas}."
        )

    images = data.load(experiment.dataset, data_dir=data_dir, raw_dir=raw_dir, download=download)
    corruptions = data.parse_corruptions(experiment.corrupt)
    images = data.corrupt_data(images, corruptions, seed=experiment.corruption_seed)
    batches = Batches(images, experiment, seed, limit)
    model = make_model(settings, images, batches, strategy)
    folder = RunFolder(path, checkpoint_dir, seen=seen)
    with folder if processes.is_chief else contextlib.nullcontext():
        progress, intact = _restore(model, checkpoint, folder)
        _tell_of_lost_lines(folder, progress, batches.steps_per_epoch, processes)
        if not processes.agree(_fingerprint(settings, progress)):
            raise StrategyError(
                f"Worker {processes.index} of {processes.count} and the others differ in their "
                "flags or in the checkpoint they see: give all the same flags, and a run folder "
                "and checkpoint folder that all of them share."
            )
        total = experiment.epochs * batches.steps_per_epoch
        if limit is not None:
            total = min(total, progress.batches + _steps(limit, experiment.replicas))
        if progress.batches >= total:
            if processes.is_chief:
                _draw_if_missing(folder, settings)
                print(has_had_enough(path, progress.batches / batches.steps_per_epoch, experiment))
            return 0
        recorder = Recorder(
            folder,
            batches.steps_per_epoch,
            progress,
            every=_steps(run["checkpoint_steps"], experiment.replicas),
            keep_every=run["keep_every"],
            writes=processes.is_chief,
            keeps_previous=intact,
        )
        guard = Guard(processes.gather, alone=processes.count == 1)
        first = [
            NotFiniteGuard(run["on_nan"], recorder),
            *([ReplicaMonitor(**batches.monitored(run["monitor"]))] if replicated else []),
        ]
        if not processes.is_chief:
            _fit(model, batches, recorder, guard, total, first)
            return 0
        folder.write_config(settings.to_dict())
        print(f"run folder: {path}")
        print(what(model, len(images.train_labels), batches.steps_per_epoch))
        if run["mixed_precision"] != "none":
            print(f"precision: {precision}")
        if replicas > 1 and not replicated:
            print(on_what(strategy, processes, experiment.batch_size))
        if progress.batches:
            done, all_of_them = (n * experiment.replicas for n in (progress.batches, total))
            print(f"going on after {done:,} of {all_of_them:,}")
        _write_hparams(folder, settings)
        shown = [
            keras.callbacks.TensorBoard(folder.tensorboard, write_graph=False),
            ProgressBar(diagnostics=verbose),
        ]
        try:
            rows = _fit(model, batches, recorder, guard, total, first, shown)
        except Interrupted as stopped:
            print(
                f"\nStopped by {stopped} after {recorder.progress.batches * experiment.replicas:,} "
                "gradient evaluations; "
                f"saved to\n{folder.last}. Go on with:\n"
                f"  {go_on_with(folder, checkpoint_dir, data_dir, raw_dir, download=download)}"
            )
            raise
        except NotFiniteError as error:
            kept = (
                f"{folder.last} is from before" if folder.last.exists() else "nothing was saved yet"
            )
            raise NotFiniteError(
                f"{error}; {kept}. Try a smaller --lr or --langevin_lr, another "
                "--seed, or --on_nan skip."
            ) from None
        _draw(rows, folder, settings)
        print(final_table(rows, folder, batches.test_images))
    return 0


def _draw(rows: list[dict[str, float]], folder: RunFolder, settings: Settings) -> None:
    experiment = settings.experiment
    title = f"{experiment.model} on {experiment.dataset}: {experiment.optimizer}"
    if experiment.langevin_steps:
        title += f", L = {experiment.langevin_steps}"
    plot_history(rows, folder.curves, f"{title}, seed {settings.run['seed']}")


def _draw_if_missing(folder: RunFolder, settings: Settings) -> None:
    """Draw the curves that a run did not come to, which was killed after its last checkpoint."""
    rows = folder.read_history()
    if rows and (
        not folder.curves.exists() or folder.curves.stat().st_mtime < folder.history.stat().st_mtime
    ):
        _draw(rows, folder, settings)


def _steps(evaluations: Any, replicas: int) -> Any:
    """Return the steps, each a gradient evaluation in every replica, for so many; None for None."""
    return evaluations and max(evaluations // replicas, 1)


def _restore(
    model: keras.Model, checkpoint: Path | None, folder: RunFolder
) -> tuple[Progress, bool]:
    """Load the checkpoint, or the one before if that is damaged.

    Returns:
        Where the run stands, and whether its last checkpoint is whole.
    """
    if checkpoint is None:
        return Progress(), True
    try:
        return _load(model, checkpoint, folder), True
    except DamagedCheckpointError as error:
        if checkpoint != folder.last or not folder.previous.exists():
            raise
        progress = _load(model, folder.previous, folder)
        evaluations = progress.batches * (model.replicas if isinstance(model, Replicas) else 1)
        print(
            f"{error}\nGoing on from {folder.previous} instead, after {evaluations:,} "
            "gradient evaluations.",
            file=sys.stderr,
        )
        return progress, False


def _load(model: keras.Model, checkpoint: Path, folder: RunFolder) -> Progress:
    progress = load_checkpoint(model, checkpoint)
    if folder.run_id is not None:  # the chief's, which holds the lock
        require_run(progress, folder.run_id, checkpoint)
    return progress


def _tell_of_lost_lines(
    folder: RunFolder, progress: Progress, steps_per_epoch: int, processes: Processes
) -> None:
    """Say of which epochs history.csv has no line any more."""
    there = {row["epoch"] for row in folder.read_history()}
    lost = [e for e in range(1, progress.batches // steps_per_epoch + 1) if e not in there]
    if lost and processes.is_chief:
        which = f"epoch {lost[0]}" if len(lost) == 1 else f"{len(lost)} epochs, from {lost[0]} on"
        print(
            f"{folder.history} has lost the lines of {which}: table and picture will lack them.",
            file=sys.stderr,
        )


def _fit(
    model: keras.Model,
    batches: Batches,
    recorder: Recorder,
    guard: Guard,
    total: int,
    first: Sequence[keras.callbacks.Callback],
    shown: Sequence[keras.callbacks.Callback] = (),
) -> list[dict[str, float]]:
    """Train until `total` minibatches and return the rows of history.csv.

    An interruption leaves the state saved, in all processes after the same step.
    """
    replicated = isinstance(model, Replicas)
    # Replicas are evaluated and saved at their center, by themselves.
    averaged = batches.reestimation is None  # --bn_reestimate 0
    options = {"batch_norm_data": False if averaged else batches.reestimation} if replicated else {}
    anchor = [] if replicated else [AnchorCallback(batch_norm_data=batches.reestimation)]
    callbacks = [
        *anchor,
        *first,
        Diagnostics(recorder),
        *shown[:1],
        recorder,
        *shown[1:],
        guard,
    ]
    try:
        with guard:
            for first_epoch, epochs, epoch_steps in segments(
                recorder.progress.batches, total, batches.steps_per_epoch
            ):
                model.fit(
                    batches.training(recorder.progress.batches),
                    initial_epoch=first_epoch,
                    epochs=epochs,
                    steps_per_epoch=epoch_steps,
                    validation_data=batches.test,
                    shuffle=False,  # the batches come shuffled
                    verbose=1 if shown else 0,
                    callbacks=callbacks,
                    **options,
                )
    except Interrupted:
        recorder.save()
        raise
    return recorder.rows


def _fingerprint(settings: Settings, progress: Progress) -> int:
    """Return a number that differs where two processes would not compute the same."""
    numbers = settings.to_dict()
    own = ("devices", "logical_devices")  # what a process may have of its own
    numbers["run"] = {k: v for k, v in numbers["run"].items() if k not in own}
    return zlib.crc32(json.dumps([numbers, progress.batches], sort_keys=True).encode())


def segments(done: int, total: int, steps: int) -> Iterator[tuple[int, int, int]]:
    """Split what is left of a run into calls of `fit`: the rest of an epoch, epochs, a part of one.

    Args:
        done: Minibatches trained on so far.
        total: Minibatches after which the run ends.
        steps: Minibatches of one pass over the data.

    Yields:
        (initial_epoch, epochs, steps_per_epoch) for `fit`.
    """
    if done % steps and done < total:
        part = min(steps - done % steps, total - done)
        yield done // steps, done // steps + 1, part
        done += part
    if total // steps > done // steps:
        yield done // steps, total // steps, steps
        done = total // steps * steps
    if done < total:
        yield done // steps, done // steps + 1, total - done


def _write_hparams(folder: RunFolder, settings: Settings) -> None:
    """Write the hyperparameters where TensorBoard's HParams page finds them."""
    from tensorboard.plugins.hparams import api as hparams  # noqa: PLC0415 - slow to import

    values: dict[str, Any] = {"preset": settings.preset, "seed": settings.run["seed"]}
    for name, value in dataclasses.asdict(settings.experiment).items():
        values[name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    with tf.summary.create_file_writer(str(folder.tensorboard / "validation")).as_default():
        hparams.hparams(values, trial_id=folder.path.name)
