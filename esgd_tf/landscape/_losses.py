"""The loss of each example, from all that Keras takes as a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

__all__ = ["broadcast_mean", "one_each", "per_example_loss", "resolved_loss", "weighted_sum"]


def resolved_loss(model: keras.Model, loss: Any) -> Any:
    """Return a Keras loss or a function of (y_true, y_pred)."""
    if loss is None:
        loss = getattr(model, "loss", None)
        if loss is None:
            raise ValueError("There is no loss: give one, or compile the model with one.")
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            raise ValueError(f"Keras knows no loss named {loss!r}.") from None
    if not callable(loss):
        raise ValueError(
            f"`loss` must be a Keras loss, its name, or a function of (y_true, y_pred); got "
            f"{loss!r}."
        )
    return loss


def per_example_loss(loss: Any) -> Callable[[Any, Any], tf.Tensor]:
    """Return a function of (y, predictions) that gives each example's loss."""
    if isinstance(loss, keras.losses.Loss):
        return lambda y, predictions: one_each(
            loss.call(y, tf.cast(predictions, loss.dtype))  # `__call__` would take the mean
        )
    return lambda y, predictions: broadcast_mean(
        tf.convert_to_tensor(loss(y, predictions)), predictions
    )


def one_each(values: Any) -> tf.Tensor:
    """Return the mean of each example's values [n, ...] as [n]."""
    values = tf.convert_to_tensor(values)
    return tf.reduce_mean(tf.reshape(values, [tf.shape(values)[0], -1]), axis=1)


def broadcast_mean(losses: tf.Tensor, batch: Any) -> tf.Tensor:
    """Return each example's loss [n]: a scalar is the batch's mean, and stands for each."""
    if losses.shape.rank == 0:
        rows = tf.shape(tf.nest.flatten(batch)[0])[0]
        return tf.fill([rows], losses)
    return one_each(losses)


def weighted_sum(values: tf.Tensor, sample_weight: tf.Tensor) -> tf.Tensor:
    """Return the sum of values [n], each times its weight [n]."""
    return tf.reduce_sum(values * tf.cast(sample_weight, values.dtype))
