"""Sharpness: how far the loss rises nearby, in the worst direction.

    ascent    100 (f(w + δ) - f(w)) / (1 + f(w)), δ by gradient ascent on all the data until ‖δ‖
              reaches a distance or the steps run out (elementary-walkers' measure)
    epsilon   100 (max_δ f(w + δ) - f(w)) / (1 + f(w)),  |δ_i| <= ε (|w_i| + 1), by L-BFGS-B
    sam       f(w + ρ g / ‖g‖) - f(w),                   g = ∇f(w)
    asam      f(w + ρ T² g / ‖T g‖) - f(w),              T = diag(|w_i| + η)

Where the gradient is exactly 0 there is no direction to begin with, and to first order no rise;
that does not make the point flat. There, `ascent`, `sam` and `asam` begin in the direction in which
the loss curves up most, which is found by climbing on the sphere of the radius asked for,

    u ← ρ v / ‖v‖,   v = T g(w + T u) + c u,   c the largest ‖T g(w + T u)‖ / ρ so far,

from a fixed random u (the term with c keeps directions that curve down from winning by size), and
`stopped_by` says "stationary". `epsilon` begins at several random points of its box as well, where
the loss changes by more than its slope at w can explain, as around a minimum.

A gradient that is not exactly 0 is a direction like any other, be it rounding: where training has
converged, `sam`, `asam` and `ascent` follow it, and `epsilon` says more.

Sources: Keskar et al., "On large-batch training for deep learning: generalization gap and sharp
minima", ICLR 2017, metric 2.1 (epsilon); Foret et al., "Sharpness-aware minimization", ICLR 2021
(sam); Kwon et al., "ASAM: adaptive sharpness-aware minimization", ICML 2021 (asam).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from esgd_tf import _checks
from esgd_tf.landscape._climb import Array, Climb, maximise_in_box, one_step, steepest
from esgd_tf.landscape._metrics import splits_of
from esgd_tf.landscape._objective import Objective, Selection
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Sharpness", "sharpness"]

Kind = Literal["ascent", "epsilon", "sam", "asam"]

_RADIUS = {"ascent": 0.01, "epsilon": 1e-3, "sam": 0.05, "asam": 0.5}
_STEPS = {"ascent": 1000, "epsilon": 10}


@dataclasses.dataclass(frozen=True, eq=False)
class Sharpness(Result):
    """A sharpness.

    Attributes:
        kind: "ascent", "epsilon", "sam" or "asam".
        value: The measure of that kind, on the data that were climbed.
        loss: f(w).
        perturbed_loss: f(w + δ).
        distance: ‖δ‖.
        radius: The distance, ε or ρ asked for.
        steps: Of the ascent or of L-BFGS-B; 1 for the others.
        gradient_evaluations: Passes over the data with a gradient.
        stopped_by: "distance", "steps", "optimizer" or "formula"; "stationary" where the gradient
            at w is 0, and so is nothing but the curvature to go by.
        elsewhere: The same measure of the same δ on other data, by their names.
    """

    kind: str
    value: float
    loss: float
    perturbed_loss: float
    distance: float
    radius: float
    steps: int
    gradient_evaluations: int
    stopped_by: str
    elsewhere: dict[str, float]

    def rows(self) -> Iterator[Row]:
        """Yield the sharpness, at its radius."""
        yield Row("", self.kind, self.radius, self.value)

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot the loss before and after."""
        ax = axes(ax)
        losses = [self.loss, self.perturbed_loss]
        ax.bar(["f(w)", "f(w + δ)"], losses, color=color, label=label)
        ax.set(
            ylabel="loss", title=f"{self.kind} sharpness {self.value:.3g}, ‖δ‖ {self.distance:.3g}"
        )
        return ax


