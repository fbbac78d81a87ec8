"""Sentences that a training run prints about itself."""

from __future__ import annotations

import shlex
from pathlib import Path

import keras
import tensorflow as tf

from esgd_tf.runs.experiment import Experiment
from esgd_tf.runs.run_folder import RunFolder
from esgd_tf.runs.train_command import train_command
from esgd_tf.runs.trained import trained
from esgd_tf.training.strategies import Processes

__all__ = ["go_on_with", "has_had_enough", "on_what", "what"]


def what(model: keras.Model, images: int, steps: int) -> str:
    """Return a sentence about the network and the images that it is trained on.

    Args:
        model: keras.Model. The network or its replicas.
        images: int >= 1. The number of training images.
        steps: int >= 1. Minibatches of an epoch.
    """
    seen = trained(model)
    return (
        f"{images:,} training images, {seen.number_of_weights():,} weights, "
        f"{steps * seen.gradients_per_step} gradient evaluations an epoch{seen.words(steps)}"
    )


def on_what(strategy: tf.distribute.Strategy, processes: Processes, batch_size: int) -> str:
    """Return the words about the number of devices.

    Args:
        strategy: tf.distribute.Strategy. On what the training runs.
        processes: Processes. The processes that take part.
        batch_size: int >= 1. Images of a minibatch, over all devices together.
    """
    replicas = strategy.num_replicas_in_sync
    machines = f", {processes.count} workers" if processes.count > 1 else ""
    return f"{replicas} devices{machines}: {batch_size // replicas} images each at a time"


def has_had_enough(path: Path, done: float, experiment: Experiment) -> str:
    """Return a sentence that there is nothing left to do.

    Args:
        path: Path. The run folder.
        done: float >= 0. Epochs so far.
        experiment: Experiment. The numbers in force.
    """
    asked = f"{experiment.epochs} epoch{'s' if experiment.epochs != 1 else ''}"
    had = (
        f"its {asked}" if done == experiment.epochs else f"{done:g} epochs, and -e asks for {asked}"
    )
    return f"{path} has had {had}: give more by -e to go on."


def go_on_with(
    folder: RunFolder,
    checkpoint_dir: Path | None,
    data_dir: str,
    raw_dir: str | None,
    *,
    download: bool,
) -> str:
    """Return the command that resumes a run, with the paths that its config.json lacks.

    Args:
        folder: RunFolder. The folder of the run.
        checkpoint_dir: Path. The folder of the checkpoints, as given to this command; None if it
            was not given.
        data_dir: str. The folder in which data sets lie prepared.
        raw_dir: str. The folder with their archives; None for none.
        download: bool. Whether a data set may be downloaded.
    """
    words = [*train_command(), "-rl", "--logdir", str(folder.path.parent)]
    words += ["-n", folder.path.name]
    if checkpoint_dir is not None:
        words += ["--checkpoint_dir", str(checkpoint_dir)]
    if data_dir != "tfrecords":
        words += ["--data_dir", data_dir]
    if raw_dir is not None:
        words += ["--raw_dir", raw_dir]
    if not download:
        words.append("--nodownload")
    return shlex.join(words)
