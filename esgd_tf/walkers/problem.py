"""The data and the loss of a walkers experiment.

Targets are distributions t over the C classes: one-hot labels; p on the label and q elsewhere
("soft labels", elementary-walkers' `hinton`); or the outputs of a teacher ("distillation", Hinton,
Vinyals and Dean 2015, at temperature 1). The loss of an example is -Σ_c t_c log softmax(z)_c. The
true label is stored beside the target, in one more column, so that all count the same examples as
correct. Test targets are one-hot in any case.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf import data
from esgd_tf.runs.checkpoints import CheckpointError, load_model
from esgd_tf.runs.trained import trained
from esgd_tf.walkers.settings import Settings

__all__ = ["Problem", "cross_entropy", "error", "joined"]

Array = NDArray[np.float32]
# Examples per batch when noise is sampled or a teacher network is evaluated.
_BATCH = 1000


def joined(targets: Any, labels: Any) -> Array:
    """Return [n, C + 1]: targets [n, C] and, in the last column, labels [n]."""
    last = np.asarray(labels, np.float32)[:, None]
    return np.concatenate([np.asarray(targets, np.float32), last], axis=1)


def cross_entropy(y: Any, logits: Any) -> tf.Tensor:
    """Return the loss of each example, [n].

    Args:
        y: tensor. The targets, from `joined`.
        logits: tensor of shape [n, C]. The network's outputs.
    """
    targets = tf.cast(y[:, :-1], logits.dtype)
    return tf.nn.softmax_cross_entropy_with_logits(labels=targets, logits=logits)


def error(y: Any, logits: Any) -> tf.Tensor:
    """Return 1 for each example whose label is not the predicted one, else 0: [n]."""
    wrong = tf.not_equal(tf.argmax(logits, axis=-1), tf.cast(y[:, -1], tf.int64))
    return tf.cast(wrong, tf.float32)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Inputs and targets of both splits, in memory.

    Attributes:
        train: The training inputs and targets (x, y); y comes from `joined`.
        test: The test inputs and targets, of the same form.
        num_classes: The number C of classes.
    """

    train: tuple[Any, Array]
    test: tuple[Any, Array]
    num_classes: int

    @classmethod
    def from_labels(
        cls, train: tuple[Any, Any], test: tuple[Any, Any], num_classes: int
    ) -> Problem:
        """Make a problem from inputs and integer labels.

        Args:
            train: pair of arrays. The training inputs and their labels.
            test: pair of arrays. The test inputs and their labels.
            num_classes: int >= 1. C, the number of classes.
        """

        def with_targets(x: Any, labels: Any) -> tuple[Any, Array]:
            return x, joined(np.eye(num_classes)[labels], labels)

        return cls(with_targets(*train), with_targets(*test), num_classes)

    @classmethod
    def load(
        cls,
        settings: Settings,
        *,
        data_dir: str | Path = "tfrecords",
        raw_dir: str | Path | None = None,
        download: bool = True,
    ) -> Problem:
        """Load the images of an experiment; choose, corrupt and preprocess them.

        Args:
            settings: Settings. It names the data set, its corruption and its preprocessing.
            data_dir: str or Path. The folder of prepared records; see `esgd_tf.data.load`. Defaults
                to 'tfrecords'.
            raw_dir: str or Path. The folder with the archives. Defaults to None, which means that
                there is none.
            download: bool. Whether the data set may be downloaded. Defaults to True.

        Raises:
            DataError: The data are not available, or the corruption does not apply to them.
            CheckpointError: The teacher cannot be loaded, or does not fit the images.
        """
        images = data.load(settings.dataset, data_dir=data_dir, raw_dir=raw_dir, download=download)
        train = _chosen(len(images.train_labels), settings.n_samples_train, settings.seed, 0)
        test = _chosen(len(images.test_labels), settings.n_samples_test, settings.seed, 1)
        images = dataclasses.replace(
            images,
            train_images=images.train_images[train],
            train_labels=images.train_labels[train],
            test_images=images.test_images[test],
            test_labels=images.test_labels[test],
        )
        corruptions = data.parse_corruptions(settings.corrupt)
        images = data.corrupt_data(images, corruptions, seed=settings.seed)
        prepare = data.preprocessor(settings.preprocessing, images)
        noise = data.input_corruption(corruptions, seed=settings.seed)
        x = _prepared(images.train_images, prepare, noise)
        x_test = _prepared(images.test_images, prepare, None)
        labels, classes = images.train_labels, images.num_classes
        one_hot = np.eye(classes, dtype=np.float32)
        if settings.teacher:
            targets = _taught(settings.teacher, x, classes)
        elif settings.soft_labels:
            targets = data.soft_labels(labels, classes, settings.p, settings.q).numpy()
        else:
            targets = one_hot[labels]
        test_y = joined(one_hot[images.test_labels], images.test_labels)
        return cls((x, joined(targets, labels)), (x_test, test_y), classes)


def _chosen(available: int, wanted: int, seed: int, split: int) -> NDArray[np.int64]:
    """Return sorted indices of so many examples; all of them for 0."""
    if wanted > available:
        which = ("training", "test")[split]
        raise data.DataError(f"There are {available:,} {which} images and not {wanted:,}.")
    if wanted in (0, available):
        return np.arange(available)
    rng = np.random.default_rng([seed, split])
    return np.sort(rng.choice(available, wanted, replace=False))


def _prepared(images: Any, prepare: Any, noise: Any) -> Array:
    parts = []
    with tf.device("/CPU:0"):
        for begin in range(0, len(images), _BATCH):
            x = prepare(tf.constant(images[begin : begin + _BATCH]))
            if noise is not None:
                x = noise(x, tf.range(begin, begin + len(x), dtype=tf.int64))
            parts.append(np.asarray(x))
    return np.concatenate(parts)


def _taught(path: str, x: Array, classes: int) -> Array:
    """Return the probabilities that a saved network gives."""
    try:
        teacher = load_model(path, compile=False)
    except (ValueError, OSError, KeyError, TypeError) as reason:
        first = str(reason).strip().splitlines()[0]
        raise CheckpointError(f"The teacher {path} cannot be loaded: {first}") from None
    teacher = trained(teacher).network() if isinstance(teacher, keras.Model) else teacher
    fits = isinstance(teacher, keras.Model) and tuple(teacher.input_shape[1:]) == x.shape[1:]
    if not fits or teacher.output_shape[-1] != classes:
        raise CheckpointError(
            f"The teacher {path} maps {teacher.input_shape[1:]} to {teacher.output_shape[1:]}, and "
            f"the images are {x.shape[1:]} in {classes} classes."
        )
    logits = teacher.predict(x, batch_size=_BATCH, verbose=0)
    return np.asarray(tf.nn.softmax(tf.cast(logits, tf.float32)))
