"""Which layer of a network, or which loss, has no second derivative."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.landscape._batch_loss import BatchLoss
from esgd_tf.landscape._check import Trial, mistake, moved, quotient
from esgd_tf.landscape._losses import FunctionLoss
from esgd_tf.landscape._model_loss import ModelLoss
from esgd_tf.landscape._patches import Functions
from esgd_tf.landscape._types import Batch, Held, Nested, Tensors

__all__ = ["culprit", "second_derivative_of"]

_Structure = TypeVar("_Structure")
# A layer, and the positional and named arguments that it was called with.
_Call = tuple[keras.Layer, tuple[Nested, ...], dict[str, Nested]]

_thread = threading.local()
# A layer that rounds to float32 inside, whatever its inputs are, shows its fault with larger steps
# only. It is known by then that something is wrong, so the worst that a kink between the points can
# do is to name the wrong layer.
_STEPS = ((1e-7, 1e-9), (1e-2, 1e-3))


def culprit(f: BatchLoss, weights: Tensors, held: Held, batch: Batch, double: bool) -> str:
    """Return the name of the layer or loss that cannot be differentiated twice.

    The name is a part of a sentence. Each layer is tried by itself, with the inputs that it has in
    the network. Of several that fail, the one whose call ends first is named: the first in the
    order of computation, and the inner one where a layer is part of another.

    Args:
        f: BatchLoss. The function that is differentiated.
        weights: list of tensors. The weights at which it is tried.
        held: pair of lists of tensors. What the loss is not a function of.
        batch: tuple (x, y, sample_weight). The examples.
        double: bool. Whether all these are float64, inside `in_float64`.
    """
    loss = f.loss
    if isinstance(loss, FunctionLoss):
        return "the loss function"
    complete, rest = f.complete(weights, held), held[1]
    layers = [
        (call[0], *_of_a_layer(loss, complete, rest, call))
        for call in _calls(loss, complete, rest, batch[0])
    ]
    with loss.at(complete, rest) as model:
        predictions = loss.call(model, batch[0])
    outputs, put_back = _real_parts(predictions)

    def of_outputs(parts: Tensors) -> tf.Tensor:
        return loss.of_examples(batch[0], batch[1], put_back(parts), batch[2])

    for steps in _STEPS if double else _STEPS[:1]:
        for layer, function, at in layers:
            if at and _is_wrong(function, at, double, steps):
                return f"the layer {layer.name!r} ({type(layer).__name__})"
        if outputs and _is_wrong(of_outputs, outputs, double, steps):
            return "the loss"
    return "the network"


def second_derivative_of(function: Callable[[Tensors], tf.Tensor]) -> Trial:
    """Return the trial of a scalar function: its gradient, Hessian products and their quotients."""

    def gradient(at: Tensors) -> Tensors:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(at)
            value = function(at)
        return tape.gradient(value, at, unconnected_gradients="zero")

    def product(at: Tensors, columns: Tensors) -> Tensors:
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(at)
            slopes = gradient(at)
        products = [
            tape.gradient(slopes, at, [c[k] for c in columns], unconnected_gradients="zero")
            for k in range(2)
        ]
        return [tf.stack(pair) for pair in zip(*products, strict=True)]

    def difference(at: Tensors, direction: Tensors, step: float) -> Tensors:
        return quotient(lambda h: gradient(moved(at, direction, h)), step)

    return Trial(gradient, product, difference)


def _is_wrong(
    function: Callable[[Tensors], tf.Tensor], at: Tensors, double: bool, steps: tuple[float, float]
) -> bool:
    trial = second_derivative_of(function)
    try:
        return mistake(trial, at, double=double, steps=steps) is not None
    except Exception:  # whatever TensorFlow raises where there is no derivative
        return True


# ---- layers -------------------------------------------------------------------------------------


def _note(
    before: Callable[..., Nested], layer: keras.Layer, *arguments: Nested, **options: Nested
) -> Nested:
    result = before(layer, *arguments, **options)
    _thread.calls.append((layer, arguments, options))
    return result


_noting = Functions([(keras.layers.Layer, "__call__", _note)])


def _calls(loss: ModelLoss, complete: Tensors, rest: Tensors, x: Nested) -> list[_Call]:
    """Return the first call of each layer in the network, in the order in which they end."""
    _thread.calls = []
    try:
        with loss.at(complete, rest) as model, _noting():
            loss.call(model, x)
        calls: dict[int, _Call] = {}
        for layer, arguments, options in _thread.calls:
            if layer is not model:
                calls.setdefault(id(layer), (layer, arguments, options))
        return list(calls.values())
    finally:
        del _thread.calls


def _of_a_layer(
    loss: ModelLoss, complete: Tensors, rest: Tensors, call: _Call
) -> tuple[Callable[[Tensors], tf.Tensor], Tensors]:
    """Return c·y + 1/2 y·y as a function of a layer's inputs and weights, and their values."""
    layer, arguments, options = call
    inputs, put_back = _real_parts((arguments, options))
    own = {id(variable) for variable in layer.trainable_variables}
    places = [i for i, v in enumerate(loss.model.trainable_variables) if id(v) in own]

    def function(at: Tensors) -> tf.Tensor:
        values = dict(zip(places, at[len(inputs) :], strict=True))
        everything = [values.get(i, value) for i, value in enumerate(complete)]
        arguments, options = put_back(at[: len(inputs)])
        rng = np.random.default_rng(0)
        total = tf.zeros([], everything[0].dtype)
        with loss.at(everything, rest):
            for y in _real_parts(layer(*arguments, **options))[0]:
                c = tf.constant(rng.standard_normal(y.shape), y.dtype)
                total += tf.cast(tf.reduce_sum(c * y + 0.5 * tf.square(y)), total.dtype)
        return total

    return function, [*inputs, *(complete[i] for i in places)]


def _real_parts(structure: _Structure) -> tuple[Tensors, Callable[[Tensors], _Structure]]:
    """Return the real tensors of a structure, and a function that puts others in their places."""
    leaves = keras.tree.flatten(structure)
    places = [
        i for i, leaf in enumerate(leaves) if isinstance(leaf, tf.Tensor) and leaf.dtype.is_floating
    ]

    def put_back(parts: Tensors) -> _Structure:
        changed = list(leaves)
        for i, part in zip(places, parts, strict=True):
            changed[i] = tf.identity(part)
            mask = getattr(leaves[i], "_keras_mask", None)
            if mask is not None:
                changed[i]._keras_mask = mask
        return keras.tree.pack_sequence_as(structure, changed)

    return [leaves[i] for i in places], put_back
