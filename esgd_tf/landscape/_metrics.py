"""What is averaged over the data: the loss, the error rate, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.landscape._objective import Objective, Selection

__all__ = ["Metric", "error", "measured", "named_metrics", "splits_of"]

Metric = Any


def error(y: Any, predictions: Any) -> tf.Tensor:
    """Return 1 for each example whose class is not the predicted one, else 0: [n].

    NaN where a prediction is NaN: `argmax` would take it for class 0.

    Args:
        y: Classes [n] or [n, 1], or one row per example with its largest entry at the class.
        predictions: Scores or probabilities [n, classes]; with one column, probabilities of 1
            (of a logit, 0.5 is not the threshold: give a metric of your own).
    """
    if len(predictions.shape) < 2:
        raise ValueError(
            "The error rate needs predictions of shape [n, classes]; the network returns one "
            "number for each example: give a metric of your own."
        )
    if predictions.shape[-1] == 1:
        predicted = tf.cast(tf.squeeze(predictions, -1) > 0.5, tf.int64)
        wanted = tf.cast(tf.reshape(y, tf.shape(predicted)), tf.int64)
    else:
        predicted = tf.argmax(predictions, axis=-1)
        one_hot = len(y.shape) == len(predictions.shape) and y.shape[-1] == predictions.shape[-1]
        wanted = tf.argmax(y, axis=-1) if one_hot else tf.reshape(y, tf.shape(predicted))
    wrong = tf.cast(tf.not_equal(predicted, tf.cast(wanted, tf.int64)), tf.float32)
    nothing = tf.reduce_any(tf.math.is_nan(predictions), axis=-1)
    return tf.where(nothing, np.nan, wrong)


def named_metrics(metric: Metric | Sequence[Metric]) -> dict[str, Any]:
    """Return the metrics asked for by name; "loss" stands for the loss of the model."""
    metrics: dict[str, Any] = {}
    for one in metric if isinstance(metric, list | tuple) else [metric]:
        name, function = _named(one)
        if name in metrics:
            raise ValueError(f"`metric` has two of the name {name!r}.")
        metrics[name] = function
    if not metrics:
        raise ValueError("`metric` names nothing to measure.")
    return metrics


def _named(metric: Metric) -> tuple[str, Any]:
    if isinstance(metric, str) and metric == "error":
        return "error", error
    if isinstance(metric, str) and metric == "loss":
        return "loss", "loss"
    if isinstance(metric, keras.losses.Loss):
        return metric.name, metric.call
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__), metric
    raise ValueError(
        f"`metric` must be 'error', 'loss', a Keras loss or a function of (y_true, y_pred) that "
        f"returns a value for each example; got {metric!r}."
    )


def splits_of(data: Any) -> dict[str, Any]:
    """Return data by the name of their split: a mapping as it is, other data as "data"."""
    if not isinstance(data, Mapping):
        return {"data": data}
    if not data:
        raise ValueError("`data` has no split.")
    return dict(data)


def measured(
    model: keras.Model | Sequence[Any],
    loss: Any,
    data: Any,
    metrics: Mapping[str, Any],
    *,
    batch_size: int | None,
    variables: Selection = None,
) -> tuple[Objective, Callable[..., dict[str, float]]]:
    """Return an objective, and a function of weights that gives the metrics over the data."""
    functions = {name: m for name, m in metrics.items() if m != "loss"}
    if len(functions) == len(metrics) and loss is None and isinstance(model, keras.Model):
        # Error rates need no loss, but the objective wants one: that of the model, if it has any.
        loss = getattr(model, "loss", None) or next(iter(functions.values()))
    objective = Objective(
        model, loss, data, batch_size=batch_size, variables=variables, metrics=functions
    )

    def evaluate(weights: Any = None) -> dict[str, float]:
        values = objective.evaluate(weights)
        return {name: values[name] for name in metrics}

    return objective, evaluate
