"""Random changes of training images: "none", "flip_crop", "flip_rotate".

* "flip_crop": mirror left-right with probability 1/2, pad 4 pixels on each side by reflection
  (the edge itself is not repeated), cut out the image's size at a random place. The wide ResNets'
  augmentation.
* "flip_rotate": mirror likewise, rotate about the centre by an angle uniform in +-0.05 rad with
  bilinear interpolation. This is after the TF 1 port of Entropy-SGD. That one cropped the image to
  lose the empty corners and enlarged the rest; here the corners are filled by reflection.

Each function augments a whole batch, and its random numbers are a pure function of the seed.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from esgd_tf.data.catalog import AUGMENTATIONS
from esgd_tf.data.errors import DataError

PADDING = 4
MAX_ANGLE = 0.05


def augmenter(kind: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return the function of (images [b, h, w, c], seed [2]) that augments a batch.

    Images keep their shape. "none" and "flip_crop" keep the type too, since they only move values;
    "flip_rotate" returns float32.

    Args:
        kind: str. One of `AUGMENTATIONS`.

    Raises:
        DataError: The kind is unknown.
    """
    functions = {"none": _none, "flip_crop": _flip_crop, "flip_rotate": _flip_rotate}
    if kind not in functions:
        raise DataError(
            f"There is no augmentation {kind!r}; choose one of {', '.join(AUGMENTATIONS)}."
        )
    return functions[kind]


def _none(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    del seed
    return images


def _flip_crop(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    batch, height, width, _ = images.shape
    samples = tf.random.stateless_uniform([3, batch], seed)
    # Rows and columns of the padded image, mapped back into the image: nothing is padded in memory.
    rows = _offsets(samples[1])[:, None] + tf.range(height)[None, :]
    columns = _offsets(samples[2])[:, None] + tf.range(width)[None, :]
    columns = tf.where(_coins(samples[0])[:, None], columns[:, ::-1], columns)
    flat = tf.reshape(images, [batch * height, width, -1])
    first_row = tf.range(batch)[:, None] * height
    chosen = tf.gather(flat, first_row + _reflect(rows, height))
    return tf.gather(chosen, _reflect(columns, width), axis=2, batch_dims=1)


def _flip_rotate(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    batch, height, width, _ = images.shape
    samples = tf.random.stateless_uniform([2, batch], seed)
    angles = MAX_ANGLE * (2.0 * samples[1] - 1.0)
    cosine, sine = tf.cos(angles), tf.sin(angles)
    # The op asks where an output pixel (x, y) comes from: (a0 x + a1 y + a2, b0 x + b1 y + b2).
    # A mirrored image follows the same formula with x' = width - 1 - x, so one pass serves both.
    sign = tf.where(_coins(samples[0]), -tf.ones([batch]), tf.ones([batch]))
    centre_x, centre_y = (width - 1) / 2.0, (height - 1) / 2.0
    a0, a1 = sign * cosine, -sign * sine
    zeros = tf.zeros([batch])
    transforms = tf.stack(
        [
            a0,
            a1,
            centre_x - a0 * centre_x - a1 * centre_y,
            sine,
            cosine,
            centre_y - sine * centre_x - cosine * centre_y,
            zeros,
            zeros,
        ],
        axis=1,
    )
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=transforms,
        output_shape=tf.constant([height, width]),
        fill_value=tf.constant(0.0),
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )


def _coins(samples: tf.Tensor) -> tf.Tensor:
    return samples < 0.5


def _offsets(samples: tf.Tensor) -> tf.Tensor:
    places = 2 * PADDING + 1
    return tf.cast(tf.floor(samples * places), tf.int32) - PADDING


def _reflect(index: tf.Tensor, size: int) -> tf.Tensor:
    """Map -k to k and size - 1 + k to size - 1 - k."""
    return (size - 1) - tf.abs((size - 1) - tf.abs(index))
