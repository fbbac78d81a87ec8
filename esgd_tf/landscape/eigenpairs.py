"""A few eigenvalues and eigenvectors of a curvature operator, by SciPy.

ARPACK, which searches one Krylov space, finds one vector of each eigenspace. So what it has found
is checked, and where eigenvalues are missing (those of a layer that is linear come several times)
they are found in the complement: see `_complement.py`.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from esgd_tf import _checks
from esgd_tf.landscape import _memory
from esgd_tf.landscape._complement import Found, complete
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes
from esgd_tf.landscape._vectors import Array, finite, random_unit
from esgd_tf.landscape.operator import CurvatureOperator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Eigenpairs", "eigenpairs"]


@dataclasses.dataclass(frozen=True, eq=False)
class Eigenpairs(Result):
    """Eigenpairs at an end (or both) of a spectrum: always k entries.

    Attributes:
        eigenvalues: [k], descending. NaN where the search ended before it was found; those stand
            on the inner side: last, but first for "SA", and between the two ends for "BE".
        eigenvectors: [n, k], orthonormal columns, or NaN. Not part of `to_dict`.
        residuals: [k], ‖H v - λ v‖, from one more product each; NaN where there is no pair.
        converged: [k], whether residual <= tol scale, and no eigenvalue further out by more than
            tol scale is missing, as far as the check tells (see `eigenpairs`). False where there
            is no pair.
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

    def rows(self) -> Iterator[Row]:
        """Yield the eigenvalues by rank, with their residuals; those not found have none."""
        pairs = zip(self.eigenvalues, self.residuals, strict=True)
        for rank, (value, residual) in enumerate(pairs, start=1):
            if not math.isnan(value):
                yield Row("", "eigenvalue", rank, value, residual)

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot the eigenvalues with their residuals as error bars."""
        ax = axes(ax)
        rank = np.arange(1, len(self.eigenvalues) + 1)
        # An eigenvalue lies within the residual of each.
        ax.errorbar(
            rank,
            self.eigenvalues,
            yerr=self.residuals,
            fmt="o",
            capsize=3,
            color=color,
            label=label,
        )
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

    Then the complement of what was found is searched, from another random vector, for eigenvalues
    that are further out: an eigenvalue of multiplicity 7 is found seven times. The search adds what
    is missing, and ends when its outermost Ritz value θ, with its residual r, fulfils θ + r <= λ +
    tol scale for the innermost λ of the k. That proves that some eigenvalue of the complement lies
    within r of θ, and makes it very unlikely, but not impossible, that another one lies beyond. A
    small matrix (n <= 12, or 32 for SA and BE, or 2 k + 2) is computed whole, and then nothing is
    left to chance.

    Args:
        operator: CurvatureOperator. The matrix.
        k: int in [1, n]. How many eigenpairs are wanted. Defaults to 1.
        which: "LA", "SA", "LM" or "BE". Which ones: "LA" largest, "SA" smallest (most negative),
            "LM" largest in magnitude, "BE" from both ends (one more from the upper one if k is
            odd). Defaults to 'LA'.
        tol: float > 0. The relative tolerance. A float32 model does not reach much below 1e-6.
            Defaults to 1e-4.
        method: "lanczos" or "lobpcg". How: `scipy.sparse.linalg.eigsh`, or LOBPCG, which multiplies
            k columns at once and knows only LA and SA. Defaults to 'lanczos'.
        max_matvecs: int >= 1. Stop after about so many products, with what there is. Defaults to
            None, which leaves the limit to SciPy.
        seed: int >= 0. The seed of the start vector. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Returns:
        The pairs, with their residuals. Where SciPy stopped at `max_matvecs`, those that had come
        to an end by then, and NaN for the others.

    Raises:
        ValueError: An argument is out of range, or a product is not finite.
        MemoryError: The vectors do not fit into the memory that is free.
    """
    n = operator.shape[0]
    _check_arguments(n, k, which, tol, method, max_matvecs)
    k = int(k)
    ends = {"LA": (0, k), "SA": (k, 0), "BE": (k // 2, k - k // 2)}.get(which)
    before = operator.matvecs
    rng = np.random.default_rng(seed)
    ncv = _basis_size(n, k, which, max_matvecs)
    _memory.require(
        8 * n * (ncv + 5 * k + 8), f"A search for {k:,} eigenpairs of {n:,} weights",
        "take a smaller `k`, or select layers with `variables`",
    )  # fmt: skip
    with progress_bar(None, "eigenpairs", progress) as bar:
        linear = _watched(operator, bar)
        # Too small for the methods: the matrix itself.
        whole = ncv >= n or (method == "lobpcg" and 5 * k > n)
        scale, start = 0.0, random_unit(rng, n)
        if not whole:
            start = linear @ start
            scale = float(np.linalg.norm(start))
        if whole:
            vectors = np.linalg.eigh(_symmetric(linear @ np.eye(n)))[1]
        elif scale == 0:
            # A random vector has a part in every eigenspace, so that this is the matrix 0, as the
            # Hessian of a loss that is 0 to the last digit: every vector is an eigenvector.
            whole, vectors = True, np.linalg.qr(rng.standard_normal((n, k)))[0]
        elif method == "lobpcg":
            vectors = _by_lobpcg(linear, k, which, tol * scale, max_matvecs, rng)
        else:
            end = "LA" if which == "BE" and k == 1 else which
            start /= scale
            vectors, scale = _by_arpack(linear, start, scale, k, end, ncv, tol, max_matvecs, rng)
        found = Found(linear, vectors, k, ends)
        scale = float(np.abs(found.values).max(initial=scale))
        floor = scale * (float(np.finfo(np.float32).eps) if tol == 0 else float(tol))
        if not whole:
            spent = operator.matvecs - before
            left = None if max_matvecs is None else max(max_matvecs - spent, _CHECK)
            complete(found, floor, left, rng)
    values, vectors, residuals, sure = found.best(floor)
    if whole:
        sure = np.full(k, True)
    return Eigenpairs(
        eigenvalues=values,
        eigenvectors=vectors,
        residuals=residuals,
        converged=sure & (residuals <= floor),
        scale=scale,
        which=which,
        tol=float(tol),
        matvecs=operator.matvecs - before,
        measured_at=operator.measured_at,
    )


def _check_arguments(
    n: int, k: Any, which: str, tol: float, method: str, max_matvecs: int | None
) -> None:
    _checks.integer("k", k, at_least=1, at_most=n)
    _checks.choice("which", which, ("LA", "SA", "LM", "BE"))
    _checks.real("tol", tol, at_least=0)
    _checks.choice("method", method, ("lanczos", "lobpcg"))
    if method == "lobpcg" and which not in ("LA", "SA"):
        raise ValueError(f"LOBPCG finds LA or SA only; for {which} use method='lanczos'.")
    if max_matvecs is not None:
        _checks.integer("max_matvecs", max_matvecs, at_least=1)


def _basis_size(n: int, k: int, which: str, max_matvecs: int | None) -> int:
    """Return the vectors of ARPACK's basis."""
    # Outliers at the upper end come soon: with a small basis they are noticed soon, too.
    size = 12 if which in ("LA", "LM") else 32
    if max_matvecs is not None:  # It always fills the basis, and once more what it throws away.
        size = min(size, max_matvecs // 3)
    return min(n, max(2 * k + 2, size))


def _by_arpack(
    linear: Any,
    start: Array,
    scale: float,
    k: int,
    which: str,
    ncv: int,
    tol: float,
    max_matvecs: int | None,
    rng: np.random.Generator,
) -> tuple[Array, float]:
    """Return the vectors that converged, and an estimate of the largest |λ|.

    `start` is a random vector after one step of power iteration, `scale` the length it had then.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    n, shift, sign = linear.shape[0], 0.0, 1.0
    if which != "LM":
        # A few steps of power iteration tell the order of magnitude, and that is enough.
        shift = scale
        for _ in range(_POWER_STEPS - 1):
            product = linear @ start
            length = float(np.linalg.norm(product))
            if length == 0:
                break
            shift, start = length, product / length
        if which != "LA":
            # At the other end it would be poor: another one.
            start = random_unit(rng, n)
        if which == "SA":
            sign = -1.0
    shifted = LinearOperator(
        (n, n), matvec=lambda v: sign * (linear @ v) + shift * np.ravel(v), dtype=np.float64
    )
    limit = None
    if max_matvecs is not None:
        limit = max((max_matvecs - _POWER_STEPS - ncv - k - _CHECK) // (ncv - k) + 1, 1)
    try:
        _, vectors = eigsh(
            # Shifted by the scale, an eigenvalue is at most twice as large.
            shifted, k, which="LA" if which == "SA" else which, tol=tol / 2, v0=start, ncv=ncv,
            # ARPACK takes another random vector where the space that it searches has ended.
            maxiter=limit, rng=rng,
        )  # fmt: skip
    except ArpackNoConvergence as stopped:
        vectors = stopped.eigenvectors
    return vectors, max(scale, shift)


_POWER_STEPS = 4
# The products that a check may take in any case.
_CHECK = 10


def _by_lobpcg(
    linear: Any, k: int, which: str, tol: float, max_matvecs: int | None, rng: np.random.Generator
) -> Array:
    from scipy.sparse.linalg import lobpcg

    steps = 500 if max_matvecs is None else max(max_matvecs // k, 1)
    with warnings.catch_warnings():
        # It warns of what `residuals` and `converged` tell.
        warnings.simplefilter("ignore")
        _, vectors = lobpcg(
            linear, rng.standard_normal((linear.shape[0], k)), largest=which == "LA",
            tol=tol or None, maxiter=steps,
        )  # fmt: skip
    return vectors


def _watched(operator: CurvatureOperator, bar: Any) -> Any:
    from scipy.sparse.linalg import LinearOperator

    def product(v: Array) -> Array:
        result = finite(operator @ v)
        bar.update(1 if v.ndim == 1 else v.shape[1])
        return result

    return LinearOperator(
        operator.shape, matvec=lambda v: product(np.ravel(v)), matmat=product, dtype=operator.dtype
    )


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2
