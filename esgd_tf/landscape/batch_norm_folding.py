"""Folding BatchNormalization into the layer before it.

At inference, BatchNormalization after a layer with kernel K and bias b is a factor and a shift,

    s = γ / sqrt(v + ε),    K' = s K,    b' = s (b - m) + β,

with its moving mean m and variance v, and one factor for each filter. Without it the weights say
how large they are: before it, they may be multiplied by anything.

Source: Dziugaite et al., "In search of robust measures of generalization", NeurIPS 2020, whose
measures are taken after this. (They follow Jiang et al., ICLR 2020.)
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from esgd_tf import _keras
from esgd_tf.landscape._calls import Call, FlatCopy, scaled
from esgd_tf.landscape._filters import filter_axes
from esgd_tf.landscape._homogeneous import is_linear, kernel_of, passes_inference

__all__ = ["fold_batch_norm", "has_batch_norm"]


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Return a copy of a model without BatchNormalization, that computes the same at inference.

    Each BatchNormalization becomes part of the Dense or convolutional layer before it, which gets a
    bias if it had none. Between the two there may be dropout. The copy is functional, without
    models in models, and not compiled.

    Args:
        model: keras.Model that is built. A Sequential or functional network. Of a model that
            `EntropySGD` trains the anchor is taken, and of `Replicas` the center, as in all
            measures.

    Raises:
        ValueError: A BatchNormalization does not come after such a layer alone (in a network that
            normalises first and convolves then, or adds before it normalises), a layer is used
            several times, or the model is of a class of its own.
    """
    seen = FlatCopy(model)
    for call in seen.calls:
        inside = [] if _normalises(call) else _norms_in(call.layer)
        if inside:
            raise ValueError(
                f"BatchNormalization {inside[0].name!r} cannot be folded: it stands inside "
                f"{call.layer.name!r}, a {type(call.layer).__name__}."
            )
    pairs = [(call, _before(seen, call)) for call in seen.calls if _normalises(call)]
    if not pairs:
        return seen.model
    copy = FlatCopy(
        model,
        without={id(norm.layer) for norm, _ in pairs},
        settings={
            id(call.layer): {"use_bias": True, "bias_initializer": "zeros"} for _, call in pairs
        },
    )
    for norm, call in pairs:
        # The copy of the layer that was seen first has the same weights as the given one's.
        _fold(norm.made, copy.calls_of(call.layer)[0].made)
    return copy.model


def has_batch_norm(model: keras.Model) -> bool:
    """Return whether a model has BatchNormalization, wherever it is."""
    return bool(_norms_in(model))


def _norms_in(layer: Any) -> list[Any]:
    if not isinstance(layer, keras.layers.Layer):
        return []
    inside = _keras.layers_in(layer)
    return [part for part in inside if isinstance(part, keras.layers.BatchNormalization)]


def _normalises(call: Call) -> bool:
    return isinstance(call.layer, keras.layers.BatchNormalization)


def _before(copy: FlatCopy, norm: Call) -> Call:
    """Return the call of the layer that a BatchNormalization is folded into.

    Raises:
        ValueError: There is none.
    """
    call, name = norm, norm.layer.name
    refusal = f"BatchNormalization {name!r} cannot be folded: "
    if len(copy.calls_of(norm.layer)) > 1:
        raise ValueError(f"{refusal}it is called several times.")
    while True:
        if len(call.sources) != 1 or call.sources[0] < 0:
            raise ValueError(f"{refusal}there is no Dense or convolutional layer before it.")
        call = copy.calls[call.sources[0]]
        if is_linear(call) or not passes_inference(call):
            break
        if call.is_output or len(call.consumers) > 1:
            raise ValueError(f"{refusal}what it normalises is used elsewhere too.")
    layer = call.layer
    if not is_linear(call) or isinstance(layer, keras.layers.EinsumDense):
        raise ValueError(
            f"{refusal}before it comes {layer.name!r}, which is no Dense or convolutional layer "
            "without activation."
        )
    if call.is_output or len(call.consumers) > 1:
        raise ValueError(f"{refusal}what it normalises is used elsewhere too.")
    if len(copy.calls_of(layer)) > 1:
        raise ValueError(f"{refusal}{layer.name!r} before it is called several times.")
    rank = len(call.shape)
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    if norm.layer.axis % rank != (1 if first else rank - 1):
        raise ValueError(f"{refusal}it does not normalise the channels of {layer.name!r}.")
    return call


def _fold(norm: Any, layer: Any) -> None:
    """Change a layer to what it and a BatchNormalization are together."""
    mean, variance = (np.asarray(v, np.float64) for v in (norm.moving_mean, norm.moving_variance))
    factor = 1 / np.sqrt(variance + norm.epsilon)
    if norm.gamma is not None:
        factor = factor * np.asarray(norm.gamma, np.float64)
    shift = 0.0 if norm.beta is None else np.asarray(norm.beta, np.float64)
    kernel = kernel_of(layer)
    (axes,) = filter_axes(layer, [kernel])
    shape = [size if k in axes else 1 for k, size in enumerate(kernel.shape)]
    scaled(kernel, factor.reshape(shape))
    bias = np.asarray(layer.bias, np.float64)
    layer.bias.assign((bias - mean) * factor + shift)
