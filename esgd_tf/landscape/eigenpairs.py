"""A few eigenvalues and eigenvectors of a curvature operator, by SciPy."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, axes
from esgd_tf.landscape._vectors import Array, random_unit
from esgd_tf.landscape.operator import CurvatureOperator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Eigenpairs", "eigenpairs"]


@dataclasses.dataclass(frozen=True, eq=False)
class Eigenpairs(Result):
    """Eigenpairs at an end (or both) of a spectrum.

    Attributes:
        eigenvalues: [k], descending.
        eigenvectors: [n, k], orthonormal columns. Not part of `to_dict`.
        residuals: [k], ‖H v - λ v‖, from one more product each.
        converged: [k], whether residual <= tol scale.
        scale: The largest |λ| found, or estimated by some steps of power iteration.
        which: The end of the spectrum.
        tol: The relative tolerance asked for.
        matvecs: Products with a vector that it took.
    """

    eigenvalues: Array
    eigenvectors: Array = dataclasses.field(metadata={"written": False})
    residuals: Array
    converged: NDArray[np.bool_]
    scale: float
    which: str
    tol: float
    matvecs: int

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the eigenvalues with their residuals as error bars."""
        ax = axes(ax)
        rank = np.arange(1, len(self.eigenvalues) + 1)
        # An eigenvalue lies within the residual of each.
        ax.errorbar(rank, self.eigenvalues, yerr=self.residuals, fmt="o", capsize=3)
        ax.axhline(0.0, color="0.7", lw=0.8)
        ax.set(xlabel="rank", ylabel="eigenvalue ± residual")
        return ax


