"""How much worse a network gets on corrupted inputs.

    E(corrupted data) - E(data)

for each of several corrupted versions of the same data, which the caller makes: with noise, other
lighting, blur. Wide minima are said to bear that too; whether they do is measured here.

Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019 (the error of each corruption, beside that on clean data).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from esgd_tf.landscape._altered import metrics_of
from esgd_tf.landscape._metrics import Metric, measured
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CorruptionError", "corruption_error"]


@dataclasses.dataclass(frozen=True, eq=False)
class CorruptionError(Result):
    """The metrics of a network on corrupted versions of data.

    Attributes:
        reference: The metrics on the data as they are.
        values: The metrics on each corrupted version, by its name.
    """

    reference: dict[str, float]
    values: dict[str, dict[str, float]]

    def increase(self, name: str, metric: str | None = None) -> float:
        """Return by how much a metric rises.

        Args:
            name: str. The name of the corrupted version.
            metric: str. The metric. Defaults to None, which takes the first.
        """
        metric = next(iter(self.reference)) if metric is None else metric
        return self.values[name][metric] - self.reference[metric]

    def rows(self) -> Iterator[Row]:
        """Yield the metrics, and by how much they rose, by the name of the version."""
        for name, found in self.values.items():
            for metric, value in found.items():
                yield Row("", metric, name, value)
                yield Row("", f"increase of {metric}", name, value - self.reference[metric])

    def plot(
        self,
        ax: Axes | None = None,
        *,
        color: str | None = None,
        label: str | None = None,
        metric: str | None = None,
    ) -> Axes:
        """Plot a metric for each version; a line is that on the data as they are."""
        ax = axes(ax)
        metric = next(iter(self.reference)) if metric is None else metric
        unit, factor = (" (%)", 100.0) if metric == "error" else ("", 1.0)
        heights = [factor * found[metric] for found in self.values.values()]
        (line,) = ax.plot(list(self.values), heights, "o", color=color, label=label)
        ax.axhline(factor * self.reference[metric], color=line.get_color(), lw=0.6)
        ax.tick_params(axis="x", labelrotation=20)
        ax.set(ylabel=f"{metric}{unit}, corrupted (●) and not (—)")
        if label:
            ax.legend()
        return ax


def corruption_error(
    model: keras.Model | Sequence[Any],
    data: Any,
    corrupted: Mapping[str, Any],
    *,
    metric: Metric | Sequence[Metric] | None = None,
    loss: Any = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> CorruptionError:
    """Measure a network on corrupted versions of its data.

    Args:
        model: keras.Model that is built, or a list of weights. The network; with a list of weights
            `metric` is "loss".
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data as they
            are, as for `HessianOperator`.
        corrupted: mapping of data by name. Corrupted versions of the data.
        metric: str, metric, callable, or a sequence of them. What to measure, as for
            `local_energy`. Defaults to None, which takes the error and the loss; with a list of
            weights, the loss.
        loss: nested structure of losses, or callable. The loss for metric "loss", as for
            `local_energy`. Defaults to None, which takes the one that the model was compiled with.
        batch_size: int >= 1. Examples at a time, for arrays. Defaults to None, which means 512.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: There is no corrupted version, or the data are as `HessianOperator` refuses
            them.
    """
    if not isinstance(corrupted, Mapping) or not corrupted:
        raise ValueError(
            "`corrupted` must have one or several versions of the data by name: {'noise': (x, y)}."
        )
    metrics = metrics_of(model, metric)

    def of(part: Any) -> tuple[str, dict[str, float]]:
        objective, evaluate = measured(model, loss, part, metrics, batch_size=batch_size)
        bar.update(1)
        return objective.measured_at, evaluate()

    with progress_bar(1 + len(corrupted), "corruption", progress) as bar:
        measured_at, reference = of(data)
        values = {str(name): of(part)[1] for name, part in corrupted.items()}
    return CorruptionError(reference=reference, values=values, measured_at=measured_at)
