"""Local energy: how much worse the network gets when its weights are disturbed.

    δE(w, σ) = E_z[E(w + σ z * w)] - E(w),   z ~ N(0, I)      multiplicative noise
    δE(w, σ) = E_z[E(w + σ z)] - E(w)                         additive noise
    δE(w, σ) = E_z[E(w + sqrt(σ² w² + ε²) z)] - E(w)          mixed noise

with E the error rate or the loss over all the data. In a wide valley it stays small. Multiplicative
noise does not see the scale of the weights, which means nothing in a network with rectifiers or
BatchNormalization. It leaves weights of 0 where they are; mixed noise, the magnitude-aware noise of
Jiang et al., moves them too. (The released code of Dziugaite et al., 2020, passes its VARIANCE
σ² w² + ε² where a standard deviation is expected. Here it is the variance.)

For a smooth loss and small σ, the local energy of the loss is σ²/2 times the trace of the Hessian
for additive noise, and of diag(w) H diag(w), see `relative_operator.py`, for multiplicative noise.

The z come in antithetic pairs, z and -z: what is odd in z, such as the slope of E at w, cancels in
the mean of a pair, and with it most of the spread at small σ. (At an exact minimum, where nothing
is odd, a pair tells no more than one of the two.) Pairs are independent of each other, and errors
come from the spread of their means.

Source: Pittorino et al., "Entropic gradient descent algorithms and wide flat minima", ICLR 2021,
arXiv 2006.07897 (the local energy); Jiang et al., "Fantastic generalization measures and where to
find them", ICLR 2020 (the search for σ, for which they let the accuracy drop by 0.1, and mixed
noise, with ε = 10⁻³); Dziugaite et al., "In search of robust measures of generalization", NeurIPS
2020 (its released code).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from esgd_tf import _checks
from esgd_tf.landscape._metrics import Metric, measured, named_metrics, splits_of
from esgd_tf.landscape._noise import (
    Array,
    Disturbance,
    Noise,
    checked_epsilon,
    checked_samples,
    jackknife,
    normal,
    pairs,
)
from esgd_tf.landscape._objective import Selection
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import STYLES, Result, Row, axes
from esgd_tf.landscape._vectors import standard_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LocalEnergy", "PacBayesSigma", "local_energy", "pac_bayes_sigma"]


@dataclasses.dataclass(frozen=True, eq=False)
class LocalEnergy(Result):
    """The local energy at several strengths of noise.

    Attributes:
        sigmas: [s].
        reference: E(w) by split and metric.
        increase: δE [s] by split and metric.
        standard_error: Of the increase [s], by split and metric: from the spread of the pairs of z,
            with Student's factor for their number. Two of them hold the increase in 93 to 97 of 100
            from ten pairs on, and in about 90 where few weights make nearly all of it. NaN with a
            single pair.
        samples: Number of z, pairs of z and -z, the same ones at each sigma, split and metric.
        noise: "multiplicative", "additive" or "mixed".
        epsilon: ε of mixed noise; 0 for other noise.
    """

    sigmas: Array
    reference: dict[str, dict[str, float]]
    increase: dict[str, dict[str, Array]]
    standard_error: dict[str, dict[str, Array]]
    samples: int
    noise: str
    epsilon: float = 0.0

    def curve(self, split: str | None = None, metric: str | None = None) -> tuple[Array, Array]:
        """Return (increase [s], standard error [s]) of a split and metric, by default the first."""
        split = next(iter(self.increase)) if split is None else split
        metric = next(iter(self.increase[split])) if metric is None else metric
        return self.increase[split][metric], self.standard_error[split][metric]

    def rows(self) -> Iterator[Row]:
        """Yield the increases by sigma."""
        for split, by_metric in self.increase.items():
            for metric in by_metric:
                for at, value, error in zip(self.sigmas, *self.curve(split, metric), strict=True):
                    yield Row(split, metric, at, value, error)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        color: str | None = None,
        label: str | None = None,
        metric: str | None = None,
    ) -> Axes:
        """Plot the increase against sigma, for each split, with two standard errors."""
        ax = axes(ax)
        splits = list(self.increase)
        metric = next(iter(self.increase[splits[0]])) if metric is None else metric
        # Percentage points read better than fractions.
        unit, factor = (" (% points)", 100.0) if metric == "error" else ("", 1.0)
        for split, style in zip(splits, itertools.cycle(STYLES)):
            value, spread = self.curve(split, metric)
            words = [label] if label else []
            words += [split] if split != "data" else []
            ax.errorbar(
                self.sigmas, factor * value, yerr=2 * factor * spread, fmt=style, ms=3, capsize=2,
                color=color, label=", ".join(words) or None,
            )  # fmt: skip
        ax.set(xlabel=f"σ of {self.noise} noise", ylabel=f"increase of {metric}{unit}")
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
        return ax


def local_energy(
    model: keras.Model | Sequence[Any],
    data: Any,
    metric: Metric | Sequence[Metric] = "error",
    *,
    sigmas: ArrayLike = (0.02, 0.05, 0.1, 0.15, 0.2),
    samples: int = 100,
    noise: Noise = "multiplicative",
    epsilon: float = 1e-3,
    loss: Any = None,
    batch_size: int | None = None,
    variables: Selection = None,
    seed: int = 0,
    progress: bool | None = None,
) -> LocalEnergy:
    """Measure the local energy.

    Args:
        model: keras.Model that is built, or a list of weights. The network; with a list of weights
            `metric` is "loss".
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data, as for
            `HessianOperator`, or several by name: {"train": ..., "test": ...}.
        metric: str, metric, callable, or a sequence of them. "error" (the fraction of wrong
            classes), "loss", a Keras loss, a Keras metric that is a mean, a function of (y_true,
            y_pred) that returns a value for each example, or a list of these. Metrics are called
            and weighted as Keras' `weighted_metrics` are. What is an error depends on the loss: the
            largest output, or for binary losses an output above 0.5 (above 0 for logits and for
            hinge losses); a loss of regression has none. NaN is no prediction: the error is NaN
            too. Defaults to 'error'.
        sigmas: array of shape [s]. Strengths of the noise, >= 0. Defaults to (0.02, 0.05, 0.1,
            0.15, 0.2).
        samples: int >= 2. Number of z, that is of networks that are evaluated at each sigma. They
            come in pairs: an odd number is rounded up. Defaults to 100.
        noise: "multiplicative", "additive" or "mixed". How the noise acts. Defaults to
            'multiplicative'.
        epsilon: float > 0. ε of mixed noise. Defaults to 1e-3.
        loss: nested structure of losses, or callable. The loss for metric "loss", as for
            `HessianOperator`. Defaults to None, which takes the one that the model was compiled
            with.
        batch_size: int >= 1. Examples at a time, for arrays. Defaults to None, which means 512.
        variables: list of variables, layers, names or indices, or a callable. The weights that are
            disturbed, as for `HessianOperator`. Defaults to None, which disturbs all trainable
            ones.
        seed: int >= 0. The seed of the z. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: An argument is out of range, or the data are as `HessianOperator` refuses them.
    """
    sigmas = np.atleast_1d(np.array(sigmas, np.float64))
    if sigmas.ndim != 1 or not sigmas.size or not np.all(np.isfinite(sigmas) & (sigmas >= 0)):
        raise ValueError(f"`sigmas` must be a list of numbers >= 0; got {sigmas.tolist()}.")
    samples, epsilon = checked_samples(samples, noise), checked_epsilon(epsilon, noise)
    metrics = named_metrics(metric)
    energies = {}
    for split, part in splits_of(data).items():
        energies[split] = measured(
            model, loss, part, metrics, batch_size=batch_size, variables=variables
        )
    reference = {split: evaluate() for split, (_, evaluate) in energies.items()}
    disturb = Disturbance(next(iter(energies.values()))[0], noise, epsilon)
    values = {
        split: {name: np.zeros((samples, len(sigmas))) for name in metrics} for split in energies
    }
    with progress_bar(samples * len(sigmas), "local energy", progress) as bar:
        for k in range(samples):
            z = normal(seed, k, disturb.size)
            for s, sigma in enumerate(sigmas):
                weights = disturb(sigma, z)
                for split, (_, evaluate) in energies.items():
                    for name, value in evaluate(weights).items():
                        values[split][name][k, s] = value - reference[split][name]
                bar.update(1)
    return LocalEnergy(
        sigmas=sigmas,
        reference=reference,
        increase={
            split: {name: v.mean(axis=0) for name, v in by_name.items()}
            for split, by_name in values.items()
        },
        standard_error={
            split: {name: standard_error(pairs(v)) for name, v in by_name.items()}
            for split, by_name in values.items()
        },
        samples=samples,
        noise=noise,
        epsilon=epsilon,
        measured_at=disturb.measured_at,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class PacBayesSigma(Result):
    """The largest noise that a network bears.

    Attributes:
        sigma: The largest sigma whose expected increase is at most the bound.
        standard_error: Of sigma, by the jackknife over pairs of z, with Student's factor for their
            number and with the bias. Two of them hold the sigma of the expectation in 93 to 97 of
            100 (up to 98 with few pairs). NaN if not bracketed, or with a single pair.
        bias: By how much sigma is likely to be too large, by the jackknife: with few z, large rises
            that are rare are missing more often than not. `sigma - bias` has less of it, and more
            spread. NaN where `standard_error` is.
        increase: The mean increase over the z there.
        increase_error: Its standard error, as in `LocalEnergy`.
        bound: What it was to stay below.
        samples: Number of z, pairs of z and -z.
        noise: "multiplicative", "additive" or "mixed".
        epsilon: ε of mixed noise; 0 for other noise.
        bracketed: False if even `max_sigma` stays below the bound; sigma is then `max_sigma`.
    """

    sigma: float
    standard_error: float
    bias: float
    increase: float
    increase_error: float
    bound: float
    samples: int
    noise: str
    bracketed: bool
    epsilon: float = 0.0

    def rows(self) -> Iterator[Row]:
        """Yield sigma."""
        yield Row("", "largest sigma", self.bound, self.sigma, self.standard_error)

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot sigma with two standard errors."""
        ax = axes(ax)
        ax.errorbar(
            [0], [self.sigma], yerr=[2 * self.standard_error], fmt="o", capsize=4, color=color,
            label=label,
        )  # fmt: skip
        ax.set(ylabel=f"largest σ ({self.noise}) with increase ≤ {self.bound:g}", xticks=[])
        return ax


