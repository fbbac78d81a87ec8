"""Weights as a list of tensors, and as one vector."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from esgd_tf.landscape._types import Network, Tensors, Vector, Weights

__all__ = ["Layout", "as_tensors", "value_of"]


class Layout:
    """The shapes of the weights of a function, and their order in one vector.

    Attributes:
        start: The weights to begin with, a list of tensors.
        shapes: The shape of each.
        dtypes: The dtype of each.
        size: n, the number of all numbers in them.
    """

    start: Tensors
    shapes: list[tuple[int, ...]]
    dtypes: list[tf.DType]
    size: int

    def weights(self, weights: Weights | ArrayLike | None = None) -> Tensors:
        """Return weights as a list of tensors of the model's shapes and dtypes.

        Args:
            weights: list of arrays, or a flat vector of `size` numbers. The weights. Defaults to
                None, which takes those that the model had when this objective was made.
        """
        if weights is None:
            return self.start
        if isinstance(weights, list | tuple):
            shapes = [tuple(np.shape(value_of(w))) for w in weights]
            if shapes != self.shapes:
                raise ValueError(
                    f"The weights have shapes {shapes}, and the network needs {self.shapes}."
                )
            return [
                tf.cast(value_of(w), dtype)
                if tf.is_tensor(value_of(w))
                else tf.constant(np.asarray(w), dtype)
                for w, dtype in zip(weights, self.dtypes, strict=True)
            ]
        return self.unflatten(np.asarray(weights))

    def flatten(self, tensors: Sequence[tf.Tensor | ArrayLike]) -> Vector:
        """Return a list of arrays as one float64 vector [size]."""
        return np.concatenate([np.asarray(t, np.float64).ravel() for t in tensors] or [np.zeros(0)])

    def unflatten(self, vector: ArrayLike) -> Tensors:
        """Return a vector [size] as a list of tensors."""
        vector = np.asarray(vector)
        if vector.shape != (self.size,):
            raise ValueError(
                f"The vector has shape {vector.shape}, and there are {self.size:,} weights."
            )
        tensors, at = [], 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            count = int(np.prod(shape))
            tensors.append(tf.constant(vector[at : at + count].reshape(shape), dtype))
            at += count
        return tensors


def value_of(variable: keras.Variable | tf.Tensor | ArrayLike) -> tf.Tensor | ArrayLike:
    """Return the tensor that a Keras variable holds; return anything else as it is."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def as_tensors(weights: Network) -> Tensors:
    """Return a list of weights as tensors, or refuse what is no list of weights."""
    if not isinstance(weights, list | tuple) or not weights:
        raise ValueError(
            f"`model` must be a Keras model or a list of weights; got {type(weights).__name__}."
        )
    return [tf.convert_to_tensor(value_of(w)) for w in weights]
