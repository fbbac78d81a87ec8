"""Local entropy: the logarithm of the volume of low loss around the weights.

    F(x, γ) = (1/β) log ∫ exp(-β [f(x') + γ/2 ‖x - x'‖²]) dx'

Entropy-SGD descends -F with β = 1. Here F is estimated relative to a reference scope γ_ref, by
thermodynamic integration. With ⟨·⟩ the mean over the Gibbs density in the integral, and n weights,

    dF/dγ = -1/2 ⟨‖d‖²⟩,   d = x' - x.

The free volume (f = 0) alone has F_0 = n/(2β) log(2π/(βγ)), which would drown the rest; so what is
integrated, over log γ, is the difference to it, 1/2 (n/β - γ ⟨‖d‖²⟩). Integration by parts gives
⟨d·∇f + γ ‖d‖²⟩ = n/β, hence

    c = d·∇f + γ ‖d‖² - n/β

has mean 0 for certain and, where the proximal term dominates, nearly all of the noise of ‖d‖²: it
is subtracted with the coefficient that leaves the least variance (a control variate). For f a
multiple of ‖x' - x‖² nothing is left of the noise at all.

The other estimate, to second order, is in `laplace.py`.

Sources: Chaudhari et al., "Entropy-SGD", ICLR 2017, eq. 2 and appendix; Kirkwood 1935 and Gelman
and Meng, "Simulating normalizing constants", 1998 (thermodynamic integration).
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from esgd_tf import _checks
from esgd_tf.landscape._chains import Chains, effective_sample_size, r_hat
from esgd_tf.landscape._displaced import Displaced
from esgd_tf.landscape._objective import Objective, Selection
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LocalEntropyEstimate", "NotConvergedWarning", "checked_gammas", "local_entropy"]

Array = NDArray[np.float64]

# Clenshaw and Curtis' rule with five nodes on [-1, 1]; every second of them is Simpson's rule.
_NODES = -np.cos(np.pi * np.arange(5) / 4)
_WEIGHTS = np.array([1, 8, 12, 8, 1]) / 15
_SIMPSON = np.array([1, 0, 4, 0, 1]) / 3

_R_HAT, _ESS = 1.05, 100.0


class NotConvergedWarning(UserWarning):
    """The chains have not converged: the estimate and its error cannot be trusted."""


@dataclasses.dataclass(frozen=True, eq=False)
class LocalEntropyEstimate(Result):
    """The local entropy at several scopes, relative to the largest.

    Attributes:
        gammas: [g], ascending.
        values: [g], F(x, γ) - F(x, γ_ref); 0 at the last. NaN where the estimate does not exist.
        standard_errors: [g], from the chains or the probes. Two of them hold the value in 93 to 97
            of 100, but for the quadrature errors, where the chains have converged; for the probes
            see `laplace_local_entropy`.
        quadrature_errors: [g], of the integral over log γ; 0 for the Laplace estimate.
        loss: f(x).
        size: n, the number of weights.
        inverse_temperature: β.
        method: "langevin" or "laplace".
        nodes: [q] scopes at which chains ran; the rest is by node, [q].
        square_distance: ⟨‖x - x'‖²⟩.
        acceptance: Fraction of proposals taken.
        step_size: Of the Langevin steps, h.
        ess: Effective sample size, of all chains together.
        r_hat: Near 1 where the chains agree.
        chains: Number of chains.
        burn_in: Steps before the first sample at each node.
        samples: Samples at each node and chain.
        converged: Whether R-hat < 1.05 and ess >= 100 at all nodes.
    """

    gammas: Array
    values: Array
    standard_errors: Array
    quadrature_errors: Array
    loss: float
    size: int
    inverse_temperature: float
    method: str
    nodes: Array
    square_distance: Array
    acceptance: Array
    step_size: Array
    ess: Array
    r_hat: Array
    chains: int
    burn_in: int
    samples: int
    converged: bool

    @property
    def reference(self) -> float:
        """The scope that values are relative to."""
        return float(self.gammas[-1])

    @property
    def excess(self) -> Array:
        """[g], the values without the free volume n/(2β) log(γ_ref/γ): 0 where the loss is flat."""
        free = self.size / (2 * self.inverse_temperature) * np.log(self.reference / self.gammas)
        return self.values - free

    def rows(self) -> Iterator[Row]:
        """Yield the values by scope."""
        for at, value, error in zip(self.gammas, self.values, self.standard_errors, strict=True):
            yield Row("", self.method, at, value, error)

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot the values without the free volume against gamma, with two standard errors."""
        ax = axes(ax)
        error = 2 * np.hypot(self.standard_errors, self.quadrature_errors)
        ax.errorbar(
            self.gammas, self.excess, yerr=error, ms=3, capsize=2, color=color,
            fmt="o-" if self.method == "langevin" else "s:", label=label or self.method,
        )  # fmt: skip
        ax.set(xscale="log", xlabel="scope γ", ylabel="local entropy − that of a flat loss")
        ax.legend()
        return ax