def eigenpairs(
    operator: CurvatureOperator,
    k: int = 1,
    which: Literal["LA", "SA", "LM", "BE"] = "LA",
    *,
    tol: float = 1e-4,
    method: Literal["lanczos", "lobpcg"] = "lanczos",
    max_matvecs: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Eigenpairs:
    """Compute k eigenpairs by SciPy: ARPACK's restarted Lanczos iteration, or LOBPCG.

    ARPACK measures a residual against its own eigenvalue, which for the small negative ones of a
    trained network would take thousands of products. Here all are measured against the largest
    |λ|: ARPACK gets the operator shifted by an estimate of it (which changes no Lanczos vector).

    Args:
        operator: What to take them of.
        k: How many, 1 <= k < n.
        which: "LA" largest, "SA" smallest (most negative), "LM" largest in magnitude, "BE" from
            both ends (one more from the upper one if k is odd).
        tol: Relative tolerance. A float32 model does not reach much below 1e-6.
        method: "lanczos" (`scipy.sparse.linalg.eigsh`) or "lobpcg", which multiplies k columns at
            once and knows only LA and SA.
        max_matvecs: Stop after about so many products, with what there is; None leaves the limit
            to SciPy.
        seed: Of the start vector.
        progress: Whether to show a bar; None for "on a terminal".

    Returns:
        The pairs, with their residuals. Where SciPy stopped at `max_matvecs`, those that had come
        to an end by then: they may be fewer than k.

    Raises:
        ValueError: `k` or `which` is out of range.
    """
    from scipy.sparse.linalg import lobpcg

    n = operator.shape[0]
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= n:
        raise ValueError(f"`k` must be an integer from 1 to {n:,}; got {k!r}.")
    if which not in ("LA", "SA", "LM", "BE"):
        raise ValueError(f"`which` must be LA, SA, LM or BE; got {which!r}.")
    if not tol >= 0:
        raise ValueError(f"`tol` must not be negative; got {tol}.")
    if method not in ("lanczos", "lobpcg"):
        raise ValueError(f"`method` must be lanczos or lobpcg; got {method!r}.")
    if method == "lobpcg" and which not in ("LA", "SA"):
        raise ValueError(f"LOBPCG finds LA or SA only; for {which} use method='lanczos'.")
    before = operator.matvecs
    rng = np.random.default_rng(seed)
    scale = 0.0
    with progress_bar(None, "eigenpairs", progress) as bar:
        linear = _watched(operator, bar)
        if k > n - 1 or n < 10 or (method == "lobpcg" and 5 * k > n):
            # Too small for either method: the matrix itself.
            values, vectors = np.linalg.eigh(_symmetric(linear @ np.eye(n)))
            chosen = _end(values, k, which)
            values, vectors = values[chosen], vectors[:, chosen]
        elif method == "lobpcg":
            steps = 500 if max_matvecs is None else max(max_matvecs // k, 1)
            size = np.linalg.norm(linear @ random_unit(rng, n))  # its tolerance is absolute
            values, vectors = _quiet(
                lobpcg, linear, rng.standard_normal((n, k)), largest=which == "LA",
                tol=tol * size or None, maxiter=steps,
            )  # fmt: skip
        else:
            values, vectors, scale = _by_arpack(linear, k, which, tol, max_matvecs, rng)
        order = np.argsort(values)[::-1]
        values, vectors = values[order], vectors[:, order]
        residuals = np.zeros(0)
        if len(values):
            residuals = np.linalg.norm(linear @ vectors - vectors * values, axis=0)
    scale = float(np.abs(values).max(initial=scale))
    floor = np.finfo(np.float32).eps * scale if tol == 0 else tol * scale
    return Eigenpairs(
        eigenvalues=values,
        eigenvectors=vectors,
        residuals=residuals,
        converged=residuals <= floor,
        scale=scale,
        which=which,
        tol=float(tol),
        matvecs=operator.matvecs - before,
    )


def _by_arpack(
    linear: Any, k: int, which: str, tol: float, max_matvecs: int | None, rng: np.random.Generator
) -> tuple[Array, Array, float]:
    """Return the pairs that converged, and the shift, an estimate of the largest |λ|."""
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

    n = linear.shape[0]
    start, shift, sign = random_unit(rng, n), 0.0, 1.0
    if which != "LM":
        # A few steps of power iteration tell the order of magnitude, and that is enough.
        v = start
        for _ in range(_POWER_STEPS):
            product = linear @ v
            shift = float(np.linalg.norm(product))
            v = product / (shift or 1.0)
        if which == "LA":
            start = v if shift else start  # the same Krylov space, some steps on
        if which == "SA":
            sign = -1.0
    shifted = LinearOperator(
        (n, n), matvec=lambda v: sign * (linear @ v) + shift * np.ravel(v), dtype=np.float64
    )
    # Outliers at the upper end come soon: with a small basis they are noticed soon, too.
    ncv = min(n, max(2 * k + 2, 12 if which in ("LA", "LM") else 20))
    limit = None
    if max_matvecs is not None:
        limit = max((max_matvecs - _POWER_STEPS - ncv) // (ncv - k) + 1, 1)
    try:
        values, vectors = eigsh(
            # Shifted by the scale, an eigenvalue is at most twice as large.
            shifted, k, which="LA" if which == "SA" else which, tol=tol / 2, v0=start, ncv=ncv,
            # ARPACK draws another vector where the space that it searches has come to its end.
            maxiter=limit, rng=rng,
        )  # fmt: skip
    except ArpackNoConvergence as stopped:
        values, vectors = stopped.eigenvalues, stopped.eigenvectors
    except ArpackError:
        if np.any(linear @ start):
            raise
        # It takes no operator that is 0, as the Hessian of a loss that is 0 to the last digit.
        values, vectors = np.full(k, sign * shift), np.eye(n, k)
    return sign * (values - shift), vectors, shift


_POWER_STEPS = 4


def _watched(operator: CurvatureOperator, bar: Any) -> Any:
    from scipy.sparse.linalg import LinearOperator

    def product(v: Array) -> Array:
        result = operator @ v
        bar.update(1 if v.ndim == 1 else v.shape[1])
        return result

    return LinearOperator(
        operator.shape, matvec=lambda v: product(np.ravel(v)), matmat=product, dtype=operator.dtype
    )


def _quiet(solver: Any, *arguments: Any, **options: Any) -> tuple[Array, Array]:
    """LOBPCG warns of what `residuals` and `converged` tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return solver(*arguments, **options)


def _end(values: Array, k: int, which: str) -> NDArray[np.intp]:
    """Return the indices of k of the ascending eigenvalues."""
    if which == "LM":
        return np.argsort(np.abs(values))[-k:]
    low = {"SA": k, "BE": k // 2}.get(which, 0)
    return np.r_[:low, len(values) - (k - low) : len(values)]


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2
