"""Means over the data beside the loss: the error rate, and metrics that the user gives.

A metric is called as Keras calls one, and averaged as Keras' `weighted_metrics` are: a function of
(y_true, y_pred) gives values, masks and sample weights weigh them, and their sum is divided by the
sum of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.landscape._error import error_of
from esgd_tf.landscape._types import Loss, Metric, Nested, Tensors, Vector

__all__ = ["MetricSums"]

_Function = Callable[[Nested, Nested], tf.Tensor]


class MetricSums:
    """Sums of metrics over batches.

    Args:
        metrics: mapping of metrics by name. "error", Keras losses and mean metrics, or functions of
            (y_true, y_pred).
        loss: nested structure of losses. The loss of the model, which tells what an error is.
            Defaults to None, which means that there is none.
    """

    def __init__(self, metrics: Mapping[str, Metric], loss: Loss = None) -> None:
        self._metrics = {name: _as_metric(name, one, loss) for name, one in metrics.items()}

    def sums(self, y: Nested, predictions: Nested, sample_weight: Nested) -> Tensors:
        """In a graph: return two numbers for each metric, for a batch."""
        sums: Tensors = []
        for name, metric in self._metrics.items():
            if sample_weight is not None and keras.tree.is_nested(sample_weight):
                raise ValueError(
                    f"The metric {name!r} cannot be weighted by sample weights for each output: "
                    "leave the weights out, or measure one output."
                )
            zeros = [tf.zeros(v.shape, v.dtype) for v in metric.variables]
            # The two variables of a mean: its total and its count.
            sums += metric.stateless_update_state(
                zeros, y, predictions, sample_weight=sample_weight
            )
        return sums

    def results(self, sums: Vector) -> dict[str, float]:
        """Return the means by name, from sums over all batches."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums[::2] / sums[1::2]
        return dict(zip(self._metrics, means.tolist(), strict=True))


def _as_metric(name: str, metric: Metric, loss: Loss) -> keras.metrics.Mean:
    if isinstance(metric, str):  # "error": others have been refused
        return keras.metrics.MeanMetricWrapper(error_of(loss), name=name)
    if isinstance(metric, keras.losses.Loss):
        return keras.metrics.MeanMetricWrapper(_values_of(metric), name=name)
    if isinstance(metric, keras.metrics.MeanMetricWrapper):
        return metric
    if isinstance(metric, keras.metrics.Metric):
        raise ValueError(
            f"The metric {name!r} is a {type(metric).__name__}, which is not a mean over examples: "
            "give a function of (y_true, y_pred), or a Keras metric that is one."
        )
    return keras.metrics.MeanMetricWrapper(_on_like_shapes(metric), name=name)


def _on_like_shapes(metric: _Function) -> _Function:
    """Return a user's metric as one that is given targets of the rank of the predictions.

    Keras' own metrics adapt ranks themselves. Without it, a difference of [n] and [n, 1] would be
    broadcast to all pairs [n, n].
    """

    def values(y_true: Nested, y_pred: Nested) -> tf.Tensor:
        if (
            not (keras.tree.is_nested(y_true) or keras.tree.is_nested(y_pred))
            and y_true is not None
        ):
            y_true, y_pred = _of_like_rank(y_true, y_pred)
        return metric(y_true, y_pred)

    return values


def _of_like_rank(y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Drop or add a last axis of length 1, as Keras' losses do."""
    more = len(y_true.shape) - len(y_pred.shape)
    if more == 1 and y_true.shape[-1] == 1:
        if len(y_pred.shape) == 1:
            return y_true, y_pred[:, None]
        return tf.squeeze(y_true, -1), y_pred
    if more == -1 and y_pred.shape[-1] == 1:
        if len(y_true.shape) == 1:
            return y_true[:, None], y_pred
        return y_true, tf.squeeze(y_pred, -1)
    return y_true, y_pred


def _values_of(loss: keras.losses.Loss) -> _Function:
    """Return a Keras loss without its reduction."""

    def values(y_true: Nested, y_pred: Nested) -> tf.Tensor:
        return loss.call(
            keras.tree.map_structure(lambda t: tf.cast(t, loss.dtype), y_true),
            keras.tree.map_structure(lambda t: tf.cast(t, loss.dtype), y_pred),
        )

    return values
