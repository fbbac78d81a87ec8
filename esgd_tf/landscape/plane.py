"""Planes through a network.

A plane through w along two directions is normalised filter by filter (Li et al.): each filter of a
direction gets the norm of the network's filter, so that planes of networks that differ only by
scale look alike. A filter is what feeds one output of a layer: for most of Keras' kernels a slice
along the last axis, for the others see `_filters.py`.

Source: Li et al., "Visualizing the loss landscape of neural nets", NeurIPS 2018 (planes, filter
normalisation, PCA of trajectories).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from numpy.typing import ArrayLike

from esgd_tf import _checks
from esgd_tf.landscape._metrics import Metric
from esgd_tf.landscape._objective import Objective
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes
from esgd_tf.landscape._surface import Array, Reestimate, Surface, Values, pick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Plane", "normalized_direction", "plane"]

Normalization = Literal["filter", "layer"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Plane(Result):
    """A metric on a line or plane through a network.

    Attributes:
        grids: The coordinates along each direction: one or two arrays.
        values: [g] or [g, h] by split and metric.
        directions: The directions, [1 or 2, n]. Not part of `to_dict`.
        trajectory: [t, 1 or 2] coordinates of the weights given as `trajectory`, or None.
        explained: The fraction of the trajectory's variance around the network along each
            direction, or None.
        normalization: "filter", "layer" or None.
    """

    grids: tuple[Array, ...]
    values: Values
    directions: Array = dataclasses.field(metadata={"written": False})
    trajectory: Array | None
    explained: Array | None
    normalization: str | None

    def _label(self, k: int) -> str:
        along = f"direction {k + 1}"
        return (
            along
            if self.explained is None
            else f"{along} ({100 * self.explained[k]:.0f} % of variance)"
        )

    def rows(self) -> Iterator[Row]:
        """Yield the metrics at every point of the grid."""
        for split, by_metric in self.values.items():
            for metric, values in by_metric.items():
                for place, value in np.ndenumerate(values):
                    at = " ".join(f"{grid[i]:g}" for grid, i in zip(self.grids, place, strict=True))
                    yield Row(split, metric, at, value)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        color: str | None = None,
        label: str | None = None,
        split: str | None = None,
        metric: str | None = None,
    ) -> Axes:
        """Plot the line, or contours with the network at the cross and the trajectory."""
        name, value = pick(self.values, split, metric)
        ax = axes(ax)
        if len(self.grids) == 1:
            ax.plot(self.grids[0], value, color=color, label=label)
            ax.axvline(0.0, color="0.8", lw=0.8, zorder=0)
            ax.set(xlabel=self._label(0), ylabel=name)
            return ax

        x, y = self.grids
        shown = np.where(np.isfinite(value), value, np.nan)
        if np.isnan(shown).all():
            raise ValueError(f"No value of {name} is finite: there is nothing to plot.")
        low, high = np.nanmin(shown), np.nanmax(shown)
        # The bottom of a valley is seen only if the levels lie closer there.
        levels = low + np.linspace(0, 1, 21) ** 2 * max(high - low, 1e-6 * abs(low), 1e-12)
        filled = ax.contourf(x, y, shown.T, levels, cmap="viridis")
        ax.contour(x, y, shown.T, levels, colors="white", linewidths=0.4, alpha=0.6)
        ax.figure.colorbar(filled, ax=ax, label=name, ticks=levels[::4], format="%.4g")
        if self.trajectory is not None:
            ax.plot(*self.trajectory.T, "o-", color="tab:red", ms=3, lw=1, label="trajectory")
            ax.legend()
        for shade, width in (("black", 3.0), ("white", 1.2)):  # seen on dark and on light
            ax.plot(0, 0, "+", color=shade, ms=10, mew=width)
        ax.set(xlabel=self._label(0), ylabel=self._label(1))
        return ax

    def plot_surface(
        self, ax: Any = None, split: str | None = None, metric: str | None = None
    ) -> Any:
        """Plot a plane as a surface in three dimensions.

        Args:
            ax: matplotlib.axes.Axes with projection "3d". What to plot on. Defaults to None, which
                makes new ones.
            split: str. The name of the data. Defaults to None, which takes the first.
            metric: str. The name of the metric. Defaults to None, which takes the first.

        Raises:
            ValueError: This is a line.
        """
        if len(self.grids) == 1:
            raise ValueError("A line has no surface: use `plot`, or measure two directions.")
        import matplotlib.pyplot as plt

        name, value = pick(self.values, split, metric)
        if ax is None:
            figure = plt.figure(figsize=(6, 5), layout="constrained")
            ax = figure.add_subplot(projection="3d", box_aspect=(1, 1, 0.75))
        x, y = np.meshgrid(*self.grids, indexing="ij")
        # All points: by default those beyond 50 are left out.
        ax.plot_surface(
            x, y, value, cmap="viridis", rcount=len(x), ccount=len(y.T), lw=0, antialiased=False
        )
        ax.set(xlabel=self._label(0), ylabel=self._label(1), zlabel=name)
        ax.locator_params(nbins=5)
        ax.yaxis.labelpad = 10
        return ax


def plane(
    model: keras.Model | Sequence[Any],
    center: Any = None,
    directions: Literal["random", "pca"] | Sequence[Any] = "random",
    normalization: Normalization | Literal["auto"] = "auto",
    *,
    loss: Any = None,
    data: Any = None,
    dimensions: int = 2,
    extent: float | Sequence[float] = 1.0,
    points: int = 21,
    trajectory: Sequence[Any] | None = None,
    metric: Metric | Sequence[Metric] | None = None,
    reestimate: Reestimate | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Plane:
    """Measure a network on a line or plane through its weights.

    Args:
        model: keras.Model that is built, or a list of weights. The network.
        center: list of arrays, or keras.Model. The weights at the center, as for `interpolate`.
            Defaults to None, which takes those of the model.
        directions: "random", "pca", or a list of one or two directions. "random" is Gaussian, "pca"
            are the principal components of the trajectory around the center; directions are lists
            of arrays or vectors [n]. Defaults to 'random'.
        normalization: "auto", "filter", "layer" or None. With "filter" what feeds one output of a
            layer gets the norm of the network's, with "layer" each kernel does; with both, biases
            and other vectors stay where they are. None leaves directions as they are. "auto" is
            "filter" for random ones. Defaults to 'auto'.
        loss: nested structure of losses, or callable. The loss, as for `HessianOperator`. Defaults
            to None, which takes the one that the model was compiled with.
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data, as for
            `HessianOperator`, or several by name. Defaults to None, which means that there are
            none.
        dimensions: 1 or 2. How many directions there are, for "random" and "pca". Defaults to 2.
        extent: float > 0, or a sequence with one for each direction. The grid goes from -extent to
            extent; for "pca" it is widened to hold the trajectory. Defaults to 1.0.
        points: int >= 2. Points of the grid along each direction; odd numbers have the center.
            Defaults to 21.
        trajectory: sequence of weights (as `center`). What to project on the plane. Defaults to
            None, which means nothing.
        metric: str, metric, callable, or a sequence of them. What to measure, as for `interpolate`.
            Defaults to None, which takes the loss and, with a Keras model, the error.
        reestimate: callable. Sets the BatchNormalization statistics at each point, as for
            `interpolate`. Defaults to None, which keeps those of the center.
        batch_size: int >= 1. Examples at a time, for arrays. Defaults to None, which means 512.
        seed: int >= 0. The seed of random directions. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: An argument is out of range, or "pca" has too short a trajectory.
    """
    points = _checks.integer("points", points, at_least=2)
    _checks.choice("normalization", normalization, ("auto", "filter", "layer", None))
    surface = Surface(model, loss, data, metric, batch_size, reestimate)
    objective = surface.first
    w, others, name = surface.parts(model if center is None else center)
    path = None
    if trajectory is not None and len(trajectory) > 0:
        path = np.stack([surface.parts(one)[0] for one in trajectory]) - w
    is_word = isinstance(directions, str)  # an array would compare entry by entry
    basis = _basis(objective, directions, dimensions, path, seed)
    if normalization == "auto":
        normalization = "filter" if is_word and directions == "random" else None
    if normalization is not None:
        basis = np.stack([normalized_direction(objective, d, w, normalization) for d in basis])
    _check_basis(basis, normalization)
    reach = np.asarray(extent, np.float64)
    if reach.shape not in ((), (len(basis),)) or not np.all(np.isfinite(reach) & (reach > 0)):
        raise ValueError(
            f"`extent` must be a positive number, or {len(basis)} of them; got {extent!r}."
        )
    reach = np.broadcast_to(reach, (len(basis),))
    coordinates, explained = (None, None) if path is None else _projected(path, basis)
    if coordinates is not None and is_word and directions == "pca":
        reach = np.maximum(reach, 1.1 * np.abs(coordinates).max(axis=0))
    grids = tuple(np.linspace(-r, r, points) for r in reach)
    values = surface.empty(points ** len(grids))
    mesh = np.stack([m.ravel() for m in np.meshgrid(*grids, indexing="ij")], axis=1)
    with progress_bar(len(mesh), "plane", progress) as bar:
        for k, at in enumerate(mesh):
            surface.measure(w + at @ basis, others, values, k)
            bar.update(1)
    shape = (points,) * len(grids)
    return Plane(
        grids=grids,
        values={
            split: {name: v.reshape(shape) for name, v in by_name.items()}
            for split, by_name in values.items()
        },
        directions=basis,
        trajectory=coordinates,
        explained=explained,
        normalization=normalization,
        measured_at=name,
    )


def _basis(
    objective: Objective, directions: Any, dimensions: int, path: Array | None, seed: int
) -> Array:
    if isinstance(directions, str) and directions not in ("random", "pca"):
        raise ValueError(f"`directions` must be random, pca or given; got {directions!r}.")
    if isinstance(directions, str) and dimensions not in (1, 2):
        raise ValueError(f"`dimensions` must be 1 or 2; got {dimensions!r}.")
    if isinstance(directions, str) and directions == "random":
        return np.random.default_rng(seed).standard_normal((dimensions, objective.size))
    if isinstance(directions, str):
        if path is None or len(path) < dimensions:
            raise ValueError(
                f"`directions='pca'` needs a `trajectory` of at least {dimensions} weights."
            )
        _, singular, rows = np.linalg.svd(path, full_matrices=False)
        if singular[dimensions - 1] <= 1e-12 * max(singular[0], 1e-300):
            raise ValueError(
                f"The trajectory has not {dimensions} directions of its own: take `dimensions=1` "
                "or more of its weights."
            )
        rows = rows[:dimensions]
        # The sign of a singular vector is arbitrary: let the trajectory leave the center to the
        # right. It may begin there, so its first weights alone would not tell.
        along = path @ rows.T
        away = np.abs(along) > 1e-6 * np.abs(along).max(axis=0)
        signs = np.sign(along[away.argmax(axis=0), np.arange(dimensions)])
        return rows * signs[:, None]
    if len(directions) not in (1, 2):
        raise ValueError(f"There must be one or two directions; got {len(directions)}.")
    return np.stack([objective.flatten(objective.weights(d)) for d in directions])


def _check_basis(basis: Array, normalization: str | None) -> None:
    lengths = np.linalg.norm(basis, axis=1, keepdims=True)
    if not np.all(np.isfinite(lengths) & (lengths > 0)):
        raise ValueError(
            "A direction has length 0, or is not finite: there is no plane."
            if normalization is None
            else "A direction has length 0, or is not finite: there is no plane. Biases and other "
            "vectors stay where they are unless `normalization` is None."
        )
    if len(basis) == 2 and np.linalg.svd(basis / lengths, compute_uv=False)[1] < 1e-9:
        raise ValueError("The two directions are parallel: there is no plane.")


def _projected(path: Array, basis: Array) -> tuple[Array, Array | None]:
    """Return the coordinates [t, 1 or 2] of a path, and the fraction along each direction."""
    # The directions need not be orthogonal: least squares.
    coordinates = np.asarray(np.linalg.lstsq(basis.T, path.T, rcond=None)[0].T, np.float64)
    total = (path**2).sum()
    units = basis / np.linalg.norm(basis, axis=1, keepdims=True)
    explained = ((path @ units.T) ** 2).sum(axis=0) / total if total > 0 else None
    return coordinates, explained


def normalized_direction(
    objective: Any, direction: ArrayLike, center: ArrayLike, normalization: str
) -> Array:
    """Return a direction whose filters or layers have the norms of the network's.

    Args:
        objective: object with `shapes`. What tells the shapes of the weights, a list of tuples,
            and, unless filters are along the last axis, `filter_axes`, a list of tuples of axes.
        direction: array of shape [n]. The direction.
        center: array of shape [n]. The network's weights.
        normalization: "filter" or "layer". What gets the norm of the network's weights.
    """
    direction, center = np.asarray(direction, np.float64), np.asarray(center, np.float64)
    result, at = np.zeros_like(direction), 0
    axes = getattr(objective, "filter_axes", None) or [(len(s) - 1,) for s in objective.shapes]
    for shape, of_filters in zip(objective.shapes, axes, strict=True):
        size = int(np.prod(shape))
        d, w = (v[at : at + size].reshape(shape) for v in (direction, center))
        if len(shape) > 1:
            kept = of_filters if normalization == "filter" else ()
            within = tuple(k for k in range(len(shape)) if k not in kept)
            lengths, wanted = (np.sqrt((v**2).sum(within, keepdims=True)) for v in (d, w))
            factor = wanted / np.where(lengths > 0, lengths, 1.0)
            result[at : at + size] = (d * factor).ravel()
        at += size
    return result