def local_entropy(
    model: keras.Model | Sequence[Any],
    loss: Any = None,
    data: Any = None,
    gammas: ArrayLike = (1.0, 10.0, 100.0),
    *,
    chains: int = 4,
    burn_in: int = 200,
    samples: int = 1000,
    inverse_temperature: float = 1.0,
    batch_size: int | None = None,
    variables: Selection = None,
    seed: int = 0,
    progress: bool | None = None,
) -> LocalEntropyEstimate:
    """Estimate the local entropy by thermodynamic integration along Langevin chains.

    Each interval between two gammas has five nodes in log γ (Clenshaw and Curtis); at each,
    Metropolis-adjusted Langevin chains on all the data go on from where those of the next larger
    scope ended. That takes (4 (g - 1) + 1) chains (burn_in + samples) gradients over all the data.

    Args:
        model: keras.Model that is built, or a list of weights. The network, as for
            `HessianOperator`.
        loss: nested structure of losses, or callable. The loss, as for `HessianOperator`. Defaults
            to None, which takes the one that the model was compiled with.
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data, as for
            `HessianOperator`. Defaults to None, which means that there are none.
        gammas: array of shape [g]. Scopes > 0, at least 2 different ones; the largest is the
            reference. Defaults to (1.0, 10.0, 100.0).
        chains: int >= 2. Number of chains. Defaults to 4.
        burn_in: int >= 0. Steps of each chain before its first sample at each node, in which the
            step size is fitted. Defaults to 200.
        samples: int >= 8. Steps of each chain with a sample. Defaults to 1000.
        inverse_temperature: float > 0. β. With β = N, the number of examples, and the mean negative
            log likelihood as loss, the density is the Bayesian posterior. Defaults to 1.0.
        batch_size: int >= 1. Examples at a time, for arrays, as for `HessianOperator`. Defaults to
            None, which means 512, or 32 where it matters how the data are cut.
        variables: list of variables, layers, names or indices, or a callable. The weights that f is
            a function of, as for `HessianOperator`. Defaults to None, which means all trainable
            ones.
        seed: int >= 0. The seed of the chains. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Warns:
        NotConvergedWarning: The chains disagree (R-hat) or are too short (effective sample size).

    Raises:
        ValueError: An argument is out of range, or the loss is not finite at these weights.
    """
    gammas = checked_gammas(gammas)
    chains = _checks.integer("chains", chains, at_least=2)
    samples = _checks.integer("samples", samples, at_least=8)
    burn_in = _checks.integer("burn_in", burn_in, at_least=0)
    beta = _checks.real("inverse_temperature", inverse_temperature, above=0)
    objective = Objective(model, loss, data, batch_size=batch_size, variables=variables)
    value = objective.finite_start()
    n = objective.size
    landscape = Displaced(objective, chains)
    logs = np.log(gammas)
    # The nodes of all intervals; neighbours share the gamma between them.
    inner = [(a + b) / 2 + (b - a) / 2 * _NODES[1:] for a, b in itertools.pairwise(logs)]
    nodes = np.concatenate([logs[:1], *inner])
    rng = np.random.default_rng(seed)
    results: list[_Node] = []
    sampler: Chains | None = None
    total = len(nodes) * (burn_in + samples)
    with progress_bar(total, "local entropy", progress) as bar:
        for log_gamma in nodes[::-1]:
            gamma = float(np.exp(log_gamma))
            target = landscape.target(beta, gamma)
            if sampler is None:
                start = rng.standard_normal((chains, n)) / np.sqrt(beta * gamma)
                # The optimal step for the proximal term alone.
                sampler = Chains(target, start, 0.8 / (beta * gamma * n ** (1 / 3)), rng)
            else:
                sampler.retarget(target)
            sampler.burn_in(burn_in, bar)
            results.append(_sample(sampler, landscape, beta, gamma, samples, bar))
    results.reverse()
    slopes = np.array([r.slope for r in results])
    errors = np.array([r.error for r in results])
    values, spread, quadrature = _integrated(logs, slopes, errors)
    free = n / (2 * beta) * (logs[-1] - logs)
    # NumPy's, not Python's, which may lose a NaN.
    worst = float(np.max([r.r_hat for r in results]))
    fewest = float(np.min([r.ess for r in results]))
    converged = bool(worst < _R_HAT and fewest >= _ESS)
    if not converged:
        warnings.warn(
            f"The Langevin chains have not converged (R-hat up to {worst:.3f}, effective sample "
            f"size down to {fewest:.0f}): raise `burn_in` and `samples`, or gamma.",
            NotConvergedWarning,
            stacklevel=2,
        )
    return LocalEntropyEstimate(
        gammas=gammas,
        values=values + free,
        standard_errors=spread,
        quadrature_errors=quadrature,
        loss=value,
        size=n,
        inverse_temperature=beta,
        method="langevin",
        nodes=np.exp(nodes),
        square_distance=np.array([r.square_distance for r in results]),
        acceptance=np.array([r.acceptance for r in results]),
        step_size=np.array([r.step_size for r in results]),
        ess=np.array([r.ess for r in results]),
        r_hat=np.array([r.r_hat for r in results]),
        chains=int(chains),
        burn_in=int(burn_in),
        samples=int(samples),
        converged=converged,
        measured_at=objective.measured_at,
    )


