"""Lines between two networks.

A line between the weights a and b, for coefficients c (outside [0, 1] it goes on beyond them):

    linear      w(c) = (1 - c) a + c b
    spherical   the same, rescaled to the norm |(1 - c) ‖a‖ + c ‖b‖|

The second is the combination of the elementary-walkers code (there with the coefficient of a): two
independent networks are nearly orthogonal, and half way between them the plain mean has lost 30 %
of its norm.

Sources: Goodfellow, Vinyals and Saxe, "Qualitatively characterizing neural network optimization
problems", ICLR 2015; elementary-walkers (spherical).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from numpy.typing import ArrayLike

from esgd_tf import _checks
from esgd_tf.landscape._metrics import Metric
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import STYLES, Result, Row, axes
from esgd_tf.landscape._surface import Array, Reestimate, Surface, Values, between, pick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Interpolation", "interpolate"]


@dataclasses.dataclass(frozen=True, eq=False)
class Interpolation(Result):
    """Loss, error and gradient along a line between two networks.

    Attributes:
        coefficients: [c]; 0 is network a, 1 is network b.
        values: [c] by split and metric.
        gradient_norm: [c] norm of the loss's gradient by split; empty if it was not asked for.
        norm: [c], ‖w(c)‖.
        distance: ‖a - b‖.
        kind: "linear" or "spherical".
    """

    coefficients: Array
    values: Values
    gradient_norm: dict[str, Array]
    norm: Array
    distance: float
    kind: str

    def barrier(self, split: str | None = None, metric: str | None = None) -> float:
        """Return the height of the barrier between the two networks.

        The largest excess of the metric, at coefficients in [0, 1], over the straight line between
        its values at the two ends; 0 if it stays below (Frankle et al., "Linear mode connectivity
        and the lottery ticket hypothesis", 2020).

        Args:
            split: str. The name of the data. Defaults to None, which takes the first.
            metric: str. The name of the metric. Defaults to None, which takes the first.

        Raises:
            ValueError: The coefficients lack 0 or 1, or nothing of this name was measured.
        """
        _, value = pick(self.values, split, metric)
        c = self.coefficients
        ends = [np.flatnonzero(np.abs(c - end) < 1e-9) for end in (0.0, 1.0)]
        if not all(len(e) for e in ends):
            raise ValueError("The coefficients must contain 0 and 1 to tell the barrier.")
        inside = (c >= -1e-9) & (c <= 1 + 1e-9)
        line = between(value[ends[0][0]], value[ends[1][0]], c)
        return float(np.max((value - line)[inside], initial=0.0))

    def rows(self) -> Iterator[Row]:
        """Yield the metrics along the line."""
        for split, by_metric in self.values.items():
            for metric, values in by_metric.items():
                for at, value in zip(self.coefficients, values, strict=True):
                    yield Row(split, metric, at, value)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        color: str | None = None,
        label: str | None = None,
        metric: str | None = None,
    ) -> Axes:
        """Plot a metric along the line, for each split."""
        ax = axes(ax)
        for split, style in zip(self.values, itertools.cycle(STYLES)):
            metric, value = pick(self.values, split, metric)
            words = ([label] if label else []) + ([split] if split != "data" else [])
            ax.plot(self.coefficients, value, style, color=color, label=", ".join(words) or None)
        for end in (0.0, 1.0):
            ax.axvline(end, color="0.8", lw=0.8, zorder=0)
        ax.set(xlabel="coefficient: 0 is a, 1 is b", ylabel=metric)
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
        return ax


def interpolate(
    model: keras.Model | Sequence[Any],
    weights_a: Any,
    weights_b: Any,
    coefficients: ArrayLike | None = None,
    *,
    loss: Any = None,
    data: Any = None,
    kind: Literal["linear", "spherical"] = "linear",
    metric: Metric | Sequence[Metric] | None = None,
    gradient_norm: bool = True,
    reestimate: Reestimate | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Interpolation:
    """Measure a network along the line between two settings of its weights.

    Args:
        model: keras.Model that is built, or a list of weights. The network; its own weights do not
            matter.
        weights_a: list of arrays, or keras.Model. One end: trainable weights, all weights
            (`model.get_weights()`), or another model of the same architecture.
        weights_b: list of arrays, or keras.Model. The other end, likewise.
        coefficients: array of shape [c]. Where on the line to measure. Defaults to None, which
            takes 31 places from -1 to 2.
        loss: nested structure of losses, or callable. The loss, as for `HessianOperator`. Defaults
            to None, which takes the one that the model was compiled with.
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data, as for
            `HessianOperator`, or several by name: {"train": ..., "test": ...}. Defaults to None,
            which means that there are none.
        kind: "linear" or "spherical". Which line joins the ends. Defaults to 'linear'.
        metric: str, metric, callable, or a sequence of them. What to measure, as for
            `local_energy`. Defaults to None, which takes the loss and, with a Keras model, the
            error.
        gradient_norm: bool. Whether to take the gradient too, which costs twice as much again.
            Defaults to True.
        reestimate: callable. Sets the BatchNormalization statistics at each point, on a copy of the
            model: `lambda model: esgd_tf.reestimate_batch_norm(model, batches)`. Defaults to None,
            which interpolates them linearly (an end given by its trainable weights alone has those
            of `model`): between distant networks that misleads.
        batch_size: int >= 1. Examples at a time, for arrays. Defaults to None, which means 512.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: The weights do not fit, or an argument is out of range.
    """
    c = np.linspace(-1.0, 2.0, 31) if coefficients is None else np.asarray(coefficients, np.float64)
    if c.ndim != 1 or len(c) == 0 or not np.all(np.isfinite(c)):
        raise ValueError("`coefficients` must be a list of finite numbers.")
    _checks.choice("kind", kind, ("linear", "spherical"))
    surface = Surface(model, loss, data, metric, batch_size, reestimate, gradient_norm)
    return along(surface, weights_a, weights_b, c, kind, progress)


def along(
    surface: Surface,
    weights_a: Any,
    weights_b: Any,
    c: Array,
    kind: Literal["linear", "spherical"],
    progress: bool | None,
) -> Interpolation:
    """Measure one line; a surface serves for many lines, and is traced once."""
    (a, others_a, at_a), (b, others_b, at_b) = surface.parts(weights_a), surface.parts(weights_b)
    norms = np.linalg.norm(a), np.linalg.norm(b)
    values = surface.empty(len(c))
    slopes = {split: np.empty(len(c)) for split in surface.splits} if surface.takes_gradient else {}
    norm = np.empty(len(c))
    with progress_bar(len(c), "interpolation", progress) as bar:
        for k, t in enumerate(c):
            point = between(a, b, t)
            if kind == "spherical" and (length := np.linalg.norm(point)) > 0:
                point = point * abs(between(*norms, t)) / length
            others = [between(p, q, t) for p, q in zip(others_a, others_b, strict=True)]
            norm[k] = np.linalg.norm(point)
            surface.measure(point, others, values, k, slopes)
            bar.update(1)
    return Interpolation(
        coefficients=c,
        values=values,
        gradient_norm=slopes,
        norm=norm,
        distance=float(np.linalg.norm(a - b)),
        kind=kind,
        measured_at=at_a if at_a == at_b else f"{at_a} and {at_b}",
    )
