"""How much worse a network gets when its kernels are rounded to few bits.

With b bits a weight takes one of 2^b - 1 values, spaced evenly and symmetric around 0:

    w' = s round(w/s),   s = max|w| / (2^{b-1} - 1),

the maximum over a filter (per="channel": the weights that feed one output) or over a kernel
(per="tensor"). Halves are rounded to even. With b = 2 there are -s, 0 and s. Biases, the weights of
normalisations and activations stay in floating point: nothing but the kernels of trainable layers
is rounded.

A rounding error is at most s/2. A wide minimum is one where such a step costs little.

Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018
(arXiv 1806.08342), section 2 (symmetric quantizer, per layer and per channel).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from esgd_tf import _checks
from esgd_tf.landscape._altered import Array, Values, altered_rows, measure_altered, plot_altered
from esgd_tf.landscape._metrics import Metric
from esgd_tf.landscape._objective import Selection
from esgd_tf.landscape._result import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Quantization", "quantization"]

# Beyond these a float32 weight is not rounded at all.
_MOST_BITS = 24


@dataclasses.dataclass(frozen=True, eq=False)
class Quantization(Result):
    """The metrics of a network with rounded kernels.

    Attributes:
        bits: [b], descending.
        values: [b] by split and metric.
        reference: The metrics of the network as it is, by split.
        rounding: [b], ‖w' - w‖/‖w‖ over the kernels.
        per: "channel" or "tensor".
        kernels: How many kernels were rounded.
        size: How many weights are in them.
    """

    bits: Array
    values: Values
    reference: dict[str, dict[str, float]]
    rounding: Array
    per: str
    kernels: int
    size: int

    def rows(self) -> Iterator[Row]:
        """Yield the metrics, and by how much they rose, by bits."""
        yield from altered_rows(self.bits, self.values, self.reference)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        color: str | None = None,
        label: str | None = None,
        metric: str | None = None,
    ) -> Axes:
        """Plot a metric against bits for each split; a line is that of the network as it is."""
        ax = plot_altered(
            ax, self.bits, self.values, self.reference,
            xlabel=f"bits of a weight (scale per {self.per})",
            color=color, label=label, metric=metric,
        )  # fmt: skip
        ax.locator_params(axis="x", integer=True)
        return ax


def quantization(
    model: keras.Model | Sequence[Any],
    data: Any,
    bits: Sequence[int] = (8, 7, 6, 5, 4, 3, 2),
    *,
    per: Literal["channel", "tensor"] = "channel",
    metric: Metric | Sequence[Metric] | None = None,
    loss: Any = None,
    batch_size: int | None = None,
    variables: Selection = None,
    progress: bool | None = None,
) -> Quantization:
    """Measure a network whose kernels are rounded to few bits.

    Args:
        model: keras.Model that is built, or a list of weights. The network; with a list of weights
            `metric` is "loss".
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data, as for
            `HessianOperator`, or several by name: {"train": ..., "test": ...}.
        bits: sequence of ints from 2 to 24. The bits of a weight, at each of which the network is
            evaluated once. Defaults to (8, 7, 6, 5, 4, 3, 2).
        per: "channel" or "tensor". Whether each filter or each kernel has a scale of its own.
            Defaults to 'channel'.
        metric: str, metric, callable, or a sequence of them. What to measure, as for
            `local_energy`. Defaults to None, which takes the error and the loss; with a list of
            weights, the loss.
        loss: nested structure of losses, or callable. The loss for metric "loss", as for
            `local_energy`. Defaults to None, which takes the one that the model was compiled with.
        batch_size: int >= 1. Examples at a time, for arrays. Defaults to None, which means 512.
        variables: list of variables, layers, names or indices, or a callable. Whose kernels are
            rounded, as for `HessianOperator`. Defaults to None, which rounds those of all trainable
            layers.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: An argument is out of range, there are no kernels, or the data are as
            `HessianOperator` refuses them.
    """
    if np.ndim(bits) != 1 or not len(bits):
        raise ValueError(f"`bits` must be a list of whole numbers from 2 to 24; got {bits!r}.")
    chosen = {_checks.integer("bits", b, at_least=2, at_most=_MOST_BITS) for b in bits}
    _checks.choice("per", per, ("channel", "tensor"))

    def rounded(kernels: list[Array], axes: list[tuple[int, ...]], bits: int) -> list[Array]:
        kept = axes if per == "channel" else [()] * len(axes)
        return [_rounded(w, keep, bits) for w, keep in zip(kernels, kept, strict=True)]

    settings = sorted(chosen, reverse=True)
    found = measure_altered(
        model, data, metric, rounded, settings, "quantization", loss=loss,
        batch_size=batch_size, variables=variables, progress=progress,
    )  # fmt: skip
    return Quantization(
        bits=np.array(settings, np.float64),
        values=found.values,
        reference=found.reference,
        rounding=found.distance,
        per=per,
        kernels=found.kernels,
        size=found.size,
        measured_at=found.measured_at,
    )


def _rounded(kernel: Array, keep: tuple[int, ...], bits: int) -> Array:
    """Return a kernel on the grid; `keep` has the axes along which scales differ."""
    others = tuple(axis for axis in range(kernel.ndim) if axis not in keep)
    largest = np.abs(kernel).max(axis=others, keepdims=True, initial=0.0)
    scale = largest / (2 ** (bits - 1) - 1)
    # A filter of zeros has no scale, and needs none.
    return scale * np.round(kernel / np.where(scale == 0, 1.0, scale))
