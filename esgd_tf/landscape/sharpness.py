"""Sharpness: how far the loss rises nearby, in the worst direction.

    ascent    100 (f(w + δ) - f(w)) / (1 + f(w)), δ by gradient ascent on all the data until ‖δ‖
              reaches a distance or the steps run out (elementary-walkers' measure)
    epsilon   100 (max_δ f(w + δ) - f(w)) / (1 + f(w)),  |δ_i| <= ε (|w_i| + 1), by L-BFGS-B
    sam       f(w + ρ g / ‖g‖) - f(w),                   g = ∇f(w)
    asam      f(w + ρ T² g / ‖T g‖) - f(w),              T = diag(|w_i| + η)

Sources: Keskar et al., "On large-batch training for deep learning: generalization gap and sharp
minima", ICLR 2017, metric 2.1 (epsilon); Foret et al., "Sharpness-aware minimization", ICLR 2021
(sam); Kwon et al., "ASAM: adaptive sharpness-aware minimization", ICML 2021 (asam).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray

from esgd_tf.landscape._metrics import splits_of
from esgd_tf.landscape._objective import Objective, Selection
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Sharpness", "sharpness"]

Kind = Literal["ascent", "epsilon", "sam", "asam"]
Array = NDArray[np.float64]

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
        stopped_by: "distance", "steps", "optimizer" or "formula".
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

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss before and after."""
        ax = axes(ax)
        ax.bar(["f(w)", "f(w + δ)"], [self.loss, self.perturbed_loss])
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
    """Measure a sharpness. Nothing in it is random.

    Args:
        model: As for `HessianOperator`.
        loss: As there.
        data: As there.
        kind: "ascent", "epsilon", "sam" or "asam".
        radius: Distance of the ascent (0.01 if None), ε (1e-3), or ρ (0.05 for sam, 0.5 for asam).
        step_size: Of the ascent.
        max_steps: Of the ascent (1,000 if None) or of L-BFGS-B (10).
        eta: η of asam, >= 0.
        evaluate_on: Other data, by name, on which δ is measured too: {"test": (x, y)}.
        batch_size: As for `HessianOperator`.
        variables: As there.
        progress: Whether to show a bar; None for "on a terminal".

    Raises:
        ValueError: An argument is out of range, or the loss is not finite at these weights.
    """
    if kind not in _RADIUS:
        raise ValueError(f"`kind` must be one of {', '.join(_RADIUS)}; got {kind!r}.")
    radius = _RADIUS[kind] if radius is None else radius
    steps = _STEPS.get(kind, 1) if max_steps is None else max_steps
    for name, number in (("radius", radius), ("step_size", step_size)):
        if not (np.isfinite(number) and number > 0):
            raise ValueError(f"`{name}` must be a positive number; got {number}.")
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"`max_steps` must be a positive integer; got {steps!r}.")
    if not (np.isfinite(eta) and eta >= 0):
        raise ValueError(f"`eta` must not be negative; got {eta}.")
    objective = Objective(model, loss, data, batch_size=batch_size, variables=variables)
    before = objective.finite_start()
    start = objective.flatten(objective.start)
    with progress_bar(int(steps), f"{kind} sharpness", progress) as bar:
        climb = _Climb(objective, start, bar)
        if kind == "ascent":
            delta, taken, why = _ascend(climb, step_size, radius, int(steps))
        elif kind == "epsilon":
            delta, taken, why = _maximise_in_box(climb, radius * (np.abs(start) + 1), int(steps))
        else:
            scale = np.abs(start) + eta if kind == "asam" else np.ones(1)
            _, slope = climb(np.zeros_like(start))
            length = np.linalg.norm(scale * slope)
            # At a stationary point there is no direction, and to first order no rise.
            delta = radius * scale**2 * slope / length if length > 0 else np.zeros_like(start)
            taken, why = 1, "formula"

    def measure(at: Objective, reference: float) -> tuple[float, float]:
        after = at.evaluate(at.unflatten(start + delta))["loss"]
        rise = after - reference
        return after, rise if kind in ("sam", "asam") else 100 * rise / (1 + reference)

    after, value = measure(objective, before)
    elsewhere = {}
    for name, part in splits_of(evaluate_on).items() if evaluate_on is not None else ():
        other = Objective(model, loss, part, batch_size=batch_size, variables=variables)
        elsewhere[name] = measure(other, other.finite_start())[1]
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
    )


class _Climb:
    """f and its gradient at w + δ. δ is kept in float64: small steps would be lost in w + δ."""

    def __init__(self, objective: Objective, start: Array, bar: Any) -> None:
        self._objective, self._start, self._bar = objective, start, bar
        self.evaluations = 0

    def __call__(self, delta: Array) -> tuple[float, Array]:
        self.evaluations += 1
        self._bar.update(1)
        return self._objective.value_and_gradient(self._objective.unflatten(self._start + delta))


def _ascend(climb: _Climb, rate: float, distance: float, steps: int) -> tuple[Array, int, str]:
    delta = np.zeros_like(climb._start)
    for step in range(1, steps + 1):
        _, slope = climb(delta)
        if not np.all(np.isfinite(slope)):
            raise ValueError(
                f"The gradient is not finite after {step - 1} steps of ascent: take a smaller "
                "`step_size`."
            )
        delta = delta + rate * slope
        if np.linalg.norm(delta) > distance:
            return delta, step, "distance"
    return delta, steps, "steps"


def _maximise_in_box(climb: _Climb, box: Array, steps: int) -> tuple[Array, int, str]:
    from scipy.optimize import minimize

    value, slope = climb(np.zeros_like(box))
    # In units of the box, and the loss in units in which the first trial step, of the length of the
    # gradient, takes all weights that matter to the sides of the box: there, the maximum of a
    # linear loss lies. As it is, the loss in a small box changes by less than the tolerances.
    unit = 1e-3 * float(np.mean(np.abs(box * slope)))
    if unit == 0:
        return np.zeros_like(box), 0, "optimizer"

    def downhill(u: Array) -> tuple[float, Array]:
        after, slope = climb(box * u)
        return (value - after) / unit, -box * slope / unit

    result = minimize(
        downhill, np.zeros_like(box), jac=True, method="L-BFGS-B",
        bounds=[(-1, 1)] * len(box), options={"maxiter": steps, "ftol": 0, "gtol": 0},
    )  # fmt: skip
    why = "steps" if result.nit >= steps else "optimizer"
    return box * result.x, int(result.nit), why
