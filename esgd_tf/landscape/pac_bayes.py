"""A bound on the error of a network with noise on its weights, which holds with high probability.

Of m examples that were sampled independently, R(w) is the true error of weights w and R̂(w) that on
the examples; R(Q) and R̂(Q) are their means over w ~ Q. For a prior P that does not depend on the
examples, with probability 1 - δ over them, for ALL posteriors Q at once

    kl(R̂(Q)‖R(Q)) <= [KL(Q‖P) + ln(m/δ)] / (m - 1)                                            (1)

(kl is that of `kl.py`; Maurer's [KL + ln(2 sqrt(m)/δ)]/m is smaller, so that (1) holds too). Here

    Q = N(w, σ² I), P = N(w_0, λ I),   2 KL(Q‖P) = (d σ² + ‖w - w_0‖²)/λ - d + d ln(λ/σ²),

with d weights, w_0 those that training began with, and λ the best of c e^{-j/b}, j = 1, 2, ...: (1)
for each j at δ 6/(π² j²), which add up to δ. So B takes the place of KL + ln(m/δ):

    B = KL + ln(π² m/(6 δ)) + 2 ln j,   R(Q) <= kl⁻¹(R̂(Q), B/(m - 1)).                         (2)

R̂(Q) is a mean over all of Q. From n independent w_i ~ Q it is, with probability 1 - δ' over them,

    R̂(Q) <= kl⁻¹(1/n Σ_i R̂(w_i), ln(2/δ')/n).                                                  (3)

σ is the best of a finite grid, by a few w_i of its own for each σ. That costs no probability: (1)
holds for all Q at once, and the w_i of (3) are sampled afresh for the σ that was chosen. With
probability 1 - δ - δ' over the examples and the w_i, (2) with (3) holds.

Moving statistics of BatchNormalization are functions of the data, and no weights; `_absorbed.py`
makes them weights, under prior and posterior alike.

Sources: Dziugaite and Roy, "Computing nonvacuous generalization bounds for deep (stochastic) neural
networks", UAI 2017, sections 2 and 3 (the same constants; there a σ for each weight is trained for
the bound, which makes it much smaller); Langford and Caruana, "(Not) bounding the true error", NIPS
2001 (3, and λ); Maurer, "A note on the PAC-Bayesian theorem", 2004.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from esgd_tf import _checks
from esgd_tf.landscape._absorbed import absorb, without_statistics
from esgd_tf.landscape._objective import Objective
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes
from esgd_tf.landscape._risk import checked_examples, risk_at
from esgd_tf.landscape._surface import Surface
from esgd_tf.landscape._vectors import standard_error
from esgd_tf.landscape.kl import kl_inverse

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PacBayesBound", "gaussian_kl", "pac_bayes_bound"]

Array = NDArray[np.float64]

_SIGMAS = tuple(float(f"{10 ** (k / 4):.3g}") for k in range(-12, 1))
# The noise of the search for sigma, and that of the bound.
_SEARCH, _BOUND = 0, 1


@dataclasses.dataclass(frozen=True, eq=False)
class PacBayesBound(Result):
    """A bound on the true error of a network with noise on its weights.

    Attributes:
        bound: What R(Q) is at most, with probability 1 - delta - sample_delta; 1 says nothing.
        risk: The mean training error of the sampled networks.
        risk_error: Its standard error.
        risk_bound: What R̂(Q), of which `risk` is an estimate, is at most.
        error: The training error at the weights themselves, of which the bound does not speak.
        kl: KL(Q‖P), in nats.
        nats: The parts of B: "kl", "scale of the prior" and "confidence".
        sigma: Of the posterior.
        prior_variance: λ, the variance of the prior.
        distance: ‖w - w_0‖, with the moving statistics taken up into the weights.
        size: d, the number of weights.
        examples: m, the number of training examples.
        samples: n, the number of networks sampled for the bound.
        delta: The probability that the examples are such that the bound fails.
        sample_delta: The probability that the sampled networks are.
        sigmas: [s], the grid that sigma is from.
        trial_risks: [s], the mean training error of the few networks that were sampled at each.
        trial_bounds: [s], the bound with that error in the place of `risk`.
    """

    bound: float
    risk: float
    risk_error: float
    risk_bound: float
    error: float
    kl: float
    nats: dict[str, float]
    sigma: float
    prior_variance: float
    distance: float
    size: int
    examples: int
    samples: int
    delta: float
    sample_delta: float
    sigmas: Array
    trial_risks: Array
    trial_bounds: Array

    def rows(self) -> Iterator[Row]:
        """Yield the bound, the error that it starts from, and the divergence."""
        yield Row("", "bound", "", self.bound)
        yield Row("", "risk", "", self.risk, self.risk_error)
        yield Row("", "kl", "", self.kl)
        yield Row("", "sigma", "", self.sigma)

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot training error and bound against sigma, and the bound that holds as a star."""
        ax = axes(ax)
        (line,) = ax.plot(self.sigmas, self.trial_bounds, ".-", color=color, label=label)
        ax.plot(self.sigmas, self.trial_risks, ".:", color=line.get_color())
        ax.plot([self.sigma], [self.bound], "*", ms=11, color=line.get_color())
        ax.set(
            xscale="log", xlabel="σ of the noise", ylim=(-0.02, 1.02),
            ylabel="error: bound (—), training (⋯)",
        )  # fmt: skip
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
        return ax