def pac_bayes_sigma(
    model: keras.Model | Sequence[Any],
    data: Any,
    metric: Metric = "loss",
    *,
    bound: float = 0.1,
    samples: int = 30,
    noise: Noise = "additive",
    epsilon: float = 1e-3,
    max_sigma: float = 10.0,
    rtol: float = 1e-3,
    loss: Any = None,
    batch_size: int | None = None,
    variables: Selection = None,
    seed: int = 0,
    progress: bool | None = None,
) -> PacBayesSigma:
    """Find the largest sigma with E_z[E(w + σ z)] - E(w) <= bound.

    The z are the same at each sigma, so that the increase is a continuous function of sigma (for a
    loss); its first crossing of the bound is bracketed by doubling and found by SciPy's `brentq`.
    PAC-Bayes bounds with a Gaussian posterior N(w, σ²) tighten as σ grows. With `metric="error"` it
    is the σ of Jiang et al., at which the accuracy has dropped by 0.1, and with `noise="mixed"` too
    their magnitude-aware σ'.

    Args:
        model: keras.Model that is built, or a list of weights. The network, as for `local_energy`.
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data, as for
            `HessianOperator`.
        metric: str, metric or callable. What to measure, as for `local_energy`, but one only.
            Defaults to 'loss'.
        bound: float > 0. The bound on the increase. Defaults to 0.1.
        samples: int >= 2. Number of z, as for `local_energy`. Defaults to 30.
        noise: "additive", "multiplicative" or "mixed". How the noise acts. Defaults to 'additive'.
        epsilon: float > 0. ε of mixed noise. Defaults to 1e-3.
        max_sigma: float > 0. Where the search gives up. Defaults to 10.0.
        rtol: float > 0. The relative accuracy of sigma. Defaults to 1e-3.
        loss: nested structure of losses, or callable. The loss for metric "loss", as for
            `local_energy`. Defaults to None, which takes the one that the model was compiled with.
        batch_size: int >= 1. Examples at a time, for arrays. Defaults to None, which means 512.
        variables: list of variables, layers, names or indices, or a callable. The weights that are
            disturbed, as for `local_energy`. Defaults to None, which disturbs all trainable ones.
        seed: int >= 0. The seed of the z. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: An argument is out of range.
    """
    from scipy.optimize import brentq

    bound = _checks.real("bound", bound, above=0)
    max_sigma = _checks.real("max_sigma", max_sigma, above=0)
    rtol = _checks.real("rtol", rtol, above=0)
    samples, epsilon = checked_samples(samples, noise), checked_epsilon(epsilon, noise)
    metrics = named_metrics(metric)
    if len(metrics) != 1:
        raise ValueError("`metric` must be one: sigma is searched for each alone.")
    (name,) = metrics
    objective, evaluate = measured(
        model, loss, data, metrics, batch_size=batch_size, variables=variables
    )
    reference, disturb = evaluate()[name], Disturbance(objective, noise, epsilon)
    if not np.isfinite(reference):
        raise ValueError(f"The {name} at the weights of the model is {reference}.")
    seen: dict[float, Array] = {}

    def rises_at(sigma: float) -> Array:
        if sigma not in seen:
            rises = np.empty(samples)
            for k in range(samples):
                weights = disturb(sigma, normal(seed, k, disturb.size))
                rises[k] = evaluate(weights)[name] - reference
                bar.update(1)
            # A network of NaN is a bad one; inf orders it.
            seen[sigma] = np.where(np.isnan(rises), np.inf, rises)
        return seen[sigma]

    def increase(sigma: float) -> float:
        return float(rises_at(sigma).mean())

    with progress_bar(None, "sigma", progress) as bar:
        high = 1e-3 * max_sigma
        while increase(high) <= bound and high < max_sigma:
            high = min(2 * high, max_sigma)
        bracketed = increase(high) > bound
        low = high / 2
        while bracketed and increase(low) > bound:
            low, high = low / 2, low
            if low < 1e-12 * max_sigma:
                alone = f" (`epsilon` of {epsilon:g} alone exceeds it)" if epsilon else ""
                raise ValueError(
                    f"No sigma keeps the increase of {name} below {bound}{alone}: take a larger "
                    f"`bound`{' or a smaller `epsilon`' if epsilon else ''}."
                )
        sigma, error, bias = high, float("nan"), float("nan")
        if bracketed:
            sigma = brentq(
                lambda s: min(increase(s) - bound, 1e6 * bound),
                low, high, xtol=rtol * low / 8, rtol=rtol / 8,
            )  # fmt: skip
            # The root is between two points seen; the lower one keeps the promise.
            sigma = max(s for s in seen if s <= sigma * (1 + 1e-12) and increase(s) <= bound)
            # Not between the last points of the search: an error rate has steps, and the loss
            # rounding.
            before, beyond = 0.9 * sigma, 1.1 * sigma
            if not np.isfinite(increase(beyond)):
                beyond = sigma
            around = [rises_at(s) for s in (before, sigma, beyond)]
            error, bias = jackknife(bound, sigma, beyond / before, *map(pairs, around))
    return PacBayesSigma(
        sigma=float(sigma),
        standard_error=error,
        bias=bias,
        increase=increase(sigma),
        increase_error=float(standard_error(pairs(seen[sigma]))),
        bound=float(bound),
        samples=samples,
        noise=noise,
        epsilon=epsilon,
        bracketed=bool(bracketed),
        measured_at=objective.measured_at,
    )
