"""Second derivatives of operations that TensorFlow can differentiate only once.

For the second derivative of some operations TensorFlow silently takes zero, or raises an error that
names none of the user's layers. `twice_differentiable` is around every call of a network that the
landscape traces. Inside of it, these functions have exact derivatives of every order:

    tf.nn.moments      treats the mean as a constant in the variance. It is right to first order,
                       where the derivative by the mean is zero, and wrong to second order: the
                       Hessian of a variance of k numbers is 2/k (I - 11'/k), not 2/k I. Behind
                       LayerNormalization, GroupNormalization and their like.
    tf.image.resize    is linear in the image, X ↦ A X B', by rows and columns; of its gradient,
                       G ↦ A'G B, TensorFlow has none (of method "area", not even a first one).
                       Behind Resizing and UpSampling2D.
    tf.nn.softsign     x / (1 + |x|) with the derivative 1 / (1 + |x|)².
    cuDNN              the kernels of GRU and LSTM on a GPU: the same layers in separate operations.

Values stay as they are, bit for bit, and first derivatives to rounding. Nothing of the model or of
TensorFlow is changed when the block is left; other threads see nothing of it (but the choice of
`use_cudnn`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from esgd_tf import _keras
from esgd_tf.landscape._float64 import is_in_float64
from esgd_tf.landscape._patches import Functions, settings
from esgd_tf.landscape._types import Tensors

Gradient = Callable[[tf.Tensor], tf.Tensor]

__all__ = ["dense", "twice_differentiable", "without_second_derivative"]


@contextlib.contextmanager
def twice_differentiable(model: keras.Model | None = None) -> Iterator[None]:
    """Give the operations that are computed inside the block second derivatives.

    Args:
        model: keras.Model. The model that is called there. Defaults to None, which means that there
            is none.
    """
    recurrent = [
        (layer, "use_cudnn", False)
        for layer in (() if model is None else _keras.layers_in(model))
        if getattr(layer, "use_cudnn", False)
    ]
    with _exact(), settings(recurrent):
        yield


def dense(weights: Tensors) -> Tensors:
    """Return the same weights, with gradients that are tensors.

    The gradient by a table of which rows are looked up, as in Embedding, is one of
    `tf.IndexedSlices`, which cannot be differentiated again.
    """
    return [_dense(weight) for weight in weights]


@tf.custom_gradient
def _dense(weight: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    return tf.identity(weight), tf.convert_to_tensor


def _moments(
    before: Callable[..., tf.Tensor],
    x: tf.Tensor,
    axes: Sequence[int],
    shift: None = None,
    keepdims: bool = False,
    name: str | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """See `tf.nn.moments`."""
    x = tf.convert_to_tensor(x)
    if x.dtype.size < 4:
        # Half precision has too few bits for second derivatives anyway.
        return before(x, axes, shift, keepdims, name)
    mean = tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(x, mean), axes, keepdims=True)
    if not keepdims:
        mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
    return mean, variance


def _softsign(
    before: Callable[..., tf.Tensor], features: tf.Tensor, name: str | None = None
) -> tf.Tensor:
    """See `tf.nn.softsign`."""

    @tf.custom_gradient
    def softsign(x: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        return before(x, name), lambda slope: slope / tf.square(1.0 + tf.abs(x))

    return softsign(tf.convert_to_tensor(features))


def _resize(
    before: Callable[..., tf.Tensor],
    images: tf.Tensor,
    size: tf.Tensor,
    method: str = "bilinear",
    preserve_aspect_ratio: bool = False,
    antialias: bool = False,
    name: str | None = None,
) -> tf.Tensor:
    """See `tf.image.resize`."""
    images = tf.convert_to_tensor(images)
    result = before(images, size, method, preserve_aspect_ratio, antialias, name)
    if not images.dtype.is_floating:
        return result
    height, width = tf.shape(result)[-3], tf.shape(result)[-2]

    def matrix(rows: tf.Tensor, to: tf.Tensor) -> tf.Tensor:
        """Return the matrix [rows, to] that resizes along one axis."""
        column = tf.eye(rows)[:, :, None, None]
        resized = before(column, [to, 1], method, False, antialias)
        return tf.cast(resized[:, :, 0, 0], images.dtype)

    @tf.custom_gradient
    def resized(x: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        # Rows and columns of an image are multiplied by a matrix each.
        down, along = matrix(tf.shape(x)[-3], height), matrix(tf.shape(x)[-2], width)
        # TensorFlow's own operation rounds to float32.
        value = tf.einsum("...hwc,hi,wj->...ijc", x, down, along) if is_in_float64() else result

        def transposed(g: tf.Tensor) -> tf.Tensor:
            return tf.einsum("...ijc,hi,wj->...hwc", tf.cast(g, x.dtype), down, along)

        return value, transposed

    return resized(images)


def _ctc_loss(before: Callable[..., tf.Tensor], *arguments: object, **options: object) -> tf.Tensor:
    """See `tf.nn.ctc_loss`. It has no second derivative, here as in TensorFlow."""
    _thread.without.append("the CTC loss")
    return before(*arguments, **options)


@contextlib.contextmanager
def without_second_derivative() -> Iterator[list[str]]:
    """Collect the names of operations inside the block that have no second derivative."""
    _thread.without = []
    yield _thread.without


class _Thread(threading.local):
    def __init__(self) -> None:
        self.without: list[str] = []


_thread = _Thread()
_exact = Functions(
    [
        (tf.nn, "moments", _moments),
        (tf.nn, "softsign", _softsign),
        (tf.nn, "ctc_loss", _ctc_loss),
        (tf.image, "resize", _resize),
    ]
)
