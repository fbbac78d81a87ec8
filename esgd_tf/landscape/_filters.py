"""The axes of a weight along which its slices are filters.

A filter is a part of a weight that computes one output of a layer: all its numbers that feed one
unit, or one channel. Most of Keras' kernels have their outputs along the last axis; these do not:

    depthwise kernels (also of separable convolutions)   [..., channel, multiplier]: both axes
    transposed convolutions                              [..., output, input]: the last but one
    EinsumDense, and with it the heads of attention      the axes that its equation keeps

A filter of a recurrent kernel is one gate of one unit, that of an embedding one feature of all
tokens: both are columns, along the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from esgd_tf import _keras

__all__ = ["filter_axes", "filter_norms"]

_DEPTHWISE = (
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


def filter_axes(model: keras.Model, variables: Sequence[keras.Variable]) -> list[tuple[int, ...]]:
    """Return the axes of the filters of each variable.

    Args:
        model: keras.Model. The model that the variables belong to.
        variables: sequence of keras.Variable. The weights. Of one that no layer of Keras knows, it
            is the last axis.
    """
    known: dict[int, tuple[int, ...]] = {}
    for layer in _keras.layers_in(model):
        if isinstance(layer, _DEPTHWISE):
            # The depthwise part of a separable convolution has a name of its own.
            kernel = getattr(layer, "depthwise_kernel", None)
            kernel = layer.kernel if kernel is None else kernel
            known[id(kernel)] = (len(kernel.shape) - 2, len(kernel.shape) - 1)
        elif isinstance(layer, _TRANSPOSED):
            known[id(layer.kernel)] = (len(layer.kernel.shape) - 2,)
        elif isinstance(layer, keras.layers.EinsumDense):
            inputs, outputs = layer.equation.replace(" ", "").split("->")
            letters = inputs.split(",")[1]
            known[id(layer.kernel)] = tuple(i for i, x in enumerate(letters) if x in outputs)
    return [known.get(id(v), (len(v.shape) - 1,)) for v in variables]


def filter_norms(
    vector: NDArray[np.float64],
    shapes: Sequence[tuple[int, ...]],
    axes: Sequence[tuple[int, ...]] | None,
) -> NDArray[np.float64]:
    """Return for each weight the norm of the filter that it belongs to, a vector [n].

    A weight of a bias, or of another vector, is a filter of its own.

    Args:
        vector: array of shape [n]. All weights.
        shapes: sequence of tuples of ints. The shape of each of the arrays that the vector is of.
        axes: sequence of tuples of ints. The axes of the filters of each; None for the last one.
    """
    found, at = [], 0
    for number, shape in enumerate(shapes):
        size = int(np.prod(shape))
        weights = vector[at : at + size].reshape(shape)
        kept = (len(shape) - 1,) if axes is None else axes[number]
        within = tuple(k for k in range(len(shape)) if k not in kept)
        norms = np.sqrt(np.square(weights).sum(within, keepdims=True))
        found.append(np.broadcast_to(norms, shape).ravel())
        at += size
    return np.concatenate(found)
