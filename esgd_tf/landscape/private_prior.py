"""The bound on Entropy-SGD's posterior, whose prior has seen the data, but learnt little of each.

With f the mean over m examples of a loss from an interval of length L, the local entropy at w is
that of the Gaussian prior P = N(w, I/(τ γ)), and its Gibbs posterior is Q = Q_τ:

    Q_s ∝ P e^{-s f},   ln E_P e^{-τ f} = βF up to a constant (β = τ in `local_entropy.py`),
    KL(Q‖P) = -τ E_τ f - ln E_P e^{-τ f} = ∫ from 0 to τ of (E_s f - E_τ f) ds,                (1)

where E_s is the mean under Q_s; for d/ds ln E_P e^{-s f} = -E_s f. E_s f falls with s (its slope is
minus the variance of f), so that on s_0 = 0 < s_1 < ... < s_K = τ

    Σ_k h_k (E_{k+1} f - E_τ f) <= KL(Q‖P) <= Σ_k h_k (E_k f - E_τ f),   h_k = s_{k+1} - s_k.  (2)

Metropolis-adjusted Langevin chains sample each Q_s. If w is ε-differentially private, with
probability 1 - δ over the examples

    kl(R̂(Q)‖R(Q)) <= [KL(Q‖P) + ln(2 m) + 2 max(ln(3/δ), m ε²)] / (m - 1),                    (3)

and one exact sample w of the density e^{β_w F_τ(w)}, F_τ = ln E_P e^{-τ f}, is ε = 2 β_w L τ/m
private. Entropy-SGLD samples it approximately. Entropy-SGD does not sample at all: (3) is then what
its bound would be, and need not hold.

Source: Dziugaite and Roy, "Entropy-SGD optimizes the prior of a PAC-Bayes bound: generalization
properties of Entropy-SGD and data-dependent priors", ICML 2018, theorems 5.4 and 5.5 and appendix
B.3 (there E_P e^{-τ f} is a mean over samples of P, which a rare sample decides; (2) has no such
means, and errs to the safe side).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from esgd_tf import _checks
from esgd_tf._warn import warn
from esgd_tf.landscape._absorbed import without_statistics
from esgd_tf.landscape._chains import effective_sample_size
from esgd_tf.landscape._gibbs import GibbsSampler
from esgd_tf.landscape._objective import Objective
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes
from esgd_tf.landscape._risk import checked_examples
from esgd_tf.landscape.kl import kl_inverse
from esgd_tf.landscape.local_entropy import NotConvergedWarning

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PrivatePriorBound", "private_prior_bound"]

Array = NDArray[np.float64]
_R_HAT, _ESS = 1.05, 100.0


@dataclasses.dataclass(frozen=True, eq=False)
class PrivatePriorBound(Result):
    """A bound on the true error of the Gibbs posterior of the local entropy.

    Attributes:
        bound: What R(Q) is at most, with probability 1 - delta, if the weights are as private as
            `epsilon` says, and at the estimates of `risk` and `kl`.
        bound_above: The same at two standard errors above them.
        risk: R̂(Q), the mean training error under the posterior.
        risk_error: Its standard error.
        kl: The upper sum of (2) for KL(Q‖P), in nats.
        kl_error: Its standard error.
        kl_below: The lower sum.
        log_partition: ln E_P e^{-τ f}, by the trapezoidal rule: the local entropy.
        nats: The parts of the numerator of (3): "kl", "examples" and "privacy and confidence".
        epsilon: ε, how private the weights are taken to be.
        delta: The probability that the examples are such that the bound fails.
        gamma: γ, the scope.
        tau: τ, the inverse temperature.
        loss_range: L.
        size: The number of weights.
        examples: m, the number of training examples.
        temperatures: [K + 1], the s of (2).
        losses: [K + 1], E_s f.
        loss_errors: [K + 1], their standard errors.
        acceptance: [K + 1], the fraction of proposals taken; 1 at s = 0, which is sampled exactly.
        ess: [K + 1], effective sample size, of all chains together.
        r_hat: [K + 1]; near 1 where the chains agree.
        chains: Number of chains.
        burn_in: Steps before the first sample at each s.
        samples: Samples at each s and chain.
        converged: Whether R-hat < 1.05 and ess >= 100 at each s.
    """

    bound: float
    bound_above: float
    risk: float
    risk_error: float
    kl: float
    kl_error: float
    kl_below: float
    log_partition: float
    nats: dict[str, float]
    epsilon: float
    delta: float
    gamma: float
    tau: float
    loss_range: float
    size: int
    examples: int
    temperatures: Array
    losses: Array
    loss_errors: Array
    acceptance: Array
    ess: Array
    r_hat: Array
    chains: int
    burn_in: int
    samples: int
    converged: bool

    def rows(self) -> Iterator[Row]:
        """Yield the bound, the error that it starts from, and the divergence."""
        yield Row("", "bound", "", self.bound)
        yield Row("", "risk", "", self.risk, self.risk_error)
        yield Row("", "kl", "", self.kl, self.kl_error)

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot E_s f against s, with two standard errors: the divergence is an area under it."""
        ax = axes(ax)
        ax.errorbar(
            self.temperatures, self.losses, yerr=2 * self.loss_errors, fmt=".-", capsize=2,
            color=color, label=label,
        )  # fmt: skip
        ax.axhline(self.losses[-1], color="0.8", lw=0.8, zorder=0)
        ax.set(
            xlabel="inverse temperature s", ylabel="mean loss under the posterior",
            title=f"error {self.risk:.3g}, KL {self.kl:.3g} nats, bound {self.bound:.3g}",
        )  # fmt: skip
        if label:
            ax.legend()
        return ax


