"""Reports of a training run beside its history: prints, plots and TensorBoard files."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from esgd_tf.runs.errors import NotFiniteError
from esgd_tf.runs.experiment import REPLICATED
from esgd_tf.runs.figures import plot_history
from esgd_tf.runs.final_table import final_table
from esgd_tf.runs.guard import Interrupted
from esgd_tf.runs.run_folder import RunFolder
from esgd_tf.runs.run_words import go_on_with, has_had_enough, on_what, what
from esgd_tf.runs.settings import Settings
from esgd_tf.training.strategies import Processes

if TYPE_CHECKING:
    from esgd_tf.runs.training_run import Places

__all__ = ["Report"]


class Report:
    """The messages, the picture and the table of one run; only one process has a report.

    Args:
        folder: RunFolder. The folder of the run.
        settings: Settings. The numbers in force.
    """

    def __init__(self, folder: RunFolder, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings

    def nothing_to_do(self, epochs: float) -> None:
        """Say that the run has had its epochs, and plot the curves if they are missing.

        Args:
            epochs: float >= 0. The epochs that it has had.
        """
        rows, curves = self._folder.read_history(), self._folder.curves
        # A run that was killed after its last checkpoint has not plotted its curves.
        if rows and (
            not curves.exists() or curves.stat().st_mtime < self._folder.history.stat().st_mtime
        ):
            self._plot(rows)
        print(has_had_enough(self._folder.path, epochs, self._settings.experiment))

    def begin(
        self,
        model: keras.Model,
        training_images: int,
        steps_per_epoch: int,
        precision: str,
        strategy: tf.distribute.Strategy,
        processes: Processes,
        done: int,
        total: int,
    ) -> None:
        """Write the settings, and print the model, the devices and the starting point.

        Args:
            model: keras.Model. The model that is trained.
            training_images: int >= 1. The number of training images.
            steps_per_epoch: int >= 1. Minibatches of an epoch.
            precision: str. A sentence about the precision.
            strategy: tf.distribute.Strategy. On what the training runs.
            processes: Processes. The processes that take part.
            done: int >= 0. Minibatches trained on so far.
            total: int >= 1. Minibatches after which the run ends.
        """
        experiment, run = self._settings.experiment, self._settings.run
        self._folder.write_config(self._settings.to_dict())
        print(f"run folder: {self._folder.path}")
        print(what(model, training_images, steps_per_epoch))
        if run.mixed_precision != "none":
            print(f"precision: {precision}")
        if strategy.num_replicas_in_sync > 1 and experiment.optimizer not in REPLICATED:
            print(on_what(strategy, processes, experiment.batch_size))
        if done:
            of_run, of_all = (n * experiment.gradients_per_step for n in (done, total))
            print(f"going on after {of_run:,} of {of_all:,}")
        self._write_hparams()

    def interrupted(self, stopped: Interrupted, done: int, places: Places) -> None:
        """Say where a signal has stopped the run, and how to go on.

        Args:
            stopped: Interrupted. The signal.
            done: int >= 0. Minibatches trained on so far.
            places: Places. The paths that the command was given.
        """
        go_on = go_on_with(
            self._folder,
            places.checkpoint_dir,
            places.data_dir,
            places.raw_dir,
            download=places.download,
        )
        print(
            f"\nStopped by {stopped} after {done * self._settings.experiment.gradients_per_step:,} "
            f"gradient evaluations; saved to\n{self._folder.last}. Go on with:\n  {go_on}"
        )

    def not_finite(self, error: NotFiniteError) -> NotFiniteError:
        """Return the error with a sentence about the kept checkpoints and what to try.

        Args:
            error: NotFiniteError. The error that ended the training.
        """
        last = self._folder.last
        kept = f"{last} is from before" if last.exists() else "nothing was saved yet"
        return NotFiniteError(
            f"{error}; {kept}. Try a smaller --lr or --langevin_lr, another --seed, or --on_nan "
            "skip."
        )

    def end(self, rows: list[dict[str, float]], test_images: int) -> None:
        """Plot the curves and print the final table.

        Args:
            rows: list of dicts. The lines of history.csv.
            test_images: int >= 1. The number of images for the errors.
        """
        self._plot(rows)
        held_out = self._settings.experiment.validation_images
        split = "validation" if held_out else "test"
        print(final_table(rows, self._folder, test_images, split))

    def _plot(self, rows: list[dict[str, float]]) -> None:
        experiment = self._settings.experiment
        title = f"{experiment.model} on {experiment.dataset}: {experiment.optimizer}"
        if experiment.langevin_steps:
            title += f", L = {experiment.langevin_steps}"
        plot_history(rows, self._folder.curves, f"{title}, seed {self._settings.run.seed}")

    def _write_hparams(self) -> None:
        """Write the hyperparameters where TensorBoard's HParams page finds them."""
        # This import is slow.
        from tensorboard.plugins.hparams import api as hparams  # noqa: PLC0415

        settings = self._settings
        values: dict[str, Any] = {"preset": settings.preset, "seed": settings.run.seed}
        for name, value in dataclasses.asdict(settings.experiment).items():
            plain = isinstance(value, bool | int | float | str)
            values[name] = value if plain else json.dumps(value)
        log = str(self._folder.tensorboard / "validation")
        with tf.summary.create_file_writer(log).as_default():
            hparams.hparams(values, trial_id=self._folder.path.name)
