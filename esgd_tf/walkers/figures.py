"""The figure page of a walkers run, plotted from its table: losses, lines, spectra, walks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esgd_tf import _density
from esgd_tf.runs.figures import literal, new_figure
from esgd_tf.runs.run_folder import RunFolderError, replaced_when_whole
from esgd_tf.walkers.records import read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["figure_page"]

Row = Mapping[str, Any]
Rows = Sequence[Row]
# With more entries a legend would hide the picture.
_NAMED = 8


def figure_page(folder: str | Path, path: str | Path | None = None) -> Path:
    """Plot the measurements of a run, one panel for each kind.

    Args:
        folder: str or Path. The folder of the run.
        path: str or Path. The picture. Defaults to None, which means `walkers.png` in the folder.

    Returns:
        The path of the picture.

    Raises:
        RunFolderError: The folder holds no table, or no measurement.
    """
    folder = Path(folder)
    rows = read_table(folder)
    target = folder / "walkers.png" if path is None else Path(path)
    panels = [(kind, plot) for kind, plot in _PANELS if any(_has(kind, row) for row in rows)]
    if not panels:
        raise RunFolderError(f"{folder} has measured nothing yet.")
    columns = min(len(panels), 3)
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(4.6 * columns, 3.7 * lines + 0.4)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (kind, plot) in zip(axes, panels, strict=False):
        plot(axis, [row for row in rows if _has(kind, row)])
    for axis in axes[len(panels) :]:
        axis.axis("off")
    _mark_changes(axes[0], rows)
    figure.suptitle(literal(_title(folder, rows)), fontsize="medium")
    with replaced_when_whole(target) as partial:
        figure.savefig(partial, dpi=130, format=target.suffix.lstrip(".") or "png")
    return target


def _has(kind: str, row: Row) -> bool:
    if kind == "density":
        return "density" in row or row["kind"] == "full_spectrum"
    if kind == "distances" and row["kind"] == kind:
        return len(row["distances"]) > 1
    return row["kind"] == kind


def _title(folder: Path, rows: Rows) -> str:
    known = next((row for row in rows if row["kind"] == "settings"), {})
    count, alpha = known.get("n_workers", 0), known.get("alpha", 0)
    coupled = f"alpha {alpha:g} ({known.get('coupling')})" if alpha else "not coupled"
    if any(row["kind"] == "control" and row["name"] == "alpha" for row in rows):
        coupled += " at the start"
    many = f"{count} worker{'s' if count != 1 else ''} and worker 0, {coupled}"
    return (
        f"{folder.absolute().name}: {known.get('model')} on {known.get('dataset')}, "
        f"{many if count else 'worker 0 alone'}"
    )


def _scale(axis: Axes, values: Sequence[float]) -> None:
    """Make the axis logarithmic if the losses span a wide range."""
    seen = [v for v in values if v and math.isfinite(v) and v > 0]
    if seen and max(seen) > 5 * min(seen):
        axis.set_yscale("log")


def _ticks(axis: Axes, steps: Sequence[int], aside: float = 0.0) -> None:
    """Put ticks at the steps of the measurements, if these are few."""
    few = sorted(set(steps))
    if len(few) <= 5:
        axis.set_xticks(few)
        margin = aside + (0.05 * (few[-1] - few[0]) or 1.0)
        axis.set_xlim(few[0] - margin, few[-1] + margin)


def _color(k: int) -> str:
    # Grey is left out, because faded black resembles it.
    colors = [f"C{n}" for n in range(10) if n != 7]
    return "black" if k == 0 else colors[(k - 1) % len(colors)]


def _finish(axis: Axes, title: str, x: str, y: str, *, legend: bool = True) -> None:
    axis.set_title(title, fontsize="medium")
    axis.set(xlabel=x, ylabel=y)
    axis.grid(alpha=0.3)
    if legend and axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="x-small")


def _losses(axis: Axes, rows: Rows) -> None:
    workers = sorted({row["worker"] for row in rows})
    for k in workers:
        own = [row for row in rows if row["worker"] == k]
        steps = [row["step"] for row in own]
        for split, style in (("train", "-"), ("test", "--")):
            values = [row[split]["loss"] for row in own]
            label = f"worker {k}" if split == "train" and k <= _NAMED else None
            axis.plot(
                steps, values, style, color=_color(k), lw=1.8 if k == 0 else 1.1, label=label,
                marker="." if len(steps) < 3 else None, zorder=3 if k == 0 else 2,
            )  # fmt: skip
    _scale(axis, [row[split]["loss"] for row in rows for split in ("train", "test")])
    _finish(axis, "loss: train (line), test (dashes)", "minibatch steps", "nats")


def _distances(axis: Axes, rows: Rows) -> None:
    steps = [row["step"] for row in rows]
    all_pairs = np.array([row["distances"] for row in rows], dtype=float)  # None is NaN
    count = all_pairs.shape[1]
    for k in range(1, count):
        label = "worker k to 0" if k == 1 else None
        axis.plot(steps, all_pairs[:, k, 0], ".-", color=_color(k), lw=1.1, label=label)
    others = [all_pairs[:, i, j] for i in range(2, count) for j in range(1, i)]
    if others:
        mean = np.mean(others, axis=0)
        axis.plot(steps, mean, "k.--", label="mean of all pairs 1 ... n")
    axis.set_ylim(bottom=0)
    _ticks(axis, steps)
    _finish(axis, "distances", "minibatch steps", "Euclidean distance")


def _last(rows: Rows) -> list[Row]:
    last = max(row["step"] for row in rows)
    return [row for row in rows if row["step"] == last and _is_main(row)]


def _is_main(row: Row) -> bool:
    return row.get("line") == row.get("main_line")


def _barriers(axis: Axes, rows: Rows) -> None:
    rows = _last(rows)
    count = 1 + max(row["i"] for row in rows)
    heights = np.full((count, count), np.nan)
    for row in rows:
        # Training loss below the diagonal, test loss above it.
        heights[row["i"], row["j"]] = _or_nan(row["train"]["barrier"])
        heights[row["j"], row["i"]] = _or_nan(row["test"]["barrier"])
    top = float(np.nanmax(heights)) if np.isfinite(heights).any() else 0.0
    top = top or 1.0  # without barriers, all cells have the dark end
    image = axis.imshow(heights, cmap="viridis", vmin=0, vmax=top)
    axis.figure.colorbar(image, ax=axis, label="nats", fraction=0.046)
    for (i, j), height in np.ndenumerate(heights):
        if np.isfinite(height) and count <= 9:
            axis.text(
                j, i, f"{height:.2g}", ha="center", va="center",
                fontsize=9 if count <= 5 else 6,
                color="white" if height < 0.6 * top else "black",
            )  # fmt: skip
    axis.set_xticks(range(count))
    axis.set_yticks(range(count))
    step, kind = rows[0]["step"], rows[0]["line"]
    _finish(
        axis, f"barriers at step {step}, {kind}\n(train below, test above the diagonal)",
        "worker", "worker", legend=False,
    )  # fmt: skip
    axis.grid(visible=False)


def _lines(axis: Axes, rows: Rows) -> None:
    rows = _last(rows)
    pairs = sorted(rows, key=lambda row: (row["j"], row["i"]))
    shown = pairs[:_NAMED]
    for n, row in enumerate(shown):
        color = f"C{n % 10}"
        axis.plot(
            row["coefficients"], row["train"]["loss"], "-", color=color, lw=1.3,
            label=f"{row['j']} to {row['i']}",
        )  # fmt: skip
        axis.plot(row["coefficients"], row["test"]["loss"], "--", color=color, lw=0.9)
    for end in (0.0, 1.0):
        axis.axvline(end, color="0.7", lw=0.8, zorder=0)
    _scale(axis, [v for row in shown for s in ("train", "test") for v in row[s]["loss"]])
    more = f", {len(shown)} of {len(pairs)} pairs" if len(pairs) > len(shown) else ""
    _finish(
        axis, f"lines at step {rows[0]['step']}: train, test dashed{more}",
        "0 is the first worker, 1 the second", "loss (nats)",
    )  # fmt: skip


def _spectra(axis: Axes, rows: Rows) -> None:
    steps = sorted({row["step"] for row in rows})
    gap = min(np.diff(steps), default=1)
    workers = sorted({row["worker"] for row in rows})
    for n, k in enumerate(workers):
        # The points stand side by side, so that the last do not hide the first.
        shift = gap * 0.5 * (n / max(len(workers) - 1, 1) - 0.5) if len(workers) > 1 else 0.0
        own = [row for row in rows if row["worker"] == k]
        x = [row["step"] + shift for row in own for _ in (*row["right"], *row["left"])]
        y = [value for row in own for value in (*row["right"], *row["left"])]
        label = f"worker {k}" if k <= _NAMED else None
        axis.plot(x, y, ".", ms=4, color=_color(k), label=label)
    # The axis is linear near 0, which leaves room for negative eigenvalues.
    small = np.max(np.abs([v for row in rows for v in row["left"]])) or 1e-3
    axis.set_yscale("symlog", linthresh=10.0 ** math.ceil(math.log10(small)))
    _ticks(axis, steps, aside=0.3 * gap)
    axis.axhline(0, color="0.5", lw=0.8)
    _finish(
        axis, "Hessian: eigenvalues at both ends", "minibatch steps", "eigenvalue", legend=False
    )
    # The legend stands above the points, in one line or two.
    axis.set_ylim(top=axis.get_ylim()[1] * 12)
    axis.legend(fontsize="x-small", loc="upper center", ncols=4)


def _plot_density(axis: Axes, rows: Rows) -> None:
    last = max(row["step"] for row in rows)
    rows = [row for row in rows if row["step"] == last and row["worker"] <= _NAMED]
    exact = {row["worker"] for row in rows if row["kind"] == "full_spectrum"}
    for row in rows:
        if row["kind"] == "spectrum" and row["worker"] in exact:
            continue
        color, label = _color(row["worker"]), f"worker {row['worker']}"
        if row["kind"] == "full_spectrum":
            axis.hist(
                row["eigenvalues"], bins=120, density=True, histtype="step", color=color,
                label=f"{label}, all", log=True,
            )  # fmt: skip
            continue
        nodes, weights = row["density"]["nodes"], row["density"]["weights"]
        # Beyond the ends there is only the width of the Gaussians.
        grid = _density.grid_for(nodes, margin=0.0 if np.ptp(nodes) > 0 else 0.05)
        density = _density.bells(nodes, grid, _density.bandwidth_for(nodes)) @ np.array(weights)
        floor = _density.floor_for(nodes, row["density"]["size"])
        axis.plot(grid, np.maximum(density, floor), color=color, lw=1.1, label=label)
    axis.set_yscale("log")
    _finish(
        axis,
        f"density of eigenvalues at step {last}",
        "eigenvalue (σ: 1 % of the range)",
        "density",
    )


def _sharpness(axis: Axes, rows: Rows) -> None:
    for k in sorted({row["worker"] for row in rows}):
        own = [row for row in rows if row["worker"] == k]
        for split, style in (("train", ".-"), ("test", ".--")):
            label = f"worker {k}" if split == "train" and k <= _NAMED else None
            values = [row[split] for row in own]
            axis.plot([r["step"] for r in own], values, style, color=_color(k), label=label)
    _ticks(axis, [row["step"] for row in rows])
    title, scale = "sharpness: train, test dashed", "100 Δf / (1 + f)"
    # Many lines get no legend, because they have the same colours as the losses.
    few = max(row["worker"] for row in rows) <= 4
    _finish(axis, title, "minibatch steps", scale, legend=few)


def _walks(axis: Axes, rows: Rows) -> None:
    for n, row in enumerate(rows):
        label = f"{row['worker']} at {row['step']}" if n < _NAMED else None
        age = 0.4 + 0.6 * (n + 1) / len(rows)
        losses = [_or_nan(v) for v in row["losses"]]
        rise = np.array(losses) - losses[0]
        axis.plot(rise, lw=0.9, color=_color(row["worker"]), alpha=age, label=label)
    axis.axhline(rows[0]["threshold"] - rows[0]["losses"][0], color="0.4", ls="--", lw=0.8)
    _finish(axis, "random walks: worker at step", "steps of the walk", "rise of the loss (nats)")


def _mark_changes(axis: Axes, rows: Rows) -> None:
    """Mark on the first panel where hyperparameters were changed."""
    changes: dict[int, list[str]] = {}
    for row in rows:
        if row["kind"] == "control":
            changes.setdefault(row["step"], []).append(f"{row['name']} {row['value']:g}")
    for step, words in changes.items():
        axis.axvline(step, color="tab:red", lw=0.7, ls=":")
        axis.annotate(
            ", ".join(words), (step, 0.98), xycoords=("data", "axes fraction"), rotation=90,
            fontsize=6, color="tab:red", ha="right", va="top",
        )  # fmt: skip


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


_PANELS: tuple[tuple[str, Callable[[Axes, Rows], None]], ...] = (
    ("stats", _losses),
    ("distances", _distances),
    ("line", _barriers),
    ("line", _lines),
    ("spectrum", _spectra),
    ("density", _plot_density),
    ("sharpness", _sharpness),
    ("walk", _walks),
)
