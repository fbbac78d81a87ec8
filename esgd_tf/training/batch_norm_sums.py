"""One pass of a batch that adds up what arrives at BatchNormalization layers, and changes no more.

The network runs in inference mode, in which by Keras' contract nothing is random and nothing moves.
Only the layers asked for act as in training: each call of one takes the mean and the variance of
its own inputs, adds them to the layer's sums, and is then an inference call with those statistics.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from esgd_tf import _keras

__all__ = ["add_statistics"]


def add_statistics(
    model: keras.Model,
    layers: Sequence[Any],
    sums: Sequence[tf.Variable],
    inputs: Any,
) -> None:
    """Run a batch through a model, and add up what its BatchNormalization layers see.

    It may be traced. The layers' `call` is replaced while it runs, or is traced. The sums are added
    to in place, and so count calls in loops too (of a recurrent cell, say).

    Args:
        model: keras.Model. The model that is called with `inputs`; its variables stay as they are.
        layers: sequence of layers. The BatchNormalization layers in the model.
        sums: sequence of float64 variables of shape [3, channels]. For each layer, what gets n, n
            mean and n (variance + mean^2) added with each call, n being the number of positions.
        inputs: nested structure of tensors. A batch of inputs.

    Raises:
        ValueError: A TimeDistributed layer gets a length that is not known when it is traced.
    """
    training = _OnlyBatchNorm()
    # In such a scope Keras does not carry out assignments to its variables.
    with contextlib.ExitStack() as stack:
        stack.enter_context(keras.StatelessScope())
        for layer, own in zip(layers, sums, strict=True):
            stack.enter_context(
                _replaced_call(layer, functools.partial(_gathering, layer, own, training))
            )
        for layer in _keras.layers_in(model):
            if isinstance(layer, keras.layers.TimeDistributed):
                stack.enter_context(_replaced_call(layer, _of_known_length))
        model(inputs, training=training)


class _OnlyBatchNorm:
    """The `training` argument of the pass: false, but known from a network's own `False`.

    It is neither a bool nor a number, because a `tf.function` in the network would use the trace
    made for `False`, and would later use the trace made here for `False`.
    """

    def __bool__(self) -> bool:
        return False


tf.register_tensor_conversion_function(
    _OnlyBatchNorm, lambda value, dtype=None, name=None, as_ref=False: tf.constant(False, dtype)
)


@contextlib.contextmanager
def _replaced_call(layer: Any, replace: Callable[[Any], Any]) -> Iterator[None]:
    """Give one layer another `call` for a while: `replace` of its own."""
    own = vars(layer).get("call")
    vars(layer)["call"] = replace(layer.call)
    try:
        yield
    finally:
        if own is None:
            del vars(layer)["call"]
        else:
            vars(layer)["call"] = own


def _gathering(
    layer: Any, sums: tf.Variable, gather: _OnlyBatchNorm, call: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a layer's `call` that normalises by its inputs' statistics and adds them to `sums`."""
    signature = inspect.signature(call)

    def gathering_call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        training = bound.arguments.get("training")
        if training is not gather and not training:
            return call(*args, **kwargs)
        bound.arguments["training"] = False
        inputs = next(iter(bound.arguments.values()))
        count, mean, variance = _moments(inputs, layer.axis, bound.arguments.get("mask"))
        first, second = tf.cast(mean, tf.float64), tf.cast(variance, tf.float64)
        sums.assign_add(tf.stack([count, count * first, count * (second + first**2)]))
        # With these statistics a layer computes the same in inference as in training.
        statistics = [(layer.moving_mean, mean), (layer.moving_variance, variance)]
        with keras.StatelessScope(statistics):
            return call(*bound.args, **bound.kwargs)

    return gathering_call


def _moments(
    inputs: tf.Tensor, axis: int, mask: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return count (float64), mean and biased variance for each channel."""
    if inputs.dtype != tf.float64:
        inputs = tf.cast(inputs, tf.float32)
    axes = [a for a in range(inputs.shape.rank) if a != axis % inputs.shape.rank]
    if mask is None:
        mean, variance = tf.nn.moments(inputs, axes)
        positions = tf.size(inputs, tf.int64) // tf.size(mean, tf.int64)
        return tf.fill(tf.shape(mean), tf.cast(positions, tf.float64)), mean, variance
    # Keras' layer divides by the count + 1e-7; masked positions may hold anything, NaN too.
    counts = tf.broadcast_to(tf.cast(mask, tf.bool)[..., tf.newaxis], tf.shape(inputs))
    count = tf.math.count_nonzero(counts, axes, dtype=tf.int64)
    divisor = tf.cast(count, inputs.dtype)
    zero = tf.zeros_like(inputs)
    total = tf.reduce_sum(tf.where(counts, inputs, zero), axes, keepdims=True)
    mean = tf.math.divide_no_nan(total, tf.reshape(divisor, tf.shape(total)))
    squares = tf.reduce_sum(tf.where(counts, (inputs - mean) ** 2, zero), axes)
    variance = tf.math.divide_no_nan(squares, divisor)
    return tf.cast(count, tf.float64), tf.reshape(mean, tf.shape(variance)), variance


def _of_known_length(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return TimeDistributed's `call`, for a length that is known when it is traced."""

    def call_of_known_length(inputs: tf.Tensor, *args: Any, **kwargs: Any) -> Any:
        if inputs.shape[1] is None:
            raise ValueError(
                "A TimeDistributed layer gets a number of time steps that only shows when it runs, "
                "and gathers no BatchNormalization statistics then (in Keras neither): give it "
                "inputs of a known number of time steps."
            )
        return call(inputs, *args, **kwargs)

    return call_of_known_length
