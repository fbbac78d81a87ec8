"""Climbing the loss: one step of SAM or ASAM, the direction in which it curves up, and a box.

What `sharpness`, `m_sharpness` and `worst_case_radius` share; the equations are in `sharpness.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from esgd_tf.landscape._objective import Objective
from esgd_tf.landscape._vectors import random_unit

__all__ = ["Array", "Climb", "NotFiniteError", "maximise_in_box", "one_step", "steepest"]

Array = NDArray[np.float64]


class NotFiniteError(ValueError):
    """The loss or its gradient is not finite away from the weights of the model."""


class Climb:
    """f and its gradient at w + δ. δ is kept in float64: small steps would be lost in w + δ."""

    def __init__(self, objective: Objective, start: Array, bar: Any) -> None:
        self._objective, self._start, self._bar = objective, start, bar
        self.evaluations = 0

    @property
    def size(self) -> int:
        return len(self._start)

    def __call__(self, delta: Array) -> tuple[float, Array]:
        self.evaluations += 1
        self._bar.update(1)
        value, slope = self._objective.value_and_gradient(
            self._objective.unflatten(self._start + delta)
        )
        if not (np.isfinite(value) and np.all(np.isfinite(slope))):
            what = "loss" if not np.isfinite(value) else "gradient"
            if not np.any(delta):
                raise ValueError(
                    f"The {what} is not finite at the weights of the model: nothing to measure."
                )
            raise NotFiniteError(
                f"The {what} is not finite after {self.evaluations - 1} steps: take a smaller "
                "`step_size` or `radius`."
            )
        return value, slope

    def value(self, delta: Array) -> float:
        """Return f alone."""
        return self._objective.evaluate(self._objective.unflatten(self._start + delta))["loss"]


def one_step(climb: Climb, radius: float, scale: Array) -> tuple[Array, str]:
    """Return ρ T² g / ‖T g‖ with T = diag(scale)."""
    _, slope = climb(np.zeros(climb.size))
    length = np.linalg.norm(scale * slope)
    if length > 0:
        return radius * scale**2 * slope / length, "formula"
    if np.any(slope):
        raise ValueError(
            "All weights with a gradient are 0, and with `eta=0` those cannot move: take a "
            "positive `eta`."
        )
    return steepest(climb, radius, scale), "stationary"


def steepest(climb: Climb, radius: float, scale: Array) -> Array:
    """Return δ with ‖δ / scale‖ = radius along which the loss rises most; 0 if it rises nowhere."""
    u = radius * random_unit(np.random.default_rng(0), climb.size)
    before, largest = climb.value(np.zeros(climb.size)), 0.0
    best, rise = np.zeros(climb.size), 0.0
    for _ in range(_TURNS):
        value, slope = climb(scale * u)
        if value - before > rise:
            best, rise = scale * u, value - before
        largest = max(largest, float(np.linalg.norm(scale * slope)) / radius)
        v = scale * slope + largest * u
        if not np.any(v):
            break
        u = radius * v / np.linalg.norm(v)
    return best


def maximise_in_box(climb: Climb, box: Array, steps: int) -> tuple[Array, int, str]:
    """Look for the largest loss in a box around w, by L-BFGS-B from w and from random points.

    Args:
        climb: Climb. f and its gradient at w + δ.
        box: array of shape [n], >= 0. The largest |δ_i| of each weight.
        steps: int >= 1. The most iterations of each climb.

    Returns:
        (δ [n], iterations, why it stopped): "optimizer", "steps", or "stationary" if the gradient
        at w is 0. δ is 0 where no place was found that is higher than w.
    """
    value, slope = climb(np.zeros_like(box))
    starts = [np.zeros_like(box)] if np.any(slope) else []
    points = np.random.default_rng(0).uniform(-1, 1, (_POINTS, len(box)))
    changes = np.nan_to_num(np.abs([climb.value(box * u) - value for u in points]))
    # What is beyond the slope is curvature, of which a climb from w sees nothing at first.
    if not starts or changes.max() > _BEYOND * np.abs(box * slope).sum():
        starts += list(points)
    best, highest, taken, why = np.zeros_like(box), 0.0, 0, "optimizer"
    for start in starts:
        u, rise, iterations, reason = _climb_in_box(climb, box, start, value, steps)
        if rise > highest:
            best, highest, taken, why = u, rise, iterations, reason
    return box * best, taken, "stationary" if not np.any(slope) else why


def _climb_in_box(
    climb: Climb, box: Array, start: Array, value: float, steps: int
) -> tuple[Array, float, int, str]:
    """Return a local maximum in units of the box, the rise to it, iterations, and why it stopped.

    The loss is taken in units in which the first trial step, of the length of the gradient, takes
    all weights that matter to the sides of the box: there, the maximum of a linear loss lies. As it
    is, the loss in a small box changes by less than the tolerances.
    """
    from scipy.optimize import minimize

    _, slope = climb(box * start)
    unit = 1e-3 * float(np.mean(np.abs(box * slope)))
    if unit == 0:
        return start, climb.value(box * start) - value, 0, "optimizer"

    def downhill(u: Array) -> tuple[float, Array]:
        after, slope = climb(box * u)
        return (value - after) / unit, -box * slope / unit

    result = minimize(
        downhill, start, jac=True, method="L-BFGS-B",
        bounds=[(-1, 1)] * len(box), options={"maxiter": steps, "ftol": 0, "gtol": 0},
    )  # fmt: skip
    why = "steps" if result.nit >= steps else "optimizer"
    return result.x, -float(result.fun) * unit, int(result.nit), why


# Steps on the sphere at a point without slope.
_TURNS = 60
# Points of the box that are tried, and how many times what the slope explains the loss must change.
_POINTS, _BEYOND = 8, 2.0
