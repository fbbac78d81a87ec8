"""A loss that the user writes as a function of weights that belong to no Keras model."""

from __future__ import annotations

import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from esgd_tf.landscape._batch import rows_of
from esgd_tf.landscape._second_derivatives import twice_differentiable
from esgd_tf.landscape._types import Loss, Nested, Tensors

__all__ = ["FunctionLoss"]


class FunctionLoss:
    """The loss of a batch of n examples, n times its mean, from a function of weights and data.

    Args:
        function: callable. A function of (weights, x, y), which returns a value for each example,
            [n, ...], or the mean of the batch; or, without data, of (weights).
        without_data: bool. Whether it is a function of the weights alone.

    Raises:
        ValueError: `function` cannot be called, or is a Keras loss.
    """

    #: The user decides how data are cut into batches.
    depends_on_batches = False
    has_unknown_parts = False

    def __init__(self, function: Loss, without_data: bool) -> None:
        if not callable(function) or isinstance(function, keras.losses.Loss):
            raise ValueError(
                "With a list of weights, `loss` must be a function of (weights, x, y), or of "
                f"(weights) without data; got {function!r}."
            )
        self._function: Callable[..., tf.Tensor] = function
        self._without_data = without_data
        #: Whether there is a loss of each example. Known after the first trace.
        self.sees_examples = not without_data

    def batch_sum(
        self, weights: Tensors, rest: Tensors, x: Nested, y: Nested, sample_weight: Nested
    ) -> tf.Tensor:
        """Return n times the loss of a batch; see `ModelLoss.batch_sum`."""
        if self._without_data:
            with twice_differentiable():
                return tf.convert_to_tensor(self._function(list(weights)))
        return tf.reduce_sum(self.of_each_example(weights, x, y, sample_weight))

    def of_each_example(
        self, weights: Tensors, x: Nested, y: Nested, sample_weight: Nested
    ) -> tf.Tensor:
        """Return the loss of each example times its weight: [n]."""
        with twice_differentiable():
            values = tf.convert_to_tensor(self._function(list(weights), x, y))
        if values.shape.rank == 0:
            # The mean of the batch stands for each of its examples.
            self.sees_examples = False
            values = tf.fill([rows_of(x)], values)
        values = tf.reduce_mean(tf.reshape(values, [tf.shape(values)[0], -1]), axis=1)
        weights = [w for w in tf.nest.flatten(sample_weight) if w is not None]
        return functools.reduce(
            lambda v, w: v * tf.cast(tf.reshape(w, [-1]), v.dtype), weights, values
        )