def sharpness(
    model: keras.Model | Sequence[Any],
    loss: Any = None,
    data: Any = None,
    *,
    kind: Kind = "ascent",
    radius: float | None = None,
    step_size: float = 1e-4,
    max_steps: int | None = None,
    eta: float = 0.01,
    evaluate_on: Any = None,
    batch_size: int | None = None,
    variables: Selection = None,
    progress: bool | None = None,
) -> Sharpness:
    """Measure a sharpness. Nothing in it differs from call to call.

    Args:
        model: keras.Model that is built, or a list of weights. The network, as for
            `HessianOperator`.
        loss: nested structure of losses, or callable. The loss, as for `HessianOperator`. Defaults
            to None, which takes the one that the model was compiled with.
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data, as for
            `HessianOperator`. Defaults to None, which means that there are none.
        kind: "ascent", "epsilon", "sam" or "asam". Which sharpness. Defaults to 'ascent'.
        radius: float > 0. The distance of the ascent, ε, or ρ. Defaults to None, which means 0.01
            for the ascent, 1e-3 for epsilon, 0.05 for sam and 0.5 for asam.
        step_size: float > 0. The step size of the ascent. Defaults to 1e-4.
        max_steps: int >= 1. The most steps of the ascent or of L-BFGS-B. Defaults to None, which
            means 1,000 of the ascent and 10 of L-BFGS-B.
        eta: float >= 0. η of asam. Defaults to 0.01.
        evaluate_on: mapping of data by name. Other data on which δ is measured too: {"test": (x,
            y)}. Defaults to None, which means none.
        batch_size: int >= 1. Examples at a time, for arrays, as for `HessianOperator`. Defaults to
            None, which means 512, or 32 where it matters how the data are cut.
        variables: list of variables, layers, names or indices, or a callable. The weights that f is
            a function of, as for `HessianOperator`. Defaults to None, which means all trainable
            ones.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: An argument is out of range, or the loss or its gradient is not finite at these
            weights or on the way.
    """
    _checks.choice("kind", kind, tuple(_RADIUS))
    radius = _checks.real("radius", _RADIUS[kind] if radius is None else radius, above=0)
    step_size = _checks.real("step_size", step_size, above=0)
    steps = _STEPS.get(kind, 1) if max_steps is None else max_steps
    steps = _checks.integer("max_steps", steps, at_least=1)
    eta = _checks.real("eta", eta, at_least=0)
    objective = Objective(model, loss, data, batch_size=batch_size, variables=variables)
    before = objective.finite_start()
    start = objective.flatten(objective.start)
    with progress_bar(int(steps), f"{kind} sharpness", progress) as bar:
        climb = Climb(objective, start, bar)
        if kind == "ascent":
            delta, taken, why = _ascend(climb, step_size, radius, int(steps))
        elif kind == "epsilon":
            delta, taken, why = maximise_in_box(climb, radius * (np.abs(start) + 1), int(steps))
        else:
            scale = np.abs(start) + eta if kind == "asam" else np.ones_like(start)
            delta, why = one_step(climb, radius, scale)
            taken = 1

    def measure(at: Objective, reference: float, where: str) -> tuple[float, float]:
        after = at.evaluate(at.unflatten(start + delta))["loss"]
        if np.isnan(after):
            raise ValueError(
                f"The loss{where} is NaN at the perturbed weights, at a distance of "
                f"{np.linalg.norm(delta):.3g}: take a smaller `radius`."
            )
        rise = after - reference
        return after, rise if kind in ("sam", "asam") else 100 * rise / (1 + reference)

    after, value = measure(objective, before, "")
    elsewhere = {}
    for name, part in splits_of(evaluate_on).items() if evaluate_on is not None else ():
        other = Objective(model, loss, part, batch_size=batch_size, variables=variables)
        elsewhere[name] = measure(other, other.finite_start(), f" on {name}")[1]
    return Sharpness(
        kind=kind,
        value=value,
        loss=before,
        perturbed_loss=after,
        distance=float(np.linalg.norm(delta)),
        radius=float(radius),
        steps=taken,
        gradient_evaluations=climb.evaluations,
        stopped_by=why,
        elsewhere=elsewhere,
        measured_at=objective.measured_at,
    )


def _ascend(climb: Climb, rate: float, distance: float, steps: int) -> tuple[Array, int, str]:
    delta, stationary = np.zeros(climb.size), False
    for step in range(1, steps + 1):
        _, slope = climb(delta)
        if step == 1 and not np.any(slope):
            # A hundredth of the way: the rest is for the ascent.
            delta, stationary = 0.01 * steepest(climb, distance, np.ones(climb.size)), True
            if not np.any(delta):
                return delta, step, "stationary"
            continue
        delta = delta + rate * slope
        if np.linalg.norm(delta) > distance:
            return delta, step, "stationary" if stationary else "distance"
    return delta, steps, "stationary" if stationary else "steps"
