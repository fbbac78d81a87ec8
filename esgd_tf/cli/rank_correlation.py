"""Kendall's rank correlation of two quantities over runs, with a bootstrap interval.

    τ_b = Σ_ij s_ij t_ij / sqrt(Σ_ij s_ij² Σ_ij t_ij²),
    s_ij = sign(x_i - x_j), t_ij = sign(y_i - y_j)

1 where both rank the runs alike, -1 where they do so in opposite order, 0 where one says nothing of
the other. The interval is from runs sampled with replacement, by percentiles; samples in which one
quantity is constant have no τ and are left out.

Sources: Kendall, "A new measure of rank correlation", 1938 (τ_b: 1945); Jiang et al., "Fantastic
generalization measures and where to find them", ICLR 2020 (as a test of measures); Efron, 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["RESAMPLES", "Correlation", "correlation"]

RESAMPLES = 2000
_PERCENT = (2.5, 97.5)
# Pairs of runs in memory at a time.
_AT_ONCE = 2_000_000


class Correlation(NamedTuple):
    """A rank correlation.

    Attributes:
        tau: Kendall's τ_b; NaN where a quantity is the same in all runs.
        low: The lower end of the 95 % interval.
        high: The upper end.
    """

    tau: float
    low: float
    high: float


def correlation(x: Sequence[float], y: Sequence[float], *, seed: int = 0) -> Correlation:
    """Return the rank correlation of two quantities.

    Args:
        x: sequence of n floats. One quantity, by run.
        y: sequence of n floats. The other.
        seed: int >= 0. The seed of the samples of runs. Defaults to 0.
    """
    from scipy.stats import kendalltau

    tau = float(kendalltau(x, y).statistic)
    if math.isnan(tau):
        return Correlation(tau, math.nan, math.nan)
    s, t = _signs(x), _signs(y)
    # Many samples at once: SciPy's function would take a second for each pair of quantities.
    chosen = np.random.default_rng(seed).integers(0, len(s), (RESAMPLES, len(s)))
    parts = np.array_split(chosen, max(RESAMPLES * len(s) ** 2 // _AT_ONCE, 1))
    taus = np.concatenate([_taus(s, t, part) for part in parts])
    low, high = np.nanpercentile(taus, _PERCENT)
    return Correlation(tau, float(low), float(high))


def _taus(
    s: NDArray[np.float64], t: NDArray[np.float64], chosen: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return τ_b of samples of the runs [samples, n]; NaN where a quantity is constant."""
    rows, columns = chosen[:, :, None], chosen[:, None, :]
    s, t = s[rows, columns], t[rows, columns]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (s * t).sum((1, 2)) / np.sqrt((s**2).sum((1, 2)) * (t**2).sum((1, 2)))


def _signs(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    return np.sign(array[:, None] - array[None, :])
