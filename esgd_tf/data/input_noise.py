"""Noise on preprocessed training inputs, which a network can memorise: see `corruption`.

With x_i the preprocessed image i and z_i N(0, I) of its shape, a function of (seed, i) alone:

* "all_noise": x_i becomes z_i;
* "some_noise:k": x_i becomes z_i on k rows and k columns, the same ones in all images;
* "gaussian:s": x_i becomes x_i + s z_i.

The noise is sampled batch by batch and never stored: for CIFAR-10 it would take 600 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf.data.corruption import (
    CORRUPTIONS,
    TRAIN,
    Corruption,
    check_lines,
    check_seed,
    check_sequence,
    generator,
)

_Batch = tuple[tf.Tensor, tf.Tensor]


def input_corruption(
    corruptions: Sequence[Corruption], *, seed: int = 0
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None:
    """Return the function that puts noise on preprocessed training inputs.

    Pass it to `training_batches(corrupt=...)`, and to `corrupt_in_order` where the training error
    is measured. The noise of an image is a function of (seed, its index) alone.

    Args:
        corruptions: sequence of Corruption. What to do, in this order. The kinds that are not noise
            are ignored here.
        seed: int of 64 bits. Each kind of noise has its own random numbers under it, which differ
            from those of `training_batches` under the same seed. Defaults to 0.

    Returns:
        A function of (images float32 [b, h, w, c], their indices in the training set, integers
            [b]) that returns images of that shape. None if no kind asks for noise.

    Raises:
        DataError: The corruptions or the seed are refused, as by `corrupt_data`. Images with fewer
            than k rows or columns are refused when the function is called.

    Note:
        Call the function in tf.data or otherwise on the CPU: another device, or XLA, may round the
        same samples in another way. Sampling takes about twice as long as it would for a whole
        batch under one seed: 0.2 ms on one core for an image of 32 x 32 x 3.
    """
    check_sequence(corruptions)
    check_seed(seed)
    noises = [c for c in corruptions if c.is_noise]
    if not noises:
        return None

    def corrupt(images: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
        for corruption in noises:
            images = _with_noise(corruption, seed, images, indices)
        return images

    return corrupt


def corrupt_in_order(
    batches: tf.data.Dataset, corrupt: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
) -> tf.data.Dataset:
    """Corrupt batches that hold training images 0, 1, 2, ..., as `evaluation_batches` makes them.

    Args:
        batches: tf.data.Dataset of (images [b, h, w, c], labels [b]). Preprocessed batches, which
            begin with image 0.
        corrupt: callable. The noise, from `input_corruption`.

    Returns:
        The same batches with the inputs that `training_batches(corrupt=...)` gives.
    """

    @tf.autograph.experimental.do_not_convert
    def one(begin: tf.Tensor, batch: _Batch) -> tuple[tf.Tensor, _Batch]:
        images, labels = batch
        end = begin + tf.shape(images, out_type=tf.int64)[0]
        return end, (corrupt(images, tf.range(begin, end)), labels)

    return batches.scan(tf.constant(0, tf.int64), one)


def _with_noise(
    corruption: Corruption, seed: int, images: tf.Tensor, indices: tf.Tensor
) -> tf.Tensor:
    shape = tuple(images.shape[1:])
    # Negative numbers, since those of `training_batches` are not: no sample is used twice.
    places = -1 - CORRUPTIONS.index(corruption.kind) * 2**32 - tf.cast(indices, tf.int64)
    keys = tf.stack([tf.fill(tf.shape(places), tf.constant(seed, tf.int64)), places], axis=1)
    noise = tf.ensure_shape(_normals(keys, shape), images.shape)
    if corruption.kind == "all_noise":
        return noise
    if corruption.kind == "gaussian":
        return images + corruption.amount * noise
    return tf.where(_lines(int(corruption.amount), seed, shape[:2]), noise, images)


# A graph, because eagerly `map_fn` is a loop in Python. It samples one image at a time, because
# tf.random takes one key a call.
@tf.function(autograph=False, reduce_retracing=True)
def _normals(keys: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    return tf.map_fn(
        lambda key: tf.random.stateless_normal(shape, key, alg="philox"),
        keys,
        fn_output_signature=tf.float32,
    )


def _lines(count: int, seed: int, shape: Sequence[int]) -> NDArray[np.bool_]:
    """Return [h, w, 1], true on `count` rows and columns, which include those for a lower count."""
    check_lines(count, shape)
    rng = generator(seed, "some_noise", TRAIN)
    chosen = np.zeros((*shape, 1), bool)
    chosen[rng.permutation(shape[0])[:count]] = True
    chosen[:, rng.permutation(shape[1])[:count]] = True
    return chosen
