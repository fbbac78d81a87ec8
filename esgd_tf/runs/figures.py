"""Pictures of one or several runs: error, loss and scope against gradient evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from esgd_tf._files import replaced_when_whole

__all__ = ["Curve", "literal", "new_figure", "plot_comparison", "plot_history"]

Curve = tuple[str, Sequence[float], Sequence[float]]

_TRAIN, _VALIDATION, _ENSEMBLE = "tab:gray", "tab:blue", "tab:orange"


def plot_history(rows: Sequence[Mapping[str, float]], path: Path, title: str) -> None:
    """Plot the rows of history.csv.

    The axis counts gradient evaluations, so that runs of different optimizers compare at equal
    cost.

    Args:
        rows: sequence of mappings of floats by name. One mapping per effective epoch, with
            `gradient_evaluations`, `loss`, `accuracy`, and `val_loss`, `val_accuracy`, `scope`,
            `outer_gradient_norm` and `gradient_norm`, or for replicas `coupling`, `distance`,
            `norm_center`, `test_ensemble_loss` and `test_ensemble_accuracy`, where they are known.
        path: Path. A PNG file, replaced when the new one is whole.
        title: str. The text above the panels.
    """
    has_scope = any("scope" in row for row in rows)
    has_replicas = any("coupling" in row for row in rows)
    third = has_scope or has_replicas
    figure = new_figure(10.5 if third else 7.5, 3.4)
    axes = figure.subplots(1, 3 if third else 2)

    def plot(
        axis: Any, name: str, label: str, color: str, transform: Callable[[float], float] = float
    ) -> None:
        points = [(r["gradient_evaluations"], transform(r[name])) for r in rows if name in r]
        if points:
            marker = "o" if len(points) == 1 else None
            axis.plot(*zip(*points, strict=True), label=label, color=color, marker=marker)

    def error(accuracy: float) -> float:
        return 100.0 * (1.0 - accuracy)

    # Without an inner loop there is one set of weights, so the labels name none.
    train, test = ("train, at x'", "test, at the anchor") if has_scope else ("train", "test")
    if has_replicas:
        train, test = "train, mean of the replicas", "test, at the center"
    plot(axes[0], "accuracy", train, _TRAIN, error)
    plot(axes[0], "val_accuracy", test, _VALIDATION, error)
    plot(axes[0], "test_ensemble_accuracy", "test, ensemble", _ENSEMBLE, error)
    axes[0].set_ylabel("error (%)")
    plot(axes[1], "loss", train, _TRAIN)
    plot(axes[1], "val_loss", test, _VALIDATION)
    plot(axes[1], "test_ensemble_loss", "test, ensemble", _ENSEMBLE)
    axes[1].set_ylabel("cross entropy (nats)")
    _make_logarithmic(axes[1])
    if has_replicas:
        plot(axes[2], "coupling", "coupling", "tab:green")
        plot(axes[2], "distance", "rms distance to the center", "tab:red")
        plot(axes[2], "norm_center", "rms weight of the center", "tab:purple")
        _make_logarithmic(axes[2])
        axes[2].set_ylabel("replicas")
    elif has_scope:
        plot(axes[2], "scope", r"scope $\gamma$", "tab:green")
        plot(axes[2], "gradient_norm", r"$\Vert\nabla f\Vert$", "tab:orange")
        plot(axes[2], "outer_gradient_norm", r"$\Vert x - \mu\Vert$", "tab:red")
        _make_logarithmic(axes[2])
        axes[2].set_ylabel("at the last outer update")
    for axis in axes:
        axis.set_xlabel("gradient evaluations")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
    figure.suptitle(literal(title), fontsize="medium")
    with replaced_when_whole(path) as partial:
        figure.savefig(partial, dpi=150)


def plot_comparison(curves: Sequence[Curve], path: Path, title: str, split: str = "test") -> None:
    """Plot the test error of several runs against gradient evaluations.

    Args:
        curves: sequence of tuples. The label, the gradient evaluations and the test errors in % of
            each run. Runs with the same label are seeds of one experiment: they share a colour, and
            the legend counts them.
        path: Path. A PNG file, replaced when the new one is whole.
        title: str. The text above the picture.
        split: str. Of which images the errors are, for the label. Defaults to "test".
    """
    figure = new_figure(7.5, 4.2)
    axis = figure.subplots()
    labels = list(dict.fromkeys(label for label, _, _ in curves))
    for number, label in enumerate(labels):
        of_label = [curve for curve in curves if curve[0] == label]
        seeds = f" ({len(of_label)} seeds)" if len(of_label) > 1 else ""
        for k, (_, evaluations, errors) in enumerate(of_label):
            axis.plot(
                evaluations,
                errors,
                # The first ten labels have solid lines; the next ten have the same colours, dashed.
                color=f"C{number % 10}",
                linestyle="-" if number < 10 else "--",
                marker="o" if len(errors) == 1 else None,
                alpha=1.0 if len(of_label) == 1 else 0.7,
                label=literal(f"{label}{seeds}") if k == 0 else None,
            )
    axis.set_xlabel("gradient evaluations")
    axis.set_ylabel(f"{split} error (%)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.suptitle(literal(title), fontsize="medium")
    with replaced_when_whole(path) as partial:
        figure.savefig(partial, dpi=150)


def literal(text: str) -> str:
    """Return a text that Matplotlib shows as it is.

    Matplotlib reads text between two dollar signs as a formula, and leaves labels that begin with
    an underscore out of a legend.
    """
    shown = text.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _make_logarithmic(axis: Any) -> None:
    """Use a logarithmic axis, unless there is nothing above 0 to show on it (--gamma 0)."""
    if any(value > 0 for line in axis.lines for value in line.get_ydata()):
        axis.set_yscale("log")


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of so many inches, which needs no screen."""
    # Matplotlib takes a second to import. Its object interface needs no screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
