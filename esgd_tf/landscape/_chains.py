"""Langevin chains with an accept step, and how to tell whether they have converged.

A step of the Metropolis-adjusted Langevin algorithm (MALA) for a density ∝ exp(-U(x)) proposes

    y = x - h ∇U(x) + sqrt(2 h) N(0, I)

and accepts it with probability min(1, exp(-U(y)) q(x|y) / (exp(-U(x)) q(y|x))), q the density of
the proposal. The chain then samples the density itself, at any step size h; without the accept step
(as in Entropy-SGD's inner loop) it samples one that is off by O(h).

Sources: Roberts and Tweedie, "Exponential convergence of Langevin distributions and their discrete
approximations", 1996; Roberts and Rosenthal, "Optimal scaling of discrete approximations to
Langevin diffusions", 1998 (accept 57 %); Gelman and Rubin 1992 and Vehtari et al., "Rank-
normalization, folding, and localization: an improved R-hat", 2021 (R-hat of split chains, effective
sample size); Geyer, "Practical Markov chain Monte Carlo", 1992 (where to cut autocorrelations).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chains", "effective_sample_size", "r_hat"]

Array = NDArray[np.float64]
_ACCEPT = 0.574


class Chains:
    """Several chains of one target that advance together.

    Args:
        target: callable. Given points of shape [chains, n], returns (U of shape [chains], ∇U of
            shape [chains, n]).
        start: array of shape [chains, n]. Where the chains start.
        step_size: float > 0. h to begin with.
        rng: np.random.Generator. The source of the proposals and of accepting.
    """

    def __init__(
        self,
        target: Callable[[Array], tuple[Array, Array]],
        start: Array,
        step_size: float,
        rng: np.random.Generator,
    ) -> None:
        self._rng, self.step_size = rng, step_size
        self.points = start.copy()
        self.retarget(target)

    def retarget(self, target: Callable[[Array], tuple[Array, Array]]) -> None:
        """Go on from the same points with another target."""
        self._target = target
        self.energies, self.slopes = target(self.points)

    def step(self, adapt: float = 0.0) -> NDArray[np.bool_]:
        """Take one step of each chain; return which moved.

        Args:
            adapt: float >= 0. How much log h follows the rate of acceptance; 0 keeps h, and only
                then the target is sampled exactly. Defaults to 0.0.
        """
        h, shape = self.step_size, self.points.shape
        noise = self._rng.standard_normal(shape)
        proposed = self.points - h * self.slopes + np.sqrt(2 * h) * noise
        energies, slopes = self._target(proposed)
        back = self.points - proposed + h * slopes
        log_ratio = self.energies - energies - (back**2).sum(1) / (4 * h) + (noise**2).sum(1) / 2
        # A proposal where the energy is not finite is never taken.
        log_ratio = np.where(np.isfinite(energies) & ~np.isnan(log_ratio), log_ratio, -np.inf)
        moved = np.log(self._rng.random(len(log_ratio))) < log_ratio
        self.points = np.where(moved[:, None], proposed, self.points)
        self.slopes = np.where(moved[:, None], slopes, self.slopes)
        self.energies = np.where(moved, energies, self.energies)
        if adapt:
            rate = np.exp(np.minimum(log_ratio, 0.0)).mean()
            self.step_size *= float(np.exp(adapt * (rate - _ACCEPT)))
        return moved

    def burn_in(self, steps: int, bar: Any) -> None:
        """Step without looking, and let the step size converge (Robbins and Monro)."""
        for t in range(steps):
            self.step(adapt=2.0 / (t + 1) ** 0.6)
            bar.update(1)


def r_hat(series: Array) -> float:
    """Return R-hat of split chains: near 1 if they all have seen the same distribution.

    Each of the m chains is cut into halves, to see a trend as well. With W the mean variance within
    the halves, of n samples each, and B/n the variance of their means, R-hat² = (n-1)/n + B/(n W).

    Args:
        series: array of shape [chains, samples]. The samples of one quantity.
    """
    half = series.shape[1] // 2
    if half < 2:
        return float("nan")
    halves = np.concatenate([series[:, :half], series[:, -half:]])
    within = halves.var(axis=1, ddof=1).mean()
    between = halves.mean(axis=1).var(ddof=1)
    if within <= _ROUNDING * max(np.abs(series).max() ** 2, 1e-300):
        # A constant has converged, unless the chains differ in it.
        return 1.0 if between <= _ROUNDING * np.abs(series).max() ** 2 else float("inf")
    return float(np.sqrt((half - 1) / half + between / within))


_ROUNDING = 1e-24


def effective_sample_size(series: Array) -> float:
    """Return how many independent samples have the variance of this mean.

    m n / τ with τ = 1 + 2 Σ_t ρ_t, and ρ_t combined over the m chains so that chains that disagree
    lower it. Autocorrelations are summed in pairs as long as the pairs are positive and decrease
    (Geyer).

    Args:
        series: array of shape [chains, samples]. The samples of one quantity.
    """
    m, n = series.shape
    if n < 4:
        return float(m * n)
    within = series.var(axis=1, ddof=1).mean()
    between = series.mean(axis=1).var(ddof=1) if m > 1 else 0.0
    total = within * (n - 1) / n + between
    if total <= _ROUNDING * max(np.abs(series).max() ** 2, 1e-300):
        return float(m * n)
    centered = series - series.mean(axis=1, keepdims=True)
    size = 2 ** int(np.ceil(np.log2(2 * n)))
    spectrum = np.fft.rfft(centered, size)
    covariance = np.fft.irfft(spectrum * spectrum.conj(), size)[:, :n].mean(axis=0) / n
    rho = 1 - (within * (n - 1) / n - covariance) / total
    rho[0] = 1.0
    pairs = rho[: n - n % 2].reshape(-1, 2).sum(axis=1)
    stop = np.argmax(pairs < 0) if (pairs < 0).any() else len(pairs)
    tau = -1 + 2 * np.minimum.accumulate(pairs[: max(stop, 1)]).sum()
    # Anticorrelated samples may be worth more than independent ones, within reason.
    return float(m * n / max(tau, 1 / np.log10(m * n)))
