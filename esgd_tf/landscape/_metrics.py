"""The arguments `metric` and `data` of measures: metrics by name, data by split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import keras
from numpy.typing import ArrayLike

from esgd_tf.landscape._objective import Objective, Selection
from esgd_tf.landscape._types import Data, Loss, Metric, Network, Weights

__all__ = ["Metric", "measured", "named_metrics", "splits_of"]


def named_metrics(metric: Metric | Sequence[Metric]) -> dict[str, Metric]:
    """Return the metrics asked for by name; "loss" stands for the loss of the model."""
    metrics: dict[str, Metric] = {}
    for one in metric if isinstance(metric, list | tuple) else [metric]:
        name, function = _named(one)
        if name in metrics:
            raise ValueError(f"`metric` has two of the name {name!r}.")
        metrics[name] = function
    if not metrics:
        raise ValueError("`metric` names nothing to measure.")
    return metrics


def _named(metric: Metric) -> tuple[str, Metric]:
    if isinstance(metric, str) and metric in ("error", "loss"):
        return metric, metric
    if isinstance(metric, keras.losses.Loss | keras.metrics.Metric):
        return metric.name, metric
    if callable(metric) and not isinstance(metric, type):
        return getattr(metric, "__name__", type(metric).__name__), metric
    raise ValueError(
        f"`metric` must be 'error', 'loss', a Keras loss or metric, or a function of (y_true, "
        f"y_pred) that returns a value for each example; got {metric!r}."
    )


def splits_of(data: Data | Mapping[str, Data]) -> dict[str, Data]:
    """Return data by the name of their split: a mapping as it is, other data as "data"."""
    if not isinstance(data, Mapping):
        return {"data": data}
    if not data:
        raise ValueError("`data` has no split.")
    return dict(data)


def measured(
    model: Network,
    loss: Loss,
    data: Data,
    metrics: Mapping[str, Metric],
    *,
    batch_size: int | None,
    variables: Selection = None,
) -> tuple[Objective, Callable[..., dict[str, float]]]:
    """Return an objective, and a function of weights that gives the metrics over the data."""
    functions = {name: m for name, m in metrics.items() if not _is_loss(m)}
    objective = Objective(
        model,
        loss,
        data,
        batch_size=batch_size,
        variables=variables,
        metrics=functions,
        loss_is_needed=len(functions) < len(metrics),
    )

    def evaluate(weights: Weights | ArrayLike | None = None) -> dict[str, float]:
        values = objective.evaluate(weights)
        return {name: values[name] for name in metrics}

    return objective, evaluate


def _is_loss(metric: Metric) -> bool:
    return isinstance(metric, str) and metric == "loss"
