"""The network of a run, with the data and the preprocessing that it was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import esgd_tf.models.batch_norm  # noqa: F401 - registers a layer that the file may name
from esgd_tf import data
from esgd_tf.data.pipeline import evaluation_batches, training_batches
from esgd_tf.data.preprocessing import Preprocessor
from esgd_tf.runs.checkpoints import load_network
from esgd_tf.runs.errors import CheckpointError
from esgd_tf.runs.progress import require_run
from esgd_tf.runs.stored_run import StoredRun
from esgd_tf.training.batch_norm import reestimate_batch_norm

__all__ = ["StoredNetwork", "load_stored_network"]


@dataclasses.dataclass(frozen=True)
class StoredNetwork:
    """A run's network, at the anchor.

    Attributes:
        model: From preprocessed images to logits; not compiled.
        images: The data set of the run.
        preprocess: The preprocessing of the run.
        batches: Gradient evaluations before the checkpoint, over all replicas.
        epochs: Effective epochs.
        reestimated: Training images from which its BatchNorm statistics were estimated now; 0 if
            they come from the checkpoint.
    """

    model: keras.Model
    images: data.ImageData
    preprocess: Preprocessor
    batches: int
    epochs: float
    reestimated: int

    @property
    def statistics(self) -> str:
        """The origin of the BatchNorm statistics, in words."""
        if self.reestimated:
            return f"estimated anew from {self.reestimated:,} training images"
        return "as stored"

    def logits(
        self,
        images: NDArray[Any],
        batch_size: int,
        corrupt: Callable[..., Any] | None = None,
    ) -> NDArray[np.float32]:
        """Return the logits of raw images.

        Args:
            images: NumPy array of shape [n, h, w, c]. Images with pixels 0 ... 255.
            batch_size: int >= 1. The number of images that go through the network at a time.
            corrupt: callable. Corrupts the preprocessed inputs; comes from
                `stored_input_corruption`. Defaults to None, which does nothing.
        """
        unused = np.zeros(len(images), np.int32)
        batches = evaluation_batches(
            images, unused, batch_size=batch_size, preprocess=self.preprocess
        )
        if corrupt is not None:
            batches = data.corrupt_in_order(batches, corrupt)
        return self.model.predict(batches, verbose=0)


def load_stored_network(run: StoredRun, checkpoint: Path, fv: Any) -> StoredNetwork:
    """Load a checkpoint of a run, with its data set and its preprocessing.

    The statistics of a checkpoint from inside an epoch belong to the Langevin weights: if the run
    estimates them anew before it evaluates, so does this, from the same images.

    Args:
        run: StoredRun. The run.
        checkpoint: Path. One of its checkpoints.
        fv: flags.FlagValues. The flags data_dir, raw_dir, download and bn_reestimate.

    Raises:
        CheckpointError: It is damaged, of another run, or the network does not fit the run's
            data set.
        DataError: The data set is not available.
    """
    model, progress = load_network(checkpoint)
    require_run(progress, run.run_id, checkpoint)
    experiment = run.experiment
    images = data.load(
        experiment["dataset"], data_dir=fv.data_dir, raw_dir=fv.raw_dir, download=fv.download
    )
    images = data.hold_out(images, experiment.get("validation_images", 0))
    corruptions, seed = stored_corruptions(experiment)
    images = data.corrupt_data(images, corruptions, seed=seed)
    expected = (None, *images.train_images.shape[1:]), (None, images.num_classes)
    found = tuple(model.input_shape), tuple(model.output_shape)
    if found != expected:
        raise CheckpointError(
            f"Checkpoint {checkpoint} is not of run {run.name}: it maps {found[0][1:]} to "
            f"{found[1][1:]}, and {experiment['dataset']} needs {expected[0][1:]} to "
            f"{expected[1][1:]}."
        )
    preprocess = data.preprocessor(experiment["preprocessing"], images)
    count = fv.bn_reestimate
    if count is None:
        count = experiment["bn_reestimate"] if run.was_interrupted_at(progress.batches) else 0
    reestimated = 0
    if count:
        reestimated = reestimate_batch_norm(
            model, reestimation_batches(run, images, preprocess, count)
        )
    return StoredNetwork(
        model=model,
        images=images,
        preprocess=preprocess,
        batches=progress.batches * experiment.get("replicas", 1),
        epochs=progress.batches / run.steps_per_epoch,
        reestimated=reestimated,
    )


def reestimation_batches(
    run: StoredRun, images: data.ImageData, preprocess: Preprocessor, count: int
) -> tf.data.Dataset:
    """Return the batches that training itself uses to estimate them, with seed + 1."""
    return training_batches(
        images.train_images,
        images.train_labels,
        batch_size=run.experiment["batch_size"],
        seed=run.run["seed"] + 1,
        epochs=1,
        preprocess=preprocess,
        augmentation=run.experiment["augmentation"],
        corrupt=stored_input_corruption(run.experiment),
    ).take(count)


def stored_input_corruption(experiment: Mapping[str, Any]) -> Callable[..., Any] | None:
    """Return the function that corrupted a run's preprocessed inputs; None for none.

    Args:
        experiment: mapping. The experiment in the run's config.json.
    """
    corruptions, seed = stored_corruptions(experiment)
    return data.input_corruption(corruptions, seed=seed)


def stored_corruptions(experiment: Mapping[str, Any]) -> tuple[tuple[data.Corruption, ...], int]:
    """Return the corruptions of a run's data set, and their seed.

    Args:
        experiment: mapping. The experiment in the run's config.json.
    """
    # The config.json of an earlier version has no corruption.
    text, seed = experiment.get("corrupt", "none"), experiment.get("corruption_seed", 0)
    return data.parse_corruptions(text), seed
