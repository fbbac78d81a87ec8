"""One training run: prepare its parts, restore its last state, fit, and report."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import keras
import tensorflow as tf

from esgd_tf import data
from esgd_tf.replicas import ReplicaMonitor
from esgd_tf.runs.components import Batches
from esgd_tf.runs.diagnostics import Diagnostics
from esgd_tf.runs.errors import NotFiniteError
from esgd_tf.runs.experiment import REPLICATED
from esgd_tf.runs.guard import Guard, Interrupted
from esgd_tf.runs.initial_weights import write_initial_weights
from esgd_tf.runs.network import make_model
from esgd_tf.runs.nonfinite_guard import NotFiniteGuard
from esgd_tf.runs.progress_bar import ProgressBar
from esgd_tf.runs.recorder import Recorder
from esgd_tf.runs.report import Report
from esgd_tf.runs.restoring import Restored, restore
from esgd_tf.runs.run_folder import RunFolder, State
from esgd_tf.runs.settings import Settings
from esgd_tf.runs.trained import trained
from esgd_tf.training.precision import set_precision
from esgd_tf.training.strategies import Processes, StrategyError

__all__ = ["Places", "run_training", "segments"]


@dataclasses.dataclass(frozen=True)
class Places:
    """The paths of a run and of its data.

    Args:
        path: Path. The run folder.
        checkpoint: Path. The checkpoint to go on from. Defaults to None, which begins a new run.
        seen: tuple. The run folder's `state` when `checkpoint` was chosen. Defaults to None, which
            accepts any.
        checkpoint_dir: Path. The folder of the checkpoints. Defaults to None, the run folder.
        data_dir: str. The folder in which data sets lie prepared. Defaults to "tfrecords".
        raw_dir: str. The folder with their archives. Defaults to None, which means that there is
            none.
        download: bool. Whether a missing data set may be downloaded. Defaults to True.
    """

    path: Path
    checkpoint: Path | None = None
    seen: State | None = None
    checkpoint_dir: Path | None = None
    data_dir: str = "tfrecords"
    raw_dir: str | None = None
    download: bool = True


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """The parts of a run that are made before its checkpoint is loaded.

    Attributes:
        settings: The numbers in force.
        batches: The pipelines of training and test images.
        training_images: The number of training images.
        model: The compiled network, or its replicas.
        strategy: The strategy, which tells the devices that it is trained on.
        processes: The processes that take part.
        precision: A sentence about the precision.
    """

    settings: Settings
    batches: Batches
    training_images: int
    model: keras.Model
    strategy: tf.distribute.Strategy
    processes: Processes
    precision: str

    @property
    def is_replicated(self) -> bool:
        return self.settings.experiment.optimizer in REPLICATED

    def steps(self, evaluations: int | None) -> int | None:
        """Return how many steps make so many gradient evaluations."""
        return evaluations and max(evaluations // self.settings.experiment.gradients_per_step, 1)


def run_training(
    settings: Settings, places: Places, strategy: tf.distribute.Strategy, *, verbose: bool = False
) -> int:
    """Train, evaluate, write the run folder, and print the final table.

    Args:
        settings: Settings. The numbers in force.
        places: Places. The paths of the run and of its data.
        strategy: tf.distribute.Strategy. The strategy, which tells the devices. With several
            processes, the chief writes and prints.
        verbose: bool. Whether to print the norms of the inner loop. Defaults to False.

    Returns:
        0, the exit status.

    Raises:
        DataError: The data set is not available.
        RunFolderError: The run folder is in use or damaged.
        CheckpointError: The checkpoint cannot be loaded.
        NotFiniteError: A gradient, the training loss or the loss on the test set became NaN or
            infinite; the last checkpoint is kept.
        StrategyError: The batch cannot be split over the devices, or the processes differ.
        Interrupted: A signal stopped the run after its state was saved.
    """
    prepared = _prepare(settings, places, strategy)
    folder = RunFolder(places.path, places.checkpoint_dir, seen=places.seen)
    is_chief = prepared.processes.is_chief
    with folder if is_chief else contextlib.nullcontext():
        restored = restore(
            prepared.model, places.checkpoint, folder, prepared.batches.steps_per_epoch,
            prepared.processes, settings,
        )  # fmt: skip
        report = Report(folder, settings) if is_chief else None
        total = _total(prepared, restored)
        if restored.progress.batches >= total:
            if report is not None:
                done = restored.progress.batches / prepared.batches.steps_per_epoch
                report.nothing_to_do(done)
            return 0
        # Of replicas those of their center, which all processes bring together.
        is_new = restored.progress.batches == 0
        initial = trained(prepared.model).weights() if is_new else None
        recorder = Recorder(
            folder,
            prepared.batches.steps_per_epoch,
            restored.progress,
            every=prepared.steps(settings.run.checkpoint_steps),
            keep_every=settings.run.keep_every,
            writes=is_chief,
            keeps_previous=restored.is_intact,
        )
        if report is None:
            _fit(prepared, recorder, total)
            return 0
        report.begin(
            prepared.model, prepared.training_images, prepared.batches.steps_per_epoch,
            prepared.precision, prepared.strategy, prepared.processes,
            restored.progress.batches, total,
        )  # fmt: skip
        if initial is not None:
            write_initial_weights(folder, initial)
        shown = [
            keras.callbacks.TensorBoard(folder.tensorboard, write_graph=False),
            ProgressBar(diagnostics=verbose),
        ]
        try:
            _fit(prepared, recorder, total, *shown)
        except Interrupted as stopped:
            report.interrupted(stopped, recorder.progress.batches, places)
            raise
        except NotFiniteError as error:
            raise report.not_finite(error) from None
        report.end(recorder.rows, prepared.batches.test_images)
    return 0


def _prepare(settings: Settings, places: Places, strategy: tf.distribute.Strategy) -> _Prepared:
    """Load the data, and make and compile the network.

    Raises:
        DataError: The data set is not available.
        StrategyError: The batch cannot be split over the devices.
    """
    experiment, run = settings.experiment, settings.run
    keras.utils.set_random_seed(run.seed)
    precision = set_precision(run.mixed_precision)
    devices = strategy.num_replicas_in_sync
    if experiment.batch_size % devices and experiment.optimizer not in REPLICATED:
        raise StrategyError(
            f"--batch_size={experiment.batch_size} cannot be split evenly over the {devices} "
            f"devices: choose a multiple of {devices}."
        )
    images = data.load(
        experiment.dataset,
        data_dir=places.data_dir,
        raw_dir=places.raw_dir,
        download=places.download,
    )
    images = data.hold_out(images, experiment.validation_images)
    corruptions = data.parse_corruptions(experiment.corrupt)
    images = data.corrupt_data(images, corruptions, seed=experiment.corruption_seed)
    batches = Batches(images, experiment, run.seed, run.limit_steps)
    model = make_model(settings, images, batches, strategy)
    processes, count = Processes(strategy), len(images.train_labels)
    return _Prepared(settings, batches, count, model, strategy, processes, precision)


def _total(prepared: _Prepared, restored: Restored) -> int:
    """Return the minibatches after which the run ends."""
    total: int = prepared.settings.experiment.epochs * prepared.batches.steps_per_epoch
    limit = prepared.steps(prepared.settings.run.limit_steps)
    return total if limit is None else min(total, restored.progress.batches + limit)


def _fit(
    prepared: _Prepared, recorder: Recorder, total: int, *shown: keras.callbacks.Callback
) -> None:
    """Train until `total` minibatches; the recorder has the rows of history.csv.

    An interruption leaves the state saved, in all processes after the same step.
    """
    run, batches = prepared.settings.run, prepared.batches
    guard = Guard(prepared.processes.gather, alone=prepared.processes.count == 1)
    to_the_right_weights, options = trained(prepared.model).evaluation(batches.reestimation)
    monitor = [ReplicaMonitor(**batches.monitored(run.monitor))] if prepared.is_replicated else []
    callbacks = [
        *to_the_right_weights,
        NotFiniteGuard(run.on_nan, recorder),
        *monitor,
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
                prepared.model.fit(
                    batches.training(recorder.progress.batches),
                    initial_epoch=first_epoch,
                    epochs=epochs,
                    steps_per_epoch=epoch_steps,
                    validation_data=batches.test,
                    shuffle=False,  # the batches are already shuffled
                    verbose=1 if shown else 0,
                    callbacks=callbacks,
                    **options,
                )
    except Interrupted:
        recorder.save()
        raise


def segments(done: int, total: int, steps: int) -> Iterator[tuple[int, int, int]]:
    """Split the rest of a run into calls of `fit`: the end of an epoch, epochs, a part of one.

    Args:
        done: int >= 0. Minibatches trained on so far.
        total: int >= 0. Minibatches after which the run ends.
        steps: int >= 1. Minibatches of one pass over the data.

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
