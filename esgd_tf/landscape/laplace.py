"""Local entropy to second order: Laplace's method.

At a minimum, and to second order around any point,

    F ≈ -f(x) + 1/2 g'(H + γ)^{-1} g - 1/(2β) Σ_i log(β (λ_i + γ) / 2π),

with F as in `local_entropy.py`, g the gradient and λ_i the eigenvalues of the Hessian H: exact for
quadratic f. The sum comes from all eigenvalues or from their density; the term with g from the
quadrature of its own Lanczos run, of whose error nothing is said where it has fewer steps than
there are weights (it converges fast: the quadrature is exact for polynomials of twice its degree).

Source: Chaudhari et al., "Entropy-SGD", ICLR 2017, appendix.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from esgd_tf import _checks
from esgd_tf.landscape.full_spectrum import FullSpectrum
from esgd_tf.landscape.local_entropy import LocalEntropyEstimate, checked_gammas
from esgd_tf.landscape.operator import CurvatureOperator
from esgd_tf.landscape.spectral_density import (
    SpectralDensity,
    lanczos,
    probes_that_fit,
    spectral_density,
)

__all__ = ["laplace_local_entropy"]


def laplace_local_entropy(
    operator: CurvatureOperator,
    gammas: ArrayLike = (1.0, 10.0, 100.0),
    *,
    spectrum: FullSpectrum | SpectralDensity | None = None,
    inverse_temperature: float = 1.0,
    num_probes: int = 10,
    num_steps: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> LocalEntropyEstimate:
    """Estimate the local entropy to second order, from the eigenvalues of the Hessian.

    Args:
        operator: CurvatureOperator. The Hessian.
        gammas: array of shape [g]. Scopes > 0, at least 2 different ones; the largest is the
            reference. Defaults to (1.0, 10.0, 100.0).
        spectrum: FullSpectrum or SpectralDensity. All eigenvalues or their density. Defaults to
            None, which estimates the density.
        inverse_temperature: float > 0. β. Defaults to 1.0.
        num_probes: int >= 1. Random vectors for the density, if it is estimated here. Defaults to
            10.
        num_steps: int >= 1. Lanczos steps for the density, and for the term with the gradient.
            Defaults to 100.
        seed: int >= 0. The seed of the random vectors. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Returns:
        The estimate; NaN at scopes where H + γ is not positive definite. The standard error is
        that of the density over its probes, widened as there (`SpectralDensity.mean`): two of them
        hold the value of all eigenvalues in 93 to 97 of 100, but for the error of the quadrature.
        NaN with one probe.

    Raises:
        ValueError: An argument is out of range, or a product or the gradient is not finite.
        MemoryError: As in `spectral_density`.
    """
    gammas = checked_gammas(gammas)
    beta = _checks.real("inverse_temperature", inverse_temperature, above=0)
    n = operator.shape[0]
    num_steps = _checks.integer("num_steps", num_steps, at_least=1)
    if spectrum is None:
        spectrum = spectral_density(operator, num_probes, num_steps, seed=seed, progress=progress)
    of = spectrum.size if isinstance(spectrum, SpectralDensity) else len(spectrum.eigenvalues)
    if of != n:
        raise ValueError(f"`spectrum` is of {of:,} eigenvalues; the operator has dimension {n:,}.")
    if isinstance(spectrum, FullSpectrum):
        eigenvalues = spectrum.eigenvalues
        spectrum = SpectralDensity(
            nodes=eigenvalues,
            weights=np.full(n, 1 / n),
            probes=np.zeros(n, np.int64),
            size=n,
            lower_residual=0.0,
            upper_residual=0.0,
            matvecs=0,
        )
        exact = True
    else:
        exact = False
    slope = operator.gradient()
    if not np.all(np.isfinite(slope)):
        raise ValueError("The gradient at these weights is not finite: there is nothing to expand.")
    probes_that_fit(operator, 1, min(num_steps, n))
    length = np.linalg.norm(slope)
    # g'(H + γ)^{-1} g for all γ at once: the Gauss quadrature of g's own spectral measure.
    (rule,) = lanczos(operator, slope[None] / (length or 1.0), min(num_steps, n))
    if length == 0:
        rule = dataclasses.replace(rule, weights=0 * rule.weights)
    values, errors = np.full(len(gammas), np.nan), np.full(len(gammas), np.nan)
    for k, gamma in enumerate(gammas):
        if min(spectrum.smallest, rule.nodes[0] if length else np.inf) + gamma <= 0:
            continue
        # Relative to the reference already here: then the errors of the two cancel where they can.
        log_ratio = lambda t, g=gamma: np.log((t + g) / (t + gammas[-1]))  # noqa: E731
        mean, error = spectrum.mean(log_ratio)
        pull = (
            0.5
            * length**2
            * (rule.weights @ (1 / (rule.nodes + gamma) - 1 / (rule.nodes + gammas[-1])))
        )
        values[k] = pull - n / (2 * beta) * mean
        errors[k] = 0.0 if exact else n / (2 * beta) * error
    nothing = np.zeros(0)
    return LocalEntropyEstimate(
        gammas=gammas,
        values=values,
        standard_errors=errors,
        quadrature_errors=np.zeros(len(gammas)),
        loss=operator.loss(),
        size=n,
        inverse_temperature=beta,
        method="laplace",
        nodes=nothing,
        square_distance=nothing,
        acceptance=nothing,
        step_size=nothing,
        ess=nothing,
        r_hat=nothing,
        chains=0,
        burn_in=0,
        samples=0,
        converged=True,
        measured_at=operator.measured_at,
    )
