"""How much worse a network gets without its smallest weights.

Of the N weights in the kernels, the round(p N) smallest in magnitude become 0: of all kernels
together (per="network"), or of each kernel by itself (per="layer"), where N is its own. Of equal
ones, the first go first. Biases and BatchNormalization stay as they are, and nothing is trained
afterwards: this is the network that was found, not the best sparse one.

Source: Han, Pool, Tran and Dally, "Learning both weights and connections for efficient neural
networks", NIPS 2015 (by magnitude); Frankle and Carbin, "The lottery ticket hypothesis", ICLR 2019
(over all layers together or layer by layer).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from numpy.typing import ArrayLike

from esgd_tf import _checks
from esgd_tf.landscape._altered import Array, Values, altered_rows, measure_altered, plot_altered
from esgd_tf.landscape._metrics import Metric
from esgd_tf.landscape._objective import Selection
from esgd_tf.landscape._result import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Pruning", "pruning"]


@dataclasses.dataclass(frozen=True, eq=False)
class Pruning(Result):
    """The metrics of a network without its smallest weights.

    Attributes:
        fractions: [p], ascending: of the weights in the kernels, those that are 0.
        values: [p] by split and metric.
        reference: The metrics of the network as it is, by split.
        removed: [p], ‖w' - w‖/‖w‖ over the kernels.
        per: "network" or "layer".
        kernels: How many kernels were pruned.
        size: How many weights are in them.
    """

    fractions: Array
    values: Values
    reference: dict[str, dict[str, float]]
    removed: Array
    per: str
    kernels: int
    size: int

    def rows(self) -> Iterator[Row]:
        """Yield the metrics, and by how much they rose, by fraction."""
        yield from altered_rows(self.fractions, self.values, self.reference)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        color: str | None = None,
        label: str | None = None,
        metric: str | None = None,
    ) -> Axes:
        """Plot a metric against fractions for each split; a line is that of the network as is."""
        return plot_altered(
            ax, self.fractions, self.values, self.reference,
            xlabel=f"fraction of the weights that are 0 (per {self.per})",
            color=color, label=label, metric=metric,
        )  # fmt: skip


def pruning(
    model: keras.Model | Sequence[Any],
    data: Any,
    fractions: ArrayLike = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95),
    *,
    per: Literal["network", "layer"] = "network",
    metric: Metric | Sequence[Metric] | None = None,
    loss: Any = None,
    batch_size: int | None = None,
    variables: Selection = None,
    progress: bool | None = None,
) -> Pruning:
    """Measure a network without its smallest weights.

    Args:
        model: keras.Model that is built, or a list of weights. The network; with a list of weights
            `metric` is "loss".
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data, as for
            `HessianOperator`, or several by name: {"train": ..., "test": ...}.
        fractions: array of shape [p]. Of the weights in the kernels, those that become 0, from 0 to
            1; at each the network is evaluated once. Defaults to (0.2, 0.4, 0.6, 0.8, 0.9, 0.95).
        per: "network" or "layer". Whether the smallest weights of all kernels together are taken,
            or those of each kernel. Defaults to 'network'.
        metric: str, metric, callable, or a sequence of them. What to measure, as for
            `local_energy`. Defaults to None, which takes the error and the loss; with a list of
            weights, the loss.
        loss: nested structure of losses, or callable. The loss for metric "loss", as for
            `local_energy`. Defaults to None, which takes the one that the model was compiled with.
        batch_size: int >= 1. Examples at a time, for arrays. Defaults to None, which means 512.
        variables: list of variables, layers, names or indices, or a callable. Whose kernels are
            pruned, as for `HessianOperator`. Defaults to None, which prunes those of all trainable
            layers.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: An argument is out of range, there are no kernels, or the data are as
            `HessianOperator` refuses them.
    """
    chosen = np.unique(np.asarray(fractions, np.float64))
    if np.ndim(fractions) != 1 or not chosen.size or not np.all((chosen >= 0) & (chosen <= 1)):
        raise ValueError(f"`fractions` must be a list of numbers from 0 to 1; got {fractions!r}.")
    _checks.choice("per", per, ("network", "layer"))

    def pruned(kernels: list[Array], axes: list[tuple[int, ...]], fraction: float) -> list[Array]:
        del axes
        if per == "layer":
            return [_pruned([w], fraction)[0] for w in kernels]
        return _pruned(kernels, fraction)

    found = measure_altered(
        model, data, metric, pruned, chosen.tolist(), "pruning", loss=loss,
        batch_size=batch_size, variables=variables, progress=progress,
    )  # fmt: skip
    return Pruning(
        fractions=chosen,
        values=found.values,
        reference=found.reference,
        removed=found.distance,
        per=per,
        kernels=found.kernels,
        size=found.size,
        measured_at=found.measured_at,
    )


def _pruned(kernels: list[Array], fraction: float) -> list[Array]:
    """Return kernels without the smallest of all their weights together."""
    flat = np.concatenate([w.ravel() for w in kernels])
    smallest = np.argsort(np.abs(flat), kind="stable")[: round(fraction * flat.size)]
    flat[smallest] = 0.0
    parts = np.split(flat, np.cumsum([w.size for w in kernels])[:-1])
    return [part.reshape(w.shape) for part, w in zip(parts, kernels, strict=True)]
