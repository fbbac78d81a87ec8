"""Helpers for variables that every part of an optimizer needs."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

__all__ = ["as_tf", "frozen", "is_frozen", "rounding", "scalar"]


def scalar(
    owner: keras.optimizers.Optimizer, name: str, dtype: str, value: float = 0
) -> keras.Variable:
    """Return a new scalar variable of an optimizer.

    Args:
        owner: keras.optimizers.Optimizer. The optimizer that saves the variable as its state.
        name: str. The variable's name.
        dtype: str. The variable's dtype, such as "float64".
        value: float. The value to start with. Defaults to 0.
    """
    return owner.add_variable(
        shape=(),
        # Keras' Constant would round through float32.
        initializer=lambda shape, dtype: tf.constant(value, dtype, shape),
        dtype=dtype,
        aggregation="only_first_replica",
        name=name,
    )


def as_tf(variable: keras.Variable | tf.Variable) -> tf.Variable:
    """Return the tf.Variable of a Keras variable; a tf.Variable is returned as it is."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def is_frozen(weight: keras.Variable) -> bool:
    """Return whether a weight was told not to train after the optimizer was built on it."""
    return not getattr(weight, "trainable", True)


def frozen(weights: Sequence[keras.Variable]) -> list[int]:
    """Return the numbers of the weights that do not train."""
    return [i for i, weight in enumerate(weights) if is_frozen(weight)]


def rounding(dtype: str | tf.DType) -> float:
    """Return the distance from 1 to the next larger number of a floating point dtype."""
    return {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}[
        tf.as_dtype(dtype).name
    ]