def pac_bayes_bound(
    model: keras.Model | Sequence[Any],
    data: Any,
    prior: Any,
    *,
    sigmas: float | ArrayLike | None = None,
    delta: float = 0.025,
    samples: int = 100,
    sample_delta: float = 0.01,
    trials: int = 5,
    prior_scale: float = 0.1,
    prior_precision: int = 100,
    loss: Any = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> PacBayesBound:
    """Bound the true error of a network with Gaussian noise on its weights.

    The bound holds for examples from the distribution of the training data, and for a network whose
    weights are sampled anew from N(w, σ² I) for each prediction. It does not speak of the network
    at w. All that prior and network have beside the trainable weights (`prior`, `prior_scale`,
    `prior_precision`, frozen weights, the preprocessing of the inputs) must not depend on these
    data; the weights, sigma and the choice of a checkpoint may.

    Args:
        model: keras.Model that is built, or a list of weights. The network; all its trainable
            weights get noise. With a list of weights `loss` is a function of (weights, x, y) that
            returns the mean error of a batch, from 0 to 1.
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The TRAINING
            data, as for `HessianOperator`, 8 examples or more, without sample weights: all that
            the network was trained on, or a part that was chosen at random. On test data the error
            itself is an estimate, and needs no such bound.
        prior: keras.Model, or list of arrays. w_0, the weights that training began with: a model
            of the same architecture, all weights (`model.get_weights()`) or, without
            BatchNormalization, the trainable ones.
        sigmas: float > 0, or array of shape [s]. The σ to choose from; one number is taken as it
            is. Defaults to None, which takes 13 numbers from 0.001 to 1, four a decade.
        delta: float in (0, 1). δ. Defaults to 0.025.
        samples: int >= 1. n, the number of networks that the bound samples: a correction of about
            ln(2/δ')/n where the error is small. Defaults to 100.
        sample_delta: float in (0, 1). δ'. Defaults to 0.01.
        trials: int >= 1. Networks that are sampled at each σ of the grid to choose one. Defaults to
            5.
        prior_scale: float > 0. c, which no variance of the prior exceeds. Defaults to 0.1.
        prior_precision: int from 1 to 10,000. b, how many variances there are for a factor of e.
            Defaults to 100.
        loss: nested structure of losses, or callable. The loss that the network was trained with,
            which tells how an error is read from its outputs. Defaults to None, which takes the one
            that the model was compiled with.
        batch_size: int >= 1. Examples at a time, for arrays. Defaults to None, which means 512.
        seed: int >= 0. The seed of the noise. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: An argument is out of range, the prior does not fit, or the data are too few or
            weighted.
    """
    sigmas = np.unique(np.asarray(_SIGMAS if sigmas is None else sigmas, np.float64))
    if not sigmas.size or not np.all(np.isfinite(sigmas) & (sigmas > 0)):
        raise ValueError(f"`sigmas` must be one or several numbers above 0; got {sigmas.tolist()}.")
    delta = _checks.real("delta", delta, above=0, below=1)
    sample_delta = _checks.real("sample_delta", sample_delta, above=0, below=1)
    samples = _checks.integer("samples", samples, at_least=1)
    trials = _checks.integer("trials", trials, at_least=1)
    scale = _checks.real("prior_scale", prior_scale, above=0)
    precision = _checks.integer("prior_precision", prior_precision, at_least=1, at_most=10_000)
    objective, start, square = _posterior_and_prior(model, loss, data, prior, batch_size)
    m, d = checked_examples(objective), objective.size
    error = risk_at(objective, start)
    if not math.isfinite(error):
        raise ValueError(f"The error at the weights of the model is {error}: nothing to bound.")

    def risks(sigma: float, count: int, what: int) -> Array:
        found = np.empty(count)
        for k in range(count):
            z = np.random.default_rng([seed, what, k]).standard_normal(d)
            value = risk_at(objective, start + sigma * z)
            # A network of NaN predicts nothing, and so nothing right.
            found[k] = value if math.isfinite(value) else 1.0
            bar.update(1)
        return found

    def bound(risk: float, nats: dict[str, float]) -> tuple[float, float]:
        highest = kl_inverse(risk, math.log(2 / sample_delta) / samples)
        return highest, kl_inverse(highest, sum(nats.values()) / (m - 1))

    priors = [_best_prior(d, square, sigma, scale, precision) for sigma in sigmas]
    confidence = math.log(math.pi**2 * m / (6 * delta))
    nats = [
        {"kl": kl, "scale of the prior": 2 * math.log(j), "confidence": confidence}
        for j, _, kl in priors
    ]
    with progress_bar(len(sigmas) * trials + samples, "bound", progress) as bar:
        trial = np.array([risks(sigma, trials, _SEARCH).mean() for sigma in sigmas])
        bounds = np.array([bound(r, n)[1] for r, n in zip(trial, nats, strict=True)])
        # Where all of them say nothing, the one that is nearest to saying something.
        best = min(range(len(sigmas)), key=lambda k: (bounds[k], sum(nats[k].values())))
        found = risks(float(sigmas[best]), samples, _BOUND)
    risk = float(found.mean())
    highest, value = bound(risk, nats[best])
    return PacBayesBound(
        bound=value,
        risk=risk,
        risk_error=float(standard_error(found)),
        risk_bound=highest,
        error=error,
        kl=priors[best][2],
        nats=nats[best],
        sigma=float(sigmas[best]),
        prior_variance=priors[best][1],
        distance=math.sqrt(square),
        size=d,
        examples=m,
        samples=samples,
        delta=delta,
        sample_delta=sample_delta,
        sigmas=sigmas,
        trial_risks=trial,
        trial_bounds=bounds,
        measured_at=objective.measured_at,
    )


def gaussian_kl(size: int, square_distance: float, sigma: float, prior_variance: float) -> float:
    """Return KL(N(w, σ² I)‖N(w_0, λ I)), in nats.

    Args:
        size: int >= 0. d, the number of weights.
        square_distance: float >= 0. ‖w - w_0‖².
        sigma: float > 0. σ.
        prior_variance: float > 0. λ.
    """
    ratio = sigma**2 / prior_variance
    # Nothing is lost to rounding where the two are nearly the same.
    spread = size * (ratio - 1 - math.log(ratio))
    return max(0.5 * (spread + square_distance / prior_variance), 0.0)


def _best_prior(
    size: int, square: float, sigma: float, scale: float, precision: int
) -> tuple[int, float, float]:
    """Return the j whose KL + 2 ln j is least, with λ = c e^{-j/b} and KL."""
    # KL alone is least at this λ, and grows on both sides; 2 ln j grows with j.
    least = sigma**2 + square / max(size, 1)
    last = max(math.ceil(precision * math.log(scale / least)), 1)
    j = np.arange(1, last + 1)
    ratio = least / (scale * np.exp(-j / precision))
    nats = 0.5 * size * (ratio - np.log(ratio)) + 2 * np.log(j)
    best = int(j[np.argmin(nats)])
    variance = scale * math.exp(-best / precision)
    return best, variance, gaussian_kl(size, square, sigma, variance)


def _posterior_and_prior(
    model: Any, loss: Any, data: Any, prior: Any, batch_size: int | None
) -> tuple[Objective, Array, float]:
    """Return the risk as a function of the weights, w, and ‖w - w_0‖².

    Raises:
        ValueError: The prior does not fit the network.
    """
    if isinstance(data, Mapping):
        raise ValueError("`data` must be the training data alone, not several sets by name.")
    metric = "error" if isinstance(model, keras.Model) else "loss"
    surface = Surface(model, loss, data, metric, batch_size, None)
    plain = surface.first
    center, others, _ = surface.parts(prior)
    objective = without_statistics(plain)
    moving = any(a is not b for a, b in zip(objective.held[1], plain.held[1], strict=True))
    count = len(plain.model.weights) if plain.model is not None else 0
    if moving and not isinstance(prior, keras.Model) and len(prior) != count:
        raise ValueError(
            "`prior` must have all weights of the first network (`model.get_weights()`): it needs "
            "moving statistics of its own, for those of the model are of the data."
        )
    start = objective.flatten(objective.start)
    center = absorb(plain, center, [np.asarray(other, np.float64) for other in others])
    return objective, start, float(np.sum((start - center) ** 2))
