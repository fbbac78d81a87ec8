"""How many directions the data hold fast: the effective dimension of a curvature matrix.

    d(γ) = Σ_i λ_i / (λ_i + γ),    γ > 0

counts the eigenvalues that are large against γ: n for γ → 0 and a positive definite matrix, 0 for
γ → ∞. From all eigenvalues (`full_spectrum`) it is exact; from a spectral density it is estimated
by stochastic Lanczos quadrature, n times the mean of λ / (λ + γ).

It is what local entropy feels of γ: by Laplace's method and where the gradient is 0,

    F(γ) = -½ Σ_i ln(λ_i + γ) / β + const,    -2 β ∂F/∂ln γ = n - d(γ).

Sources: MacKay, "Bayesian model comparison and backprop nets", 1992 (the number of well-determined
parameters); Maddox, Benton and Wilson, "Rethinking parameter counting in deep models", 2020.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from esgd_tf.landscape._result import Result, Row, axes
from esgd_tf.landscape._vectors import Array
from esgd_tf.landscape.full_spectrum import FullSpectrum
from esgd_tf.landscape.operator import CurvatureOperator
from esgd_tf.landscape.spectral_density import SpectralDensity, spectral_density

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["EffectiveDimension", "effective_dimension"]


@dataclasses.dataclass(frozen=True, eq=False)
class EffectiveDimension(Result):
    """The effective dimension at several γ.

    Attributes:
        gammas: [g], ascending.
        values: [g]. NaN where λ + γ is not positive for all eigenvalues.
        standard_errors: [g], over the probes of the density, widened as in `SpectralDensity.mean`;
            0 from all eigenvalues, NaN with one probe.
        size: n, the number of eigenvalues.
        method: "eigenvalues" or "quadrature".
    """

    gammas: Array
    values: Array
    standard_errors: Array
    size: int
    method: str

    def rows(self) -> Iterator[Row]:
        """Yield the effective dimension by γ, where there is one."""
        for at, value, error in zip(self.gammas, self.values, self.standard_errors, strict=True):
            if np.isfinite(value):
                yield Row("", "effective dimension", at, value, error if np.isfinite(error) else "")

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot the effective dimension against γ, with two standard errors."""
        ax = axes(ax)
        ax.errorbar(
            self.gammas, self.values, yerr=2 * self.standard_errors, fmt=".-", capsize=2,
            color=color, label=label,
        )  # fmt: skip
        ax.set(xlabel="γ", ylabel=f"effective dimension (of {self.size:,})", xscale="log")
        return ax


def effective_dimension(
    curvature: CurvatureOperator | FullSpectrum | SpectralDensity,
    gammas: ArrayLike = (0.01, 0.1, 1.0),
    *,
    num_probes: int = 10,
    num_steps: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> EffectiveDimension:
    """Compute the effective dimension from eigenvalues, or estimate it from a density of them.

    Of the Hessian away from a minimum, negative eigenvalues count as negative; the Gauss-Newton and
    Fisher matrices have none.

    Args:
        curvature: CurvatureOperator, FullSpectrum or SpectralDensity. The matrix, whose density is
            estimated first; or what is known of its eigenvalues, which costs nothing more.
        gammas: array of shape [g]. The γ, > 0. Defaults to (0.01, 0.1, 1.0).
        num_probes: int >= 1. Random vectors of the density, as for `spectral_density`; only with an
            operator. Defaults to 10.
        num_steps: int >= 1. Lanczos steps of each, as there. Defaults to 100.
        seed: int >= 0. The seed of the vectors, as there. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: An argument is out of range, or a product is not finite.
    """
    gammas = np.unique(np.atleast_1d(np.asarray(gammas, np.float64)))
    if not gammas.size or not np.all(np.isfinite(gammas) & (gammas > 0)):
        raise ValueError(f"`gammas` must be a list of numbers > 0; got {gammas.tolist()}.")
    if isinstance(curvature, CurvatureOperator):
        curvature = spectral_density(curvature, num_probes, num_steps, seed=seed, progress=progress)
    if isinstance(curvature, FullSpectrum):
        eigenvalues, size = curvature.eigenvalues, len(curvature.eigenvalues)
        least, method = float(eigenvalues.min()), "eigenvalues"
    elif isinstance(curvature, SpectralDensity):
        size, least, method = curvature.size, curvature.smallest, "quadrature"
    else:
        raise ValueError(
            "`curvature` must be a curvature operator, or what `full_spectrum` or "
            f"`spectral_density` returned; got a {type(curvature).__name__}."
        )
    values, errors = np.full(len(gammas), np.nan), np.full(len(gammas), np.nan)
    for k, gamma in enumerate(gammas.tolist()):
        if least + gamma <= 0:
            continue
        if isinstance(curvature, FullSpectrum):
            values[k] = (curvature.eigenvalues / (curvature.eigenvalues + gamma)).sum()
            errors[k] = 0.0
        else:
            mean, error = curvature.mean(lambda t, g=gamma: t / (t + g))
            values[k], errors[k] = size * mean, size * error
    return EffectiveDimension(
        gammas=gammas,
        values=values,
        standard_errors=errors,
        size=size,
        method=method,
        measured_at=curvature.measured_at,
    )
