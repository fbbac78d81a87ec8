"""From pixels to the inputs of the network: "scale", "meanstd", "gcn_zca".

All statistics are fitted to the training images alone.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf.data import zca
from esgd_tf.data.catalog import PREPROCESSINGS
from esgd_tf.data.errors import DataError
from esgd_tf.data.sources import ImageData


class Preprocessor(Protocol):
    """A function of a batch that also knows whether augmentation comes before it.

    Attributes:
        augment_first: Whether augmentation comes first and so acts on raw pixels. For a callable
            without this attribute it does.
    """

    @property
    def augment_first(self) -> bool:
        """Whether augmentation comes first and so acts on raw pixels."""

    def __call__(self, images: tf.Tensor | NDArray[np.generic]) -> tf.Tensor:
        """Map a batch [b, h, w, c] of pixels 0 ... 255, uint8 or float, to float32."""


# Compared by identity: tf.function needs a hashable callable, and arrays have no hash.
@dataclasses.dataclass(frozen=True, eq=False)
class _Affine:
    """(x - shift) * factor, per channel; augmentation commutes with it up to rounding."""

    shift: NDArray[np.float32] | np.float32
    factor: NDArray[np.float32] | np.float32
    augment_first: bool = True

    def __call__(self, images: tf.Tensor | NDArray[np.generic]) -> tf.Tensor:
        return (tf.cast(images, tf.float32) - self.shift) * self.factor


class _GcnZca:
    """The whitening of `zca`. It mixes all pixels of an image, so it comes before augmentation."""

    augment_first = False

    def __init__(self, whitening: zca.Whitening) -> None:
        # On the CPU, because tf.data runs there. As tensors, so that a traced function refers to
        # the matrix (38 MB for CIFAR) and does not copy it into its graph.
        with tf.init_scope(), tf.device("/CPU:0"):
            self._mean = tf.constant(whitening.mean)
            self._matrix = tf.constant(whitening.matrix)

    def __call__(self, images: tf.Tensor | NDArray[np.generic]) -> tf.Tensor:
        shape = tf.shape(images)
        flat = tf.reshape(tf.cast(images, tf.float32), [shape[0], self._mean.shape[0]])
        flat -= tf.reduce_mean(flat, axis=1, keepdims=True)
        variance = tf.reduce_sum(tf.square(flat), axis=1, keepdims=True)
        deviation = tf.sqrt(variance / tf.cast(self._mean.shape[0] - 1, tf.float32))
        flat /= tf.where(deviation < 1e-8, tf.ones_like(deviation), deviation)
        white = tf.reshape(tf.matmul(flat - self._mean, self._matrix), shape)
        white.set_shape(images.shape)
        return white


def preprocessor(kind: str, data: ImageData) -> Preprocessor:
    """Return the preprocessing of a data set.

    * "scale": pixels / 255, in [0, 1].
    * "meanstd": minus the mean, over the standard deviation, of each channel over all training
      images (for CIFAR-10: 125.3/123.0/113.9 and 63.0/62.1/66.7, the wide ResNets' numbers).
    * "gcn_zca": per-image contrast normalisation and ZCA whitening, see `esgd_tf.data.zca`.
      It is fitted once and stored beside the records, and costs a matrix product per batch.

    "scale" and "meanstd" act per channel, so augmenting raw bytes before them gives the same result
    and is cheaper. The whitening mixes all pixels of an image and is fitted to images that are not
    augmented, so it comes BEFORE augmentation, as in the original, whose loader read whitened
    images from disk. A flipped or shifted input is then a flipped or shifted whitened image.

    Args:
        kind: str. One of `PREPROCESSINGS`.
        data: ImageData. The data set. Only its training images are used.

    Returns:
        A function of batches, for tf.data and tf.function.

    Raises:
        DataError: The kind is unknown.
    """
    if kind == "scale":
        return _Affine(np.float32(0.0), np.float32(1.0 / 255.0))
    if kind == "meanstd":
        mean, deviation = channel_statistics(data.train_images)
        return _Affine(
            mean.astype(np.float32),
            (1.0 / np.where(deviation > 0, deviation, 1.0)).astype(np.float32),
        )
    if kind == "gcn_zca":
        return _GcnZca(zca.fitted(data.train_images, data.folder))
    raise DataError(
        f"There is no preprocessing {kind!r}; choose one of {', '.join(PREPROCESSINGS)}."
    )


def as_affine(
    preprocess: Preprocessor,
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return the shift and the factor of "scale" and "meanstd", which map x to (x - shift) factor.

    Args:
        preprocess: Preprocessor. The preprocessing, from `preprocessor`.

    Returns:
        Two arrays, scalar or [c]. None if the preprocessing is no such map.
    """
    if isinstance(preprocess, _Affine):
        return np.asarray(preprocess.shift), np.asarray(preprocess.factor)
    return None


def as_whitening(preprocess: Preprocessor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean [d] and the matrix [d, d] of "gcn_zca", see `esgd_tf.data.zca`.

    Args:
        preprocess: Preprocessor. The preprocessing, from `preprocessor`.

    Raises:
        TypeError: The preprocessing is not "gcn_zca".
    """
    if not isinstance(preprocess, _GcnZca):
        raise TypeError(f"{preprocess!r} is no whitening.")
    return preprocess._mean.numpy(), preprocess._matrix.numpy()


def channel_statistics(
    images: NDArray[np.uint8],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each channel, over all images and pixels.

    Args:
        images: uint8 array of shape [n, h, w, c]. The images.

    Returns:
        Two float64 arrays [c], in pixel units (0 ... 255).
    """
    # The counts of the 256 values determine both exactly, and no image is copied as floats.
    counts = np.stack(
        [np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])]
    )
    values = np.arange(256, dtype=np.float64)
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / total
    return mean, np.sqrt(variance)
