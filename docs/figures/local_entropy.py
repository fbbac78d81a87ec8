"""Plot the two pictures of docs/concepts/local_entropy.md, beside this script.

    python3 docs/figures/local_entropy.py

takes about ten seconds. `local_entropy.png` shows a loss f of one weight, with a sharp deep minimum
and a wide shallow one, and its negative local entropy -F for three scopes gamma, by quadrature.
`langevin.png` shows the anchor x, the Langevin weight x' and the mean over two outer updates on the
same loss, moved by the library's own rules (`esgd_tf.optimizers.langevin`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

# So that the script runs from a checkout as it is.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from esgd_tf.optimizers import langevin

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

# The colours of Okabe and Ito, which are told apart by colour-blind readers too.
BLACK, ORANGE, BLUE, GREEN, VERMILLION = "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00"
GAMMAS = (500.0, 20.0, 2.0)

# The loss: a shallow bowl with two wells, (depth, place, width).
_BOWL = 0.02
_WELLS = ((3.4, -1.2, 0.1), (2.8, 1.2, 0.55))
# Where the integrals over x' are taken; beyond, their integrand vanishes for the scopes drawn.
_GRID: Array = np.linspace(-9.0, 9.0, 36001)


class Walk(NamedTuple):
    """What two outer updates visit, a number for each gradient evaluation.

    Attributes:
        weights: x' after each Langevin step, the start of an outer update included.
        means: The mean of x' at the same points.
        anchors: The anchor x, one for each outer update and one after the last.
    """

    weights: Array
    means: Array
    anchors: Array


def loss(x: ArrayLike) -> Array:
    """Return f(x).

    Args:
        x: array. Values of the one weight.
    """
    x = np.asarray(x, float)
    wells = sum(depth * np.exp(-0.5 * ((x - at) / width) ** 2) for depth, at, width in _WELLS)
    return np.asarray(_BOWL * x**2 - wells)


def gradient(x: ArrayLike) -> Array:
    """Return f'(x).

    Args:
        x: array. Values of the one weight.
    """
    x = np.asarray(x, float)
    wells = sum(
        depth * (x - at) / width**2 * np.exp(-0.5 * ((x - at) / width) ** 2)
        for depth, at, width in _WELLS
    )
    return np.asarray(2 * _BOWL * x + wells)


def negative_local_entropy(x: ArrayLike, gamma: float, f: Function = loss) -> Array:
    """Return -F(x, gamma) = -log ∫ exp(-f(x') - gamma/2 (x - x')^2) dx', by quadrature.

    Args:
        x: array. Anchors.
        gamma: float > 0. The scope.
        f: callable. The loss. Defaults to loss, the one that is drawn.
    """
    exponents = _exponents(x, gamma, f)
    highest = exponents.max(axis=-1)
    integral = np.trapezoid(np.exp(exponents - highest[..., None]), _GRID, axis=-1)
    return np.asarray(-highest - np.log(integral))


def mean(x: ArrayLike, gamma: float, f: Function = loss) -> Array:
    """Return <x'>, the mean under exp(-f(x') - gamma/2 (x - x')^2), by quadrature.

    Args:
        x: array. Anchors.
        gamma: float > 0. The scope.
        f: callable. The loss. Defaults to loss, the one that is drawn.
    """
    exponents = _exponents(x, gamma, f)
    weights = np.exp(exponents - exponents.max(axis=-1, keepdims=True))
    return np.asarray(
        np.trapezoid(weights * _GRID, _GRID, axis=-1) / np.trapezoid(weights, _GRID, axis=-1)
    )


def walk(
    start: float = 0.0,
    *,
    outer_updates: int = 2,
    langevin_steps: int = 20,
    learning_rate: float = 1.0,
    langevin_learning_rate: float = 0.05,
    gamma: float = 1.0,
    noise: float = 0.5,
    averaging: float = 0.75,
    seed: int = 3,
) -> Walk:
    """Move x, x' and the mean by the library's rules.

    Args:
        start: float. The first anchor. Defaults to 0.0, between the two minima.
        outer_updates: int >= 1. How many outer updates to make. Defaults to 2.
        langevin_steps: int >= 1. L. Defaults to 20.
        learning_rate: float > 0. The outer step size. Defaults to 1.0.
        langevin_learning_rate: float > 0. eta', the inner step size. Defaults to 0.05.
        gamma: float >= 0. The scope. Defaults to 1.0.
        noise: float >= 0. epsilon. Defaults to 0.5.
        averaging: float in [0, 1). Weight of the old mean. Defaults to 0.75.
        seed: int >= 0. Seed of the noise. Defaults to 3.
    """
    generator = np.random.default_rng(seed)
    scale = np.sqrt(2 * langevin_learning_rate) * noise
    anchors, weights, means = [np.float64(start)], [], []
    for _ in range(outer_updates):
        anchor = anchors[-1]
        state = langevin.start(anchor)
        visited = [state]
        for _ in range(langevin_steps):
            state = langevin.langevin_step(
                state,
                anchor,
                gradient(state.weights),
                learning_rate=langevin_learning_rate,
                gamma=gamma,
                averaging=averaging,
                displacement=scale * generator.normal(),
            )
            visited.append(state)
        weights.append([s.weights for s in visited])
        means.append([s.mean for s in visited])
        anchors.append(anchor - learning_rate * langevin.outer_gradient(anchor, state.mean))
    return Walk(np.array(weights), np.array(means), np.array(anchors))


def _exponents(x: ArrayLike, gamma: float, f: Function) -> Array:
    """Return -f(x') - gamma/2 (x - x')^2, the last axis being the grid of x'."""
    distance = np.asarray(x, float)[..., None] - _GRID
    return np.asarray(-f(_GRID) - 0.5 * gamma * distance**2)


def _figure(path: Path, plot: Callable[[Any], None]) -> None:
    figure = Figure(figsize=(6.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=13)
    axes.spines[["top", "right"]].set_visible(False)
    plot(axes)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    sys.stdout.write(f"{path.name}\n")


def plot_local_entropy(axes: Any) -> None:
    """Plot f and -F for three scopes.

    Args:
        axes: matplotlib.axes.Axes. What to plot on.
    """
    x = np.linspace(-3, 3, 601)
    axes.plot(x, loss(x), color=BLACK, lw=2, label="f(x)")
    styles = ((BLUE, "-."), (ORANGE, "--"), (VERMILLION, "-"))
    for gamma, (color, style) in zip(GAMMAS, styles, strict=True):
        # Less the entropy of the Gaussian alone, so that a constant f would stay as it is.
        value = negative_local_entropy(x, gamma) - 0.5 * np.log(gamma / (2 * np.pi))
        lowest = int(np.argmin(value))
        axes.plot(x, value, style, color=color, lw=2.2, label=f"−F(x, γ), γ = {gamma:g}")
        axes.plot(x[lowest], value[lowest], "o", color=color, ms=8)
    lowest = int(np.argmin(loss(x)))
    axes.plot(x[lowest], loss(x[lowest]), "o", color=BLACK, ms=8)
    axes.set_xlabel("weight x", fontsize=15)
    axes.set_ylabel("f, −F (nats)", fontsize=15)
    axes.set_ylim(-4.0, 1.9)
    axes.legend(fontsize=13, ncols=2, loc="upper center", frameon=False)


def plot_walk(axes: Any) -> None:
    """Plot x, x' and the mean over two outer updates.

    Args:
        axes: matplotlib.axes.Axes. What to plot on.
    """
    found = walk()
    steps = found.weights.shape[1] - 1
    for update, (weights, means) in enumerate(zip(found.weights, found.means, strict=True)):
        at = update * steps + np.arange(steps + 1)
        named = update == 0
        axes.plot(at, weights, ".-", color=ORANGE, lw=0.9, ms=8, label="x′" if named else None)
        axes.plot(at, means, "--", color=BLUE, lw=2.4, label="mean of x′" if named else None)
        axes.hlines(
            found.anchors[update], at[0], at[-1], color=BLACK, lw=2.6,
            label="anchor x" if named else None,
        )  # fmt: skip
    end = steps * len(found.weights)
    axes.plot(end, found.anchors[-1], "s", color=BLACK, ms=8)
    axes.axhline(_WELLS[1][1], color="0.45", lw=1.2, ls=":")
    axes.annotate(
        "wide minimum of f", (0, _WELLS[1][1]), xytext=(0, 4), textcoords="offset points",
        fontsize=13, color="0.3",
    )  # fmt: skip
    axes.set_xlabel(f"gradient evaluations (L = {steps})", fontsize=15)
    axes.set_ylabel("weight", fontsize=15)
    axes.set_xlim(-0.8, end + 1.5)
    axes.legend(fontsize=13, loc="lower right", frameon=False)


def main() -> None:
    """Plot both pictures and write them."""
    folder = Path(__file__).parent
    _figure(folder / "local_entropy.png", plot_local_entropy)
    _figure(folder / "langevin.png", plot_walk)


if __name__ == "__main__":
    main()
