"""The pictures of `landscape`: one for each measure, a color for each kind of run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from esgd_tf.runs.figures import new_figure

__all__ = ["Shown", "picture"]


class Shown(NamedTuple):
    """A result, with its color and its name in the legend (None for none)."""

    result: Any
    color: str
    label: str | None
    title: str


def picture(measure: str, shown: Sequence[Shown]) -> Any:
    """Return the figure of a measure."""
    if measure == "plane":
        columns = min(len(shown), 3)
        lines = math.ceil(len(shown) / columns)
        figure = new_figure(4.6 * columns, 3.8 * lines)
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax, e in zip(panels, shown, strict=False):
            e.result.plot(ax=ax)
            ax.set_title(e.title, fontsize="medium")
        for ax in panels[len(shown) :]:
            ax.axis("off")
        return figure
    if measure == "local_energy":
        figure = new_figure(8.4, 3.8)
        panels = figure.subplots(1, 2)
        for ax, metric in zip(panels, ("error", "loss"), strict=True):
            for result, color, label, _ in shown:
                for split, style in (("train", "-"), ("test", "--")):
                    value, error = result.curve(split, metric)
                    factor = 100.0 if metric == "error" else 1.0
                    ax.errorbar(
                        result.sigmas, factor * value, yerr=2 * factor * error, ls=style,
                        color=color, marker=".", capsize=2, lw=1,
                        label=f"{label}, {split}" if label else None,
                    )  # fmt: skip
            unit = " (% points)" if metric == "error" else " (nats)"
            ax.set(xlabel="σ of multiplicative noise", ylabel=f"increase of {metric}{unit}")
            ax.grid(alpha=0.3)
        panels[0].legend(fontsize="small")
        return figure
    figure = new_figure(6.4, 4.2)
    ax = figure.subplots()
    plot = _PLOT[measure]
    for result, color, label, _ in shown:
        plot(ax, result, color, label)
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="small")
    return figure


def _spectrum(ax: Any, result: Any, color: str, label: str | None) -> None:
    top, low = result["largest"].eigenvalues, result["smallest"].eigenvalues[::-1]
    ax.plot(range(1, len(top) + 1), top, "o-", color=color, label=label)
    ax.plot(range(1, len(low) + 1), low, "v:", color=color)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="rank from the end", ylabel="eigenvalue: largest ●, smallest ▼")
    ax.set_yscale("symlog", linthresh=1e-2)


def _density(ax: Any, result: Any, color: str, label: str | None) -> None:
    result.plot(ax=ax)
    # The line just plotted, and its band.
    ax.lines[-1].set(color=color, label=label or "_", lw=1)
    if ax.collections:
        ax.collections[-1].set(color=color)


def _sharpness(ax: Any, result: Any, color: str, label: str | None) -> None:
    kinds = list(result)
    # A measure of 0 or less has no place on a logarithmic axis.
    ax.plot(kinds, [result[k].value for k in kinds], "o", color=color, label=label)
    ax.set(ylabel="sharpness (each kind has its own unit)")
    ax.set_yscale("symlog", linthresh=1e-3)


def _local_entropy(ax: Any, result: Any, color: str, label: str | None) -> None:
    for method, style in (("langevin", "o-"), ("laplace", "s:")):
        found = result[method]
        ax.errorbar(
            found.gammas, found.excess, yerr=2 * found.standard_errors, fmt=style, ms=3,
            capsize=2, color=color, label=f"{label}, {method}" if label else None,
        )  # fmt: skip
    ax.set(xscale="log", xlabel="scope γ", ylabel="local entropy − that of a flat loss")


def _interpolate(ax: Any, result: Any, color: str, label: str | None) -> None:
    for split, style in (("train", "-"), ("test", "--")):
        name = f"{label}, {split}" if label else None
        ax.plot(result.coefficients, result.values[split]["loss"], style, color=color,
                label=name)  # fmt: skip
    ax.set(xlabel="0 is the first run, 1 the second", ylabel="loss (nats)", yscale="log")


def _random_walk(ax: Any, result: Any, color: str, label: str | None) -> None:
    for number, losses in enumerate(result.losses):
        ax.plot(losses, color=color, lw=0.8, label=label if number == 0 else None)
    ax.axhline(result.threshold, color=color, ls=":", lw=0.8)
    ax.set(xlabel="step", ylabel="loss (nats)")


_PLOT = {
    "spectrum": _spectrum,
    "density": _density,
    "sharpness": _sharpness,
    "local_entropy": _local_entropy,
    "interpolate": _interpolate,
    "random_walk": _random_walk,
}
