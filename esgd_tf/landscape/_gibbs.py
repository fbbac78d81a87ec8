"""Samples of the Gibbs posteriors of a Gaussian prior, from s = 0 on: Q_s ∝ N(w, I/p) e^{-s f}.

Metropolis-adjusted Langevin chains, but at s = 0, where samples are exact and independent.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esgd_tf.landscape._chains import Chains, effective_sample_size, r_hat
from esgd_tf.landscape._displaced import Displaced
from esgd_tf.landscape._objective import Objective
from esgd_tf.landscape._risk import risk_at

__all__ = ["GibbsSampler", "Node"]

Array = NDArray[np.float64]
# The error of every so many samples of a chain is taken.
_EVERY = 10
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Node:
    """What the chains found at one s."""

    loss: float
    error: float
    acceptance: float
    ess: float
    r_hat: float


class GibbsSampler:
    """Chains of Q_s for one s after the other, from s = 0, where they are exact, to τ.

    Args:
        objective: Objective. f, and the error.
        precision: float > 0. τ γ, of the prior.
        chains: int >= 2. Number of chains.
        rng: np.random.Generator. The source of all that is random.
        values: pair of floats. f at the mean of the prior, and L.
    """

    def __init__(
        self,
        objective: Objective,
        precision: float,
        chains: int,
        rng: np.random.Generator,
        values: tuple[float, float],
    ) -> None:
        self._objective, self._precision, self._count = objective, precision, chains
        self._rng = rng
        self._landscape = Displaced(objective, chains)
        self._start = objective.flatten(objective.start)
        self._least = self._most = values[0]
        self._reach = values[1]
        self._chains: Chains | None = None

    def at(self, s: float, burn_in: int, samples: int, bar: Any) -> Node:
        """Sample Q_s; the chains go on from where they were."""
        series = np.empty((self._count, samples))
        if s == 0:
            for t in range(samples):
                series[:, t] = self._checked(self._landscape(self._of_prior())[0])
                bar.update(1)
            error = float(series.std() / math.sqrt(series.size))
            return Node(float(series.mean()), error, 1.0, float(series.size), r_hat(series))
        # U = s f + τγ/2 ‖d‖².
        target = self._landscape.target(s, self._precision / s)
        if self._chains is None:
            # The optimal step for the prior alone.
            step = 0.8 / (self._precision * self._objective.size ** (1 / 3))
            self._chains = Chains(target, self._of_prior(), step, self._rng)
        else:
            self._chains.retarget(target)
        self._chains.burn_in(burn_in, bar)
        moved = 0.0
        for t in range(samples):
            moved += self._chains.step().mean()
            series[:, t] = self._checked(self._losses(s))
            bar.update(1)
        ess = effective_sample_size(series)
        error = float(series.std() / math.sqrt(ess))
        return Node(float(series.mean()), error, moved / samples, ess, r_hat(series))

    def risks(self, samples: int, bar: Any) -> Array:
        """Return the error [chains, kept] along the chains, which are at s = τ by now."""
        assert self._chains is not None
        kept = []
        for t in range(samples):
            self._chains.step()
            if t % _EVERY == 0:
                points = self._start + self._chains.points
                found = [risk_at(self._objective, point) for point in points]
                kept.append([risk if math.isfinite(risk) else 1.0 for risk in found])
            bar.update(1)
        return np.array(kept).T

    def _of_prior(self) -> Array:
        shape = (self._count, self._objective.size)
        return self._rng.standard_normal(shape) / math.sqrt(self._precision)

    def _losses(self, s: float) -> Array:
        assert self._chains is not None
        square = (self._chains.points**2).sum(axis=1)
        return (self._chains.energies - 0.5 * self._precision * square) / s

    def _checked(self, values: Array) -> Array:
        """Return losses as they are, or refuse what no loss of the range can be."""
        self._least, self._most = (
            min(self._least, float(values.min())), max(self._most, float(values.max())),
        )  # fmt: skip
        if not self._most - self._least <= self._reach + _ROUNDING:
            raise ValueError(
                f"The mean loss takes values from {self._least:.4g} to {self._most:.4g}, which no "
                f"interval of length {self._reach:g} holds: use a bounded loss, such as "
                "BoundedCrossEntropy, or a larger `loss_range`."
            )
        return values
