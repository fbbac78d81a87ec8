"""Networks of float32 weights, computed in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import keras
import tensorflow as tf

from esgd_tf import _keras
from esgd_tf.landscape._patches import Functions, settings

_Structure = TypeVar("_Structure")

__all__ = ["in_float64", "is_in_float64", "wide"]


@contextlib.contextmanager
def in_float64(model: keras.Model | None) -> Iterator[None]:
    """Let layers and losses compute in float64, where they are given float64.

    Layers get another policy, and casts to fewer bits leave a float64 tensor as it is: losses,
    and networks inside networks, cast to the dtype with which they were built.

    Args:
        model: keras.Model. The model that is called inside; None if there is none.
    """
    layers = [] if model is None else _keras.layers_in(model)
    policies = [
        (layer, "dtype_policy", keras.dtype_policies.get("float64"))
        for layer in layers
        if layer.variable_dtype != "float64"
    ]
    with settings(policies), _without_narrowing():
        yield


def is_in_float64() -> bool:
    """Whether this thread is inside `in_float64`."""
    return _without_narrowing.active


def wide(structure: _Structure) -> _Structure:
    """Return a structure of tensors with the real ones among them in float64."""

    def one(leaf: tf.Tensor) -> tf.Tensor:
        if not tf.is_tensor(leaf) or not leaf.dtype.is_floating:
            return leaf
        return tf.cast(leaf, tf.float64)

    return tf.nest.map_structure(one, structure)


def _cast(
    before: Callable[..., tf.Tensor],
    x: tf.Tensor,
    dtype: tf.DType | str,
    name: str | None = None,
) -> tf.Tensor:
    if tf.is_tensor(x) and x.dtype == tf.float64 and tf.as_dtype(dtype).is_floating:
        return x
    return before(x, dtype, name)


_without_narrowing = Functions([(tf, "cast", _cast)])
