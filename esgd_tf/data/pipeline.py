"""Batches for training and evaluation, as tf.data pipelines.

Batch k of epoch e is a pure function of (seed, e, k): its images are places k b ... (k + 1) b - 1
of a permutation sampled from (seed, e), and its augmentation is sampled from (seed, e, k). A run
that is resumed therefore sees the batches of an uninterrupted one, and needs only e and k for it.

The images stay in memory as bytes. Each batch is gathered, augmented and preprocessed as a whole,
ahead of the training step, in parallel but in order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf.data.augmentation import augmenter
from esgd_tf.data.errors import DataError

# In the seed of an epoch's permutation, this replaces the number of a batch.
_ORDER = 2**32 - 1


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Return how many batches one pass takes, ceil(n / b).

    Args:
        num_examples: int >= 1. n, how many examples there are.
        batch_size: int in [1, n]. b, how many examples make a batch.

    Raises:
        DataError: The batch size is below 1 or above the number of examples.
    """
    if not 1 <= batch_size <= num_examples:
        raise DataError(
            f"The batch size must be from 1 to the {num_examples} images there are, "
            f"not {batch_size}."
        )
    return -(-num_examples // batch_size)


def training_batches(
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    *,
    batch_size: int,
    seed: int,
    preprocess: Callable[[tf.Tensor], tf.Tensor],
    augmentation: str = "none",
    corrupt: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    first_epoch: int = 0,
    first_batch: int = 0,
    epochs: int | None = None,
    prefetch: int | None = None,
) -> tf.data.Dataset:
    """Return the shuffled batches of epochs first_epoch, first_epoch + 1, ...

    Every batch has exactly `batch_size` images, so that the training step is traced and compiled
    once: the last batch of an epoch is filled up with the first images of the SAME epoch's
    permutation. An epoch is `steps_per_epoch` batches and holds every image at least once.

    Args:
        images: uint8 array of shape [n, h, w, c]. The images.
        labels: array of integers, of shape [n]. The classes of the images.
        batch_size: int in [1, n]. Images of a batch; under tf.distribute this is the global batch.
        seed: int of 64 bits. The seed of the order and the augmentation.
        preprocess: callable. What `preprocessor` returned, or any function of a batch that needs no
            autograph.
        augmentation: str. One of `AUGMENTATIONS`. It acts on raw pixels, before `preprocess`,
            unless `preprocess.augment_first` is False, as for whitened images. Defaults to 'none'.
        corrupt: callable. What `input_corruption` returned, or any function of (preprocessed images
            [b, h, w, c], their indices in `images`, [b]) that returns images. It is called after
            `preprocess` and before the augmentation, so the corrupted data set is augmented and an
            image keeps its noise. Defaults to None, which corrupts nothing.
        first_epoch: int >= 0. The epoch to begin with. Defaults to 0.
        first_batch: int >= 0. The batch of that epoch to begin with. Defaults to 0.
        epochs: int >= 0. Number of epochs. The first one counts even if it begins in the middle.
            Defaults to None, which runs without end.
        prefetch: int >= 0. Batches to keep ready. Defaults to None, which keeps as many as tf.data
            finds useful.

    Returns:
        A dataset of (float32 [b, h, w, c], int32 [b]).

    Raises:
        DataError: An argument is out of range, or images and labels do not fit together.
    """
    count = _check_pairs(images, labels)
    steps = steps_per_epoch(count, batch_size)
    if first_epoch < 0 or not 0 <= first_batch < steps:
        raise DataError(
            f"There is no batch {first_batch} of epoch {first_epoch}: an epoch has batches "
            f"0 ... {steps - 1}, and epochs count from 0."
        )
    if not -(2**63) <= seed < 2**63:
        raise DataError(f"The seed must fit 64 bits, and {seed} does not.")
    if epochs is not None and epochs < 0:
        raise DataError(f"The number of epochs must not be negative, and is {epochs}.")
    augment = augmenter(augmentation)
    augment_first = getattr(preprocess, "augment_first", True)
    pixels, numbers = _on_cpu(images, labels)

    # Tracing without autograph is quicker. These functions have no branch on the value of a tensor.
    @tf.autograph.experimental.do_not_convert
    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        order = _permutation(_stateless_seed(seed, epoch, _ORDER), count)
        filled = tf.concat([order, order[: steps * batch_size - count]], axis=0)
        places = tf.reshape(filled, [steps, batch_size])
        begin = tf.where(epoch == first_epoch, tf.constant(first_batch, tf.int64), 0)
        numbers_of_batches = tf.range(steps, dtype=tf.int64)
        batches = (tf.fill([steps], epoch), numbers_of_batches, places)
        return tf.data.Dataset.from_tensor_slices(batches).skip(begin)

    @tf.autograph.experimental.do_not_convert
    def batch(epoch: tf.Tensor, k: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chosen = tf.gather(pixels, indices)
        seeds = _stateless_seed(seed, epoch, k)
        if corrupt is not None:
            chosen = augment(corrupt(preprocess(chosen), indices), seeds)
        elif augment_first:
            chosen = preprocess(augment(chosen, seeds))
        else:
            chosen = augment(preprocess(chosen), seeds)
        return chosen, tf.gather(numbers, indices)

    last = np.iinfo(np.int64).max if epochs is None else first_epoch + epochs
    # With epochs = 0 there is no batch, even if first_batch is not 0.
    total = max(0, (last - first_epoch) * steps - first_batch) if epochs is not None else None
    dataset = tf.data.Dataset.range(first_epoch, last).flat_map(epoch_batches)
    dataset = dataset.apply(
        tf.data.experimental.assert_cardinality(
            tf.data.INFINITE_CARDINALITY if total is None else total
        )
    )
    return _ahead(dataset.map(batch, num_parallel_calls=tf.data.AUTOTUNE), prefetch)


def evaluation_batches(
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    *,
    batch_size: int,
    preprocess: Callable[[tf.Tensor], tf.Tensor],
    prefetch: int | None = None,
) -> tf.data.Dataset:
    """Return batches of all images in their order, once; the last one may be smaller.

    Args:
        images: uint8 array of shape [n, h, w, c]. The images.
        labels: array of integers, of shape [n]. The classes of the images.
        batch_size: int >= 1. Images of a batch.
        preprocess: callable. What `preprocessor` returned, or any function of a batch.
        prefetch: int >= 0. Batches to keep ready. Defaults to None, which keeps as many as tf.data
            finds useful.

    Returns:
        A dataset of (float32 [b, h, w, c], int32 [b]).

    Raises:
        DataError: The batch size is not positive, or there are no images.
    """
    count = _check_pairs(images, labels)
    if batch_size < 1:
        raise DataError(f"The batch size must be at least 1, not {batch_size}.")
    pixels, numbers = _on_cpu(images, labels)

    @tf.autograph.experimental.do_not_convert
    def batch(begin: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        end = tf.minimum(begin + batch_size, count)
        return preprocess(pixels[begin:end]), numbers[begin:end]

    begins = tf.data.Dataset.range(0, count, batch_size)
    return _ahead(begins.map(batch, num_parallel_calls=tf.data.AUTOTUNE), prefetch)


def _check_pairs(images: NDArray[np.uint8], labels: NDArray[np.integer]) -> int:
    if images.ndim != 4 or labels.shape != images.shape[:1] or not len(images):
        raise DataError(
            "Images must be [n, h, w, c] and labels [n] with n at least 1, not "
            f"{list(images.shape)} and {list(labels.shape)}."
        )
    return len(images)


def _on_cpu(images: NDArray[np.uint8], labels: NDArray[np.integer]) -> tuple[tf.Tensor, tf.Tensor]:
    # tf.data runs on the CPU; a GPU would otherwise hold the images and send each batch back.
    with tf.init_scope(), tf.device("/CPU:0"):
        return tf.constant(images), tf.constant(labels, tf.int32)


def _stateless_seed(seed: int, epoch: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
    """Return the [2] seed of one use: distinct for distinct (seed, epoch, number)."""
    return tf.stack([tf.constant(seed, tf.int64), epoch * 2**32 + number])


def _permutation(key: tf.Tensor, count: int) -> tf.Tensor:
    """Return a permutation of 0 ... count - 1: the order of as many random 64-bit numbers."""
    samples = tf.random.stateless_uniform([count], key, minval=None, maxval=None, dtype=tf.int64)
    return tf.argsort(samples, stable=True)


def _ahead(dataset: tf.data.Dataset, prefetch: int | None) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # Each of several workers takes its part of every global batch, since there are no files that
    # could be divided among them.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    buffer = tf.data.AUTOTUNE if prefetch is None else prefetch
    return dataset.prefetch(buffer).with_options(options)
