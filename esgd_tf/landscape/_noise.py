"""Gaussian noise on weights, in antithetic pairs, and standard errors of what is measured by it.

Sources: Hammersley and Morton, "A new Monte Carlo technique: antithetic variates", 1956 (pairs);
Efron and Stein, "The jackknife estimate of variance", 1981.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from esgd_tf import _checks
from esgd_tf.landscape._objective import Objective
from esgd_tf.landscape._types import Tensors
from esgd_tf.landscape._vectors import student_factor

__all__ = [
    "Array", "Disturbance", "Noise", "checked_epsilon", "checked_samples", "jackknife", "normal",
    "pairs",
]  # fmt: skip

Noise = Literal["multiplicative", "additive", "mixed"]
Array = NDArray[np.float64]


def jackknife(
    bound: float, sigma: float, ratio: float, before: Array, here: Array, beyond: Array
) -> tuple[float, float]:
    """Return the standard error of sigma, with its bias, and the bias.

    Without pair i, the increase meets the bound at another sigma. To find it, the increase is taken
    to be a power of sigma nearby, which is exact for a quadratic.

    Args:
        bound: float > 0. The bound on the increase.
        sigma: float > 0. The sigma at which the mean of all pairs meets the bound.
        ratio: float > 1. The ratio of the sigmas around it.
        before: array of shape [m]. The increases of the pairs at the lower sigma.
        here: array of shape [m]. The increases at sigma.
        beyond: array of shape [m]. The increases at the upper sigma.
    """
    count = len(here)
    if count < 2:
        return float("nan"), float("nan")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        low, middle, high = (
            np.append((a.sum() - a) / (count - 1), a.mean()) for a in (before, here, beyond)
        )
        power = np.log(high / low) / np.log(ratio)
        roots = sigma * (bound / middle) ** (1 / power)
    *without, of_all = np.where(power > 0, roots, np.nan)
    # Where one pair makes all of the increase, no sigma meets the bound without it: the error is
    # computed from the other pairs.
    rest = np.array([root for root in without if np.isfinite(root)])
    if len(rest) < 2 or not np.isfinite(of_all):
        return float("nan"), float("nan")
    bias = float((count - 1) * (rest.mean() - of_all))
    spread = np.sqrt((count - 1) * rest.var())
    return float(np.hypot(student_factor(count) * spread, bias)), bias


class Disturbance:
    """Weights plus noise, as lists that an objective takes.

    Args:
        objective: Objective. Whose weights are disturbed.
        noise: "multiplicative", "additive" or "mixed". How the noise acts: its standard deviation
            is σ |w_i|, σ, or sqrt(σ² w_i² + ε²).
        epsilon: float >= 0. ε of mixed noise.
    """

    def __init__(self, objective: Objective, noise: str, epsilon: float) -> None:
        self._objective, self.size = objective, objective.size
        self.measured_at = objective.measured_at
        self._start = objective.flatten(objective.start)
        self._noise, self._epsilon = noise, epsilon

    def __call__(self, sigma: float, z: Array) -> Tensors:
        if self._noise == "mixed":
            step = np.hypot(sigma * self._start, self._epsilon) * z
        else:
            step = sigma * z * (self._start if self._noise == "multiplicative" else 1.0)
        return self._objective.unflatten(self._start + step)


def normal(seed: int, sample: int, size: int) -> Array:
    """Return the noise z of one sample; that of every second sample is minus the one before."""
    z = np.random.default_rng([seed, sample // 2]).standard_normal(size)
    return -z if sample % 2 else z


def pairs(values: Array) -> Array:
    """Return the means of pairs [m, ...] of values [2 m, ...]."""
    return (values[::2] + values[1::2]) / 2


def checked_samples(samples: int, noise: str) -> int:
    """Return the number of samples, made even, or raise a ValueError."""
    samples = _checks.integer("samples", samples, at_least=2)
    _checks.choice("noise", noise, ("multiplicative", "additive", "mixed"))
    return samples + samples % 2


def checked_epsilon(epsilon: float, noise: str) -> float:
    """Return the ε of mixed noise, 0 for other noise, or raise a ValueError."""
    epsilon = _checks.real("epsilon", epsilon, above=0)
    return epsilon if noise == "mixed" else 0.0
