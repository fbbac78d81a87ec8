"""Second derivatives of what TensorFlow can only differentiate once.

TensorFlow leaves some operations without a second derivative, and asked for one it says nothing and
takes zero, or raises an error that names none of the user's layers. Inside the block below, which
is around every call of a network that the landscape traces, these functions have exact derivatives
of every order:

    tf.nn.moments      holds the mean for a constant in the variance. That is right to first order,
                       where the derivative by the mean is zero, and wrong to second order: the
                       Hessian of a variance of k numbers is 2/k (I - 11'/k), not 2/k I. Behind
                       LayerNormalization, GroupNormalization and their like.
    tf.image.resize    is linear in the image, X ↦ A X, and only g ↦ A'g was given. Behind Resizing
                       and UpSampling2D.
    tf.nn.softsign     x / (1 + |x|) with the derivative 1 / (1 + |x|)².
    cuDNN              the kernels of GRU and LSTM on a GPU: the same layers in separate operations.

Values stay as they are, bit for bit, and first derivatives to rounding. Nothing of the model or of
TensorFlow is changed when the block is left; other threads see nothing of it (but the choice of
`use_cudnn`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from esgd_tf.landscape._float64 import is_in_float64
from esgd_tf.landscape._patches import Functions, settings

__all__ = ["dense", "twice_differentiable"]


@contextlib.contextmanager
def twice_differentiable(model: keras.Model) -> Iterator[None]:
    """Let what is computed inside the block have second derivatives.

    Args:
        model: The Keras model that is called there.
    """
    recurrent = [
        (layer, "use_cudnn", False)
        for layer in model._flatten_layers()
        if getattr(layer, "use_cudnn", False)
    ]
    with _exact(), settings(recurrent):
        yield


def dense(weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Return the same weights, with gradients that are tensors.

    The gradient by a table of which rows are looked up, as in Embedding, is one of
    `tf.IndexedSlices`, which cannot be differentiated again.
    """
    return [_dense(weight) for weight in weights]


@tf.custom_gradient
def _dense(weight: tf.Tensor) -> tuple[tf.Tensor, Any]:
    return tf.identity(weight), tf.convert_to_tensor


def _moments(
    before: Callable[..., Any],
    x: Any,
    axes: Any,
    shift: Any = None,
    keepdims: bool = False,
    name: str | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """See `tf.nn.moments`."""
    x = tf.convert_to_tensor(x)
    if x.dtype.size < 4:
        # Too few bits to be measured anyway.
        return before(x, axes, shift, keepdims, name)
    mean = tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(x, mean), axes, keepdims=True)
    if not keepdims:
        mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
    return mean, variance


def _softsign(before: Callable[..., Any], features: Any, name: str | None = None) -> tf.Tensor:
    """See `tf.nn.softsign`."""

    @tf.custom_gradient
    def softsign(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return before(x, name), lambda slope: slope / tf.square(1.0 + tf.abs(x))

    return softsign(tf.convert_to_tensor(features))


def _resize(
    before: Callable[..., Any],
    images: Any,
    size: Any,
    method: Any = "bilinear",
    *rest: Any,
    **kept: Any,
) -> tf.Tensor:
    """See `tf.image.resize`."""
    images = tf.convert_to_tensor(images)
    if not images.dtype.is_floating:
        return before(images, size, method, *rest, **kept)

    def resized(x: tf.Tensor) -> tf.Tensor:
        return before(x, size, method, *rest, **kept)

    if is_in_float64():
        # The operations round to float32.
        return _by_matrices(resized, images)
    if str(getattr(method, "value", method)) == "area":
        # Not even a first derivative is there.
        return _linear(resized, lambda g, x: _by_matrices(resized, x, g), images)
    return _linear(resized, _by_gradient(resized), images)


def _linear(
    function: Callable[[tf.Tensor], tf.Tensor],
    transposed: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    x: tf.Tensor,
) -> tf.Tensor:
    """Return A x, of which the derivative is A', of which the derivative is A, and so on.

    Args:
        function: x ↦ A x.
        transposed: Of (g, x): A'g. Only the shape of x is used.
        x: Where.
    """

    @tf.custom_gradient
    def forward(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return function(x), backward

    @tf.custom_gradient
    def backward(g: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return transposed(g, x), forward

    return forward(x)


def _by_gradient(function: Callable[[tf.Tensor], tf.Tensor]) -> Any:
    def transposed(g: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        x = tf.stop_gradient(x)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x, output_gradients=g)

    return transposed


def _by_matrices(
    function: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, g: tf.Tensor | None = None
) -> tf.Tensor:
    """Return A x, or A'g: a resizing multiplies rows and columns of images by a matrix each."""
    h, w = tf.shape(x)[-3], tf.shape(x)[-2]
    # Images of which one row, or one column, is 1: resized, all the columns, or rows, are alike.
    rows = function(tf.tile(tf.eye(h)[:, :, None, None], [1, 1, w, 1]))[:, :, 0, 0]
    columns = function(tf.tile(tf.eye(w)[:, None, :, None], [1, h, 1, 1]))[:, 0, :, 0]
    rows, columns = (tf.cast(t, x.dtype) for t in (rows, columns))
    if g is None:
        return tf.einsum("...hwc,hi,wj->...ijc", x, rows, columns)
    return tf.einsum("...ijc,hi,wj->...hwc", tf.cast(g, x.dtype), rows, columns)


_exact = Functions(
    [(tf.nn, "moments", _moments), (tf.nn, "softsign", _softsign), (tf.image, "resize", _resize)]
)