def private_prior_bound(
    model: keras.Model | Sequence[Any],
    loss: Any,
    data: Any,
    *,
    gamma: float = 1.0,
    tau: float | None = None,
    loss_range: float = 4.0,
    epsilon: float | None = None,
    delta: float = 0.05,
    steps: int = 10,
    chains: int = 4,
    burn_in: int = 200,
    samples: int = 1000,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> PrivatePriorBound:
    """Bound the true error of the Gibbs posterior, by the local entropy and a private prior.

    It takes (steps chains (burn_in + samples)) gradients over all the data. The errors of the
    chains are not among the `delta`: `bound_above` has twice their standard errors on top.

    Args:
        model: keras.Model that is built, or a list of weights. The network, whose weights are the
            mean of the prior. With a list of weights, `loss` is a function of (weights, x, y) from
            0 to 1 that is loss and error in one.
        loss: nested structure of losses, or callable. The bounded loss of the posterior:
            `BoundedCrossEntropy`. None takes the loss that the model was compiled with.
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The TRAINING
            data, as for `HessianOperator`, 8 examples or more, without sample weights.
        gamma: float > 0. γ, the scope; the variance of the prior is 1/(τ γ). Defaults to 1.0.
        tau: float > 0. τ, the inverse temperature of the posterior. Defaults to None, which means
            sqrt(m).
        loss_range: float > 0. L, the length of the interval that holds the loss of every example.
            Defaults to 4.0.
        epsilon: float >= 0. ε, how private the weights are; 0 for weights that do not depend on the
            data. Defaults to None, which means 2 L τ/m: that they are an exact sample of e^F.
        delta: float in (0, 1). δ. Defaults to 0.05.
        steps: int >= 1. K, the number of steps from s = 0 to τ; they grow with s. Defaults to 10.
        chains: int >= 2. Number of chains. Defaults to 4.
        burn_in: int >= 0. Steps of each chain before its first sample at each s, in which the step
            size is fitted. Defaults to 200.
        samples: int >= 8. Steps of each chain with a sample. Defaults to 1000.
        batch_size: int >= 1. Examples at a time, for arrays. Defaults to None, which means 512.
        seed: int >= 0. The seed of the chains. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Warns:
        NotConvergedWarning: The chains disagree (R-hat) or are too short (effective sample size).

    Raises:
        ValueError: An argument is out of range, the loss is not finite or leaves an interval of
            length L, or the data are too few or weighted.
    """
    gamma = _checks.real("gamma", gamma, above=0)
    reach = _checks.real("loss_range", loss_range, above=0)
    delta = _checks.real("delta", delta, above=0, below=1)
    steps = _checks.integer("steps", steps, at_least=1)
    chains = _checks.integer("chains", chains, at_least=2)
    burn_in = _checks.integer("burn_in", burn_in, at_least=0)
    samples = _checks.integer("samples", samples, at_least=8)
    metrics = {"error": "error"} if isinstance(model, keras.Model) else None
    objective = without_statistics(
        Objective(model, loss, data, batch_size=batch_size, metrics=metrics)
    )
    m, value = checked_examples(objective), objective.finite_start()
    tau = math.sqrt(m) if tau is None else _checks.real("tau", tau, above=0)
    if epsilon is None:
        epsilon = 2 * reach * tau / m
    epsilon = _checks.real("epsilon", epsilon, at_least=0)
    sampler = GibbsSampler(
        objective, tau * gamma, chains, np.random.default_rng(seed), (value, reach)
    )
    temperatures = tau * (np.arange(steps + 1) / steps) ** 2
    with progress_bar(steps * (burn_in + samples) + samples, "bound", progress) as bar:
        nodes = [sampler.at(float(s), burn_in, samples, bar) for s in temperatures]
        risks = sampler.risks(samples, bar)
    losses, errors = (np.array([getattr(n, a) for n in nodes]) for a in ("loss", "error"))
    width = np.diff(temperatures)
    above = max(float(width @ (losses[:-1] - losses[-1])), 0.0)
    below = max(float(width @ (losses[1:] - losses[-1])), 0.0)
    kl_error = float(np.hypot(np.linalg.norm(width * errors[:-1]), tau * errors[-1]))
    nats = {
        "kl": above,
        "examples": math.log(2 * m),
        "privacy and confidence": 2 * max(math.log(3 / delta), m * epsilon**2),
    }
    risk = float(risks.mean())
    risk_error = float(risks.std() / math.sqrt(effective_sample_size(risks)))
    budget = sum(nats.values())
    # NumPy's, not Python's, which may lose a NaN.
    worst, fewest = np.max([n.r_hat for n in nodes]), np.min([n.ess for n in nodes])
    converged = bool(worst < _R_HAT and fewest >= _ESS)
    if not converged:
        warn(
            f"The Langevin chains have not converged (R-hat up to {worst:.3f}, effective sample "
            f"size down to {fewest:.0f}): raise `burn_in` and `samples`, or gamma.",
            NotConvergedWarning,
        )
    return PrivatePriorBound(
        bound=kl_inverse(risk, budget / (m - 1)),
        bound_above=kl_inverse(min(risk + 2 * risk_error, 1.0), (budget + 2 * kl_error) / (m - 1)),
        risk=risk,
        risk_error=risk_error,
        kl=above,
        kl_error=kl_error,
        kl_below=below,
        log_partition=-float(width @ (losses[:-1] + losses[1:]) / 2),
        nats=nats,
        epsilon=epsilon,
        delta=delta,
        gamma=gamma,
        tau=tau,
        loss_range=reach,
        size=objective.size,
        examples=m,
        temperatures=temperatures,
        losses=losses,
        loss_errors=errors,
        acceptance=np.array([n.acceptance for n in nodes]),
        ess=np.array([n.ess for n in nodes]),
        r_hat=np.array([n.r_hat for n in nodes]),
        chains=chains,
        burn_in=burn_in,
        samples=samples,
        converged=converged,
        measured_at=objective.measured_at,
    )
