"""A network with altered kernels, and what that costs: shared by rounding and pruning.

A kernel is a weight of two or more axes: of a dense, convolutional, recurrent or embedding layer.
Biases and the scales and shifts of normalisations have one axis.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from esgd_tf.landscape._metrics import measured, named_metrics, splits_of
from esgd_tf.landscape._objective import Objective
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import STYLES, Row, axes
from esgd_tf.landscape._types import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Altered", "altered_rows", "measure_altered", "metrics_of", "plot_altered"]

Array = NDArray[np.float64]
Values = dict[str, dict[str, Array]]
#: A function of (kernels, axes of their filters, setting) that returns other kernels.
Alter = Callable[[list[Array], list[tuple[int, ...]], Any], list[Array]]


@dataclasses.dataclass(frozen=True)
class Altered:
    """What was measured.

    Attributes:
        reference: The metrics of the network as it is, by split.
        values: The metrics at each setting [k], by split and metric.
        distance: ‖w' - w‖/‖w‖ over the kernels at each setting [k].
        kernels: How many kernels there are.
        size: How many weights are in them.
        measured_at: Whose weights were measured.
    """

    reference: dict[str, dict[str, float]]
    values: Values
    distance: Array
    kernels: int
    size: int
    measured_at: str


def metrics_of(model: Any, metric: Any) -> dict[str, Metric]:
    """Return metrics by name; by default the error and the loss, of a list of weights the loss."""
    if metric is None:
        metric = ["error", "loss"] if isinstance(model, keras.Model) else "loss"
    return named_metrics(metric)


def measure_altered(
    model: Any,
    data: Any,
    metric: Any,
    alter: Alter,
    settings: Sequence[Any],
    what: str,
    *,
    loss: Any,
    batch_size: int | None,
    variables: Any,
    progress: bool | None,
) -> Altered:
    """Measure a network with its kernels altered, at each of several settings.

    Args:
        model: keras.Model that is built, or a list of weights. The network.
        data: nested structure of arrays, or a mapping of them by split. The data.
        metric: str, metric, callable, or a sequence of them. What to measure, or None.
        alter: callable. Alters the kernels.
        settings: sequence. How.
        what: str. What the bar is called.
        loss: nested structure of losses, or callable. The loss.
        batch_size: int >= 1. Examples at a time.
        variables: list of variables, layers, names or indices, or a callable. Whose kernels are
            altered.
        progress: bool. Whether to show a bar.

    Raises:
        ValueError: There are no kernels, or the data or metrics are bad.
    """
    metrics = metrics_of(model, metric)
    parts = {
        split: measured(model, loss, part, metrics, batch_size=batch_size, variables=variables)
        for split, part in splits_of(data).items()
    }
    objective: Objective = next(iter(parts.values()))[0]
    start = [np.asarray(t, np.float64) for t in objective.start]
    chosen = [i for i, weight in enumerate(start) if weight.ndim > 1]
    if not chosen:
        raise ValueError(
            "There are no kernels: no trainable weight of two or more axes is among those chosen."
        )
    every = objective.filter_axes or [(weight.ndim - 1,) for weight in start]
    kernels, kept = [start[i] for i in chosen], [every[i] for i in chosen]
    norm = np.sqrt(sum(float((w**2).sum()) for w in kernels))
    reference = {split: evaluate() for split, (_, evaluate) in parts.items()}
    values: Values = {s: {m: np.empty(len(settings)) for m in metrics} for s in parts}
    distance = np.empty(len(settings))
    with progress_bar(len(settings), what, progress) as bar:
        for k, setting in enumerate(settings):
            altered = alter(kernels, kept, setting)
            off = sum(float(((a - w) ** 2).sum()) for a, w in zip(altered, kernels, strict=True))
            distance[k] = np.sqrt(off) / norm if norm else 0.0
            weights: list[Any] = list(objective.start)
            for i, new in zip(chosen, altered, strict=True):
                weights[i] = new
            for split, (_, evaluate) in parts.items():
                for name, value in evaluate(weights).items():
                    values[split][name][k] = value
            bar.update(1)
    return Altered(
        reference=reference,
        values=values,
        distance=distance,
        kernels=len(kernels),
        size=sum(w.size for w in kernels),
        measured_at=objective.measured_at,
    )


def altered_rows(
    settings: Array, values: Values, reference: Mapping[str, Mapping[str, float]]
) -> Iterator[Row]:
    """Yield each metric and its increase, by setting.

    Args:
        settings: array of shape [k]. The settings.
        values: dict of dicts of arrays. The metrics, by split and name.
        reference: mapping of mappings. The metrics of the network as it is.
    """
    for split, by_metric in values.items():
        for metric, found in by_metric.items():
            for at, value in zip(settings.tolist(), found.tolist(), strict=True):
                yield Row(split, metric, at, value)
                yield Row(split, f"increase of {metric}", at, value - reference[split][metric])


def plot_altered(
    ax: Axes | None,
    settings: Array,
    values: Values,
    reference: Mapping[str, Mapping[str, float]],
    *,
    xlabel: str,
    color: str | None,
    label: str | None,
    metric: str | None,
) -> Axes:
    """Plot a metric against the settings for each split, and that of the network as it is."""
    ax = axes(ax)
    splits = list(values)
    metric = next(iter(values[splits[0]])) if metric is None else metric
    # Percent read better than fractions.
    unit, factor = (" (%)", 100.0) if metric == "error" else ("", 1.0)
    for split, style in zip(splits, itertools.cycle(STYLES)):
        words = ([label] if label else []) + ([split] if split != "data" else [])
        (line,) = ax.plot(
            settings, factor * values[split][metric], style, color=color,
            label=", ".join(words) or None,
        )  # fmt: skip
        ax.axhline(
            factor * reference[split][metric],
            color=line.get_color(),
            lw=0.6,
            ls=line.get_linestyle(),
        )
    ax.set(xlabel=xlabel, ylabel=f"{metric}{unit}")
    if ax.get_legend_handles_labels()[0]:
        ax.legend()
    return ax