@dataclasses.dataclass(frozen=True)
class _Node:
    """What the chains found at one scope; `slope` is d(F - F_0)/d log γ."""

    slope: float
    error: float
    square_distance: float
    acceptance: float
    step_size: float
    ess: float
    r_hat: float


def _sample(
    sampler: Chains, landscape: Displaced, beta: float, gamma: float, samples: int, bar: Any
) -> _Node:
    """Run the chains and estimate d(F - F_0)/d log γ = 1/2 (n/β - γ ⟨‖d‖²⟩)."""
    count, n = sampler.points.shape
    square, identity = np.empty((count, samples)), np.empty((count, samples))
    moved = 0.0
    for t in range(samples):
        moved += sampler.step().mean()
        d = sampler.points
        square[:, t] = (d**2).sum(axis=1)
        # β d·(∇f + γ d) is d·∇U, which the sampler has.
        identity[:, t] = (d * sampler.slopes).sum(axis=1) / beta - n / beta
        bar.update(1)
    plain = 0.5 * (n / beta - gamma * square)
    spread = identity.var()
    factor = 0.0 if spread == 0 else np.mean((plain - plain.mean()) * identity) / spread
    series = plain - factor * identity
    ess = effective_sample_size(series)
    return _Node(
        slope=float(series.mean()),
        error=float(series.std() / np.sqrt(ess)),
        square_distance=float(square.mean()),
        acceptance=moved / samples,
        step_size=sampler.step_size,
        # The series may be better than what it is made of: judge the chains by the distance.
        ess=effective_sample_size(square),
        r_hat=r_hat(square),
    )


def _integrated(logs: Array, slopes: Array, errors: Array) -> tuple[Array, Array, Array]:
    """Return the integrals from the last gamma to each, their errors, and those of the rule.

    Going down from the reference the sign turns: F(γ) - F(γ_ref) = -∫ from γ to γ_ref.
    """
    count = len(logs)
    coefficients = np.zeros((count, len(slopes)))
    quadrature = np.zeros(count)
    for k in range(count - 2, -1, -1):
        half = (logs[k + 1] - logs[k]) / 2
        here = slice(4 * k, 4 * k + 5)
        coefficients[k] = coefficients[k + 1]
        coefficients[k, here] -= half * _WEIGHTS
        difference = abs(half * ((_WEIGHTS - _SIMPSON) @ slopes[here]))
        quadrature[k] = quadrature[k + 1] + difference
    return coefficients @ slopes, np.sqrt(coefficients**2 @ errors**2), quadrature


def checked_gammas(gammas: ArrayLike) -> Array:
    """Return the scopes, sorted, or raise a ValueError."""
    gammas = np.unique(np.asarray(gammas, np.float64))
    if len(gammas) < 2 or not np.all(np.isfinite(gammas) & (gammas > 0)):
        raise ValueError(
            "`gammas` must be at least two different positive numbers (the largest is the "
            f"reference); got {gammas.tolist()}."
        )
    return gammas
