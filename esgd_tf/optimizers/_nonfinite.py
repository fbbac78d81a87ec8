"""Leaving out a minibatch whose gradient is not finite, inside the training graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


def step_or_skip(
    distribution: Any, gradients: Sequence[Any], skipped: tf.Variable, step: Callable[[], None]
) -> None:
    """Take the step if all gradients are finite, else add one to `skipped`.

    This must be called outside any replica.

    Args:
        distribution: tf.distribute.Strategy. The strategy in force.
        gradients: sequence of tf.Tensor or tf.IndexedSlices. The gradients, summed over the
            devices.
        skipped: tf.Variable, an integer scalar. Counts the minibatches that were left out.
        step: callable. Takes the step.
    """

    def take() -> tf.Tensor:
        step()
        return tf.constant(0)  # a branch must return something

    def skip() -> tf.Tensor:
        distribution.extended.update(skipped, lambda v: v.assign_add(1), group=False)
        return tf.constant(0)

    # Summed over the devices, the gradient is not finite on any if it was not on one.
    gradients = [distribution.experimental_local_results(g)[0] for g in gradients]
    tf.cond(_finite(gradients), take, skip)


def undo_counting(
    taken: tf.Tensor,
    scalars: Sequence[tuple[keras.Variable, tf.Tensor]],
    iterations: keras.Variable,
    minibatches: int,
) -> None:
    """Reset the counters that a minibatch has advanced, if that minibatch was left out.

    Args:
        taken: bool scalar tensor. Whether the step was taken, so that nothing is to be undone.
        scalars: sequence of pairs of keras.Variable and tf.Tensor. The outer optimizer's scalars,
            with their values before the step.
        iterations: keras.Variable, an integer scalar. The counter of minibatches.
        minibatches: int >= 1. How many minibatches make one gradient evaluation; an evaluation made
            of several starts over.
    """
    for variable, old in scalars:
        variable.assign(tf.where(taken, variable.value, old))
    back = tf.cast(minibatches, iterations.dtype)
    iterations.assign_sub(tf.where(taken, tf.zeros_like(back), back))


def keep_infinities(gradients: Sequence[Any], clipped: Sequence[Any]) -> list[Any]:
    """Return gradients clipped by value, with NaN where there was no finite number to clip.

    Args:
        gradients: sequence of tf.Tensor, tf.IndexedSlices or None. The gradients before clipping.
        clipped: sequence of the same kind. The gradients after clipping.
    """

    def keep(gradient: Any, clipped: Any) -> Any:
        if isinstance(gradient, tf.IndexedSlices):
            values = keep(gradient.values, clipped.values)
            return tf.IndexedSlices(values, clipped.indices, clipped.dense_shape)
        nan = tf.constant(float("nan"), gradient.dtype)
        return tf.where(tf.math.is_finite(gradient), clipped, nan)

    return [None if g is None else keep(g, c) for g, c in zip(gradients, clipped, strict=True)]


def _finite(gradients: Sequence[Any]) -> tf.Tensor:
    """Return whether the squared norm of all gradients together is finite."""
    squares = []
    for gradient in gradients:
        dense = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        # A square in half precision would overflow at once.
        wide = tf.cast(dense, tf.float32) if dense.dtype.size < 4 else dense
        squares.append(tf.cast(tf.nn.l2_loss(wide), tf.float64))
    return tf.math.is_finite(tf.add_n(squares))
