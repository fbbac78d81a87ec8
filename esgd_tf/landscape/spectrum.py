"""Eigenvalues of a curvature operator: some, all, their density, their sum.

The density of the n eigenvalues, φ(t) = 1/n Σ_i δ(t - λ_i), is estimated by stochastic Lanczos
quadrature. For a random unit vector v, m steps of Lanczos' recurrence

    H Q = Q T + β_m q_(m+1) e_m',    q_1 = v,    T symmetric and tridiagonal

give the Gauss quadrature of v's spectral measure: with T = U diag(θ) U', the nodes θ_k and weights
U_1k². Their mean over random v estimates φ, exactly in the first 2m - 1 moments of each v.

Sources: Golub and Welsch, "Calculation of Gauss quadrature rules", 1969; Lin, Saad and Yang,
"Approximating spectral densities of large matrices", 2016; Ghorbani, Krishnan and Xiao, "An
investigation into neural net optimization via Hessian eigenvalue density", 2019; Meyer et al.,
"Hutch++: optimal stochastic trace estimation", 2021.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, axes
from esgd_tf.landscape.operator import CurvatureOperator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Eigenpairs",
    "FullSpectrum",
    "SpectralDensity",
    "Trace",
    "eigenpairs",
    "full_spectrum",
    "spectral_density",
    "trace",
]

Array = NDArray[np.float64]


# ---- some eigenpairs ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Eigenpairs(Result):
    """Eigenpairs at an end (or both) of a spectrum.

    Attributes:
        eigenvalues: [k], descending.
        eigenvectors: [n, k], orthonormal columns. Not part of `to_dict`.
        residuals: [k], ‖H v - λ v‖, from one more product each.
        converged: [k], whether residual <= tol max|λ|, with the largest |λ| found.
        which: The end of the spectrum.
        tol: The relative tolerance asked for.
        matvecs: Products with a vector that it took.
    """

    eigenvalues: Array
    eigenvectors: Array = dataclasses.field(metadata={"written": False})
    residuals: Array
    converged: NDArray[np.bool_]
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
        The pairs. Those that did not converge are there too, and marked.

    Raises:
        ValueError: `k` or `which` is out of range.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh, lobpcg

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
    with progress_bar(None, "eigenpairs", progress) as bar:
        linear = _watched(operator, bar)
        if k > n - 1 or n < 10 or (method == "lobpcg" and 5 * k > n):
            # Too small for either method: the matrix itself.
            values, vectors = np.linalg.eigh(_symmetric(linear @ np.eye(n)))
            chosen = _end(values, k, which)
            values, vectors = values[chosen], vectors[:, chosen]
        elif method == "lobpcg":
            steps = 500 if max_matvecs is None else max(max_matvecs // k, 1)
            scale = np.linalg.norm(linear @ _unit(rng, n))  # its tolerance is absolute
            values, vectors = _quiet(
                lobpcg, linear, rng.standard_normal((n, k)), largest=which == "LA",
                tol=tol * scale or None, maxiter=steps,
            )  # fmt: skip
        else:
            ncv = min(n, max(2 * k + 1, 20))
            limit = None if max_matvecs is None else max((max_matvecs - ncv) // (ncv - k) + 1, 1)
            try:
                values, vectors = eigsh(
                    linear, k, which=which, tol=tol, v0=_unit(rng, n), ncv=ncv, maxiter=limit
                )
            except ArpackNoConvergence as stopped:
                values, vectors = stopped.eigenvalues, stopped.eigenvectors
        order = np.argsort(values)[::-1]
        values, vectors = values[order], vectors[:, order]
        residuals = np.zeros(0)
        if len(values):
            residuals = np.linalg.norm(linear @ vectors - vectors * values, axis=0)
    largest = np.abs(values).max(initial=0.0)
    floor = np.finfo(np.float32).eps * largest if tol == 0 else tol * largest
    return Eigenpairs(
        eigenvalues=values,
        eigenvectors=vectors,
        residuals=residuals,
        converged=residuals <= floor,
        which=which,
        tol=float(tol),
        matvecs=operator.matvecs - before,
    )


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
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return solver(*arguments, **options)


def _end(values: Array, k: int, which: str) -> NDArray[np.intp]:
    """Return the indices of k of the ascending eigenvalues."""
    if which == "LM":
        return np.argsort(np.abs(values))[-k:]
    low = {"SA": k, "BE": k // 2}.get(which, 0)
    return np.r_[:low, len(values) - (k - low) : len(values)]


def _unit(rng: np.random.Generator, n: int) -> Array:
    v = rng.standard_normal(n)
    return v / np.linalg.norm(v)


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2


# ---- all eigenvalues ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class FullSpectrum(Result):
    """All eigenvalues of a curvature operator.

    Attributes:
        eigenvalues: [n], ascending.
        asymmetry: max|H - H'| over max|H|: what rounding did to the matrix before it was
            symmetrised.
    """

    eigenvalues: Array
    asymmetry: float

    def fraction_below(self, magnitude: float) -> float:
        """Return the fraction of eigenvalues with |λ| < magnitude."""
        return float(np.mean(np.abs(self.eigenvalues) < magnitude))

    def plot(self, ax: Axes | None = None, bins: int = 200) -> Axes:
        """Draw a histogram with a logarithmic count, as Chaudhari et al. (2017) do."""
        ax = axes(ax)
        ax.hist(self.eigenvalues, bins=bins, log=True)
        ax.set(xlabel="eigenvalue", ylabel="number of eigenvalues")
        return ax


def full_spectrum(
    operator: CurvatureOperator,
    *,
    dtype: Literal["float32", "float64"] = "float64",
    path: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> FullSpectrum:
    """Compute all eigenvalues from the matrix itself, formed by n products.

    The matrix takes n² numbers, and the solver works in it. With a path its columns go to a file as
    they come, so that a computation that was interrupted goes on where it stood.

    Args:
        operator: What to take them of.
        dtype: Of the matrix: "float32" halves the memory.
        path: Where to keep the columns meanwhile, about n² numbers on disk; the file goes when the
            eigenvalues are there. None keeps them in memory.
        progress: Whether to show a bar; None for "on a terminal".

    Raises:
        MemoryError: The matrix does not fit into the memory (or on the disk) that is free.
        ValueError: The file at `path` is of another operator.
    """
    from scipy.linalg import eigvalsh

    n, kind = operator.shape[0], np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise ValueError(f"`dtype` must be float32 or float64; got {dtype!r}.")
    _refuse_if_too_large(n, kind, path)
    columns = _Columns(operator, kind, path)
    with progress_bar(n, "Hessian columns", progress) as bar:
        bar.update(columns.done)
        while columns.done < n:
            bar.update(columns.advance(operator))
    matrix = columns.in_memory()
    asymmetry = _symmetrise(matrix)
    # In Fortran's order, which the transpose of a symmetric matrix is, LAPACK makes no copy.
    eigenvalues = eigvalsh(matrix.T, overwrite_a=True, check_finite=False, driver="evr")
    columns.remove()
    return FullSpectrum(eigenvalues.astype(np.float64), asymmetry)


class _Columns:
    """The matrix as far as it is formed, in memory or in a file with a note of its progress."""

    def __init__(self, operator: CurvatureOperator, kind: np.dtype, path: Any) -> None:
        n = operator.shape[0]
        self.done, self.path = 0, None if path is None else Path(path)
        if self.path is None:
            self.matrix = np.empty((n, n), kind)
            return
        self.note = self.path.with_name(self.path.name + ".json")
        self.of = {"n": n, "dtype": kind.name, "operator": type(operator).__name__}
        # The product with a fixed vector tells operators apart; threads may change its last digits.
        rng = np.random.default_rng(0)
        product = operator @ _unit(rng, n)
        scale = float(np.linalg.norm(product))
        self.probe = probe = [scale, *(float(_unit(rng, n) @ product) for _ in range(3))]
        if self.note.exists():
            noted = json.loads(self.note.read_text())
            self.done, found = noted.pop("done"), noted.pop("probe")
            same = np.allclose(found, probe, rtol=0, atol=1e-4 * scale)
            if not same or noted != self.of or not self.path.exists():
                raise ValueError(
                    f"{self.path} holds the columns of another operator (other weights, data or "
                    "dtype): give another path, or remove it and its .json file."
                )
            self.matrix = np.load(self.path, mmap_mode="r+")
        else:
            self.matrix = np.lib.format.open_memmap(self.path, "w+", kind, (n, n))

    def advance(self, operator: CurvatureOperator) -> int:
        n, width = len(self.matrix), operator.block_size
        stop = min(self.done + width, n)
        rows = np.zeros((stop - self.done, n))
        rows[np.arange(stop - self.done), np.arange(self.done, stop)] = 1.0
        self.matrix[self.done : stop] = (operator @ rows.T).T
        advanced, self.done = stop - self.done, stop
        if self.path is not None and (self.done == n or self.done % (32 * width) == 0):
            self.matrix.flush()  # type: ignore[attr-defined]
            temporary = self.note.with_name(self.note.name + ".part")
            temporary.write_text(json.dumps({**self.of, "probe": self.probe, "done": self.done}))
            temporary.replace(self.note)
        return advanced

    def in_memory(self) -> NDArray[Any]:
        """Return a matrix that may be overwritten: the file stays for another try."""
        return self.matrix if self.path is None else np.array(self.matrix)

    def remove(self) -> None:
        if self.path is not None:
            del self.matrix
            self.note.unlink()
            self.path.unlink()


def _symmetrise(matrix: NDArray[Any], block: int = 1024) -> float:
    """Replace the matrix by its symmetric part, in place; return the relative asymmetry."""
    n, worst, largest = len(matrix), 0.0, 0.0
    for i in range(0, n, block):
        for j in range(i, n, block):
            upper = matrix[i : i + block, j : j + block]
            lower = matrix[j : j + block, i : i + block].T
            worst = max(worst, float(np.abs(upper - lower).max()))
            largest = max(largest, float(np.abs(upper).max()))
            mean = (upper + lower) / 2
            matrix[i : i + block, j : j + block] = mean
            matrix[j : j + block, i : i + block] = mean.T
    return worst / largest if largest else 0.0


def _refuse_if_too_large(n: int, kind: np.dtype, path: Any) -> None:
    # The matrix, and what LAPACK and the blocks of products take beside it.
    needed = n * n * kind.itemsize + 64 * n * 8
    free = _free_memory()
    if free is not None and needed > free:
        raise MemoryError(
            f"The matrix of {n:,} weights takes {needed / 2**30:,.1f} GiB in {kind.name} and "
            f"{free / 2**30:,.1f} GiB of memory are free: use `spectral_density`, select layers "
            "with `variables`" + (", or use float32." if kind == np.float64 else ".")
        )
    if path is not None:
        folder = Path(path).absolute().parent
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder} to keep the columns in.")
        on_disk = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        if n * n * kind.itemsize > on_disk and not Path(path).exists():
            raise MemoryError(
                f"The matrix takes {n * n * kind.itemsize / 2**30:,.1f} GiB on disk and "
                f"{on_disk / 2**30:,.1f} GiB are free at {folder}: give another path."
            )


def _free_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None
    except OSError:
        return None


# ---- the density --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class SpectralDensity(Result):
    """The density of eigenvalues, as quadrature nodes and weights.

    Attributes:
        nodes: [m], of all probes.
        weights: [m], positive; their sum is 1.
        probes: [m], which probe a node belongs to.
        size: n, the number of eigenvalues that the density is of.
        lower_residual: Bound on the distance from `smallest` to an eigenvalue.
        upper_residual: The same for `largest`.
        matvecs: Products with a vector that it took.
    """

    nodes: Array
    weights: Array
    probes: NDArray[np.int64]
    size: int
    lower_residual: float
    upper_residual: float
    matvecs: int

    @property
    def num_probes(self) -> int:
        """Number of random vectors."""
        return int(self.probes.max()) + 1

    @property
    def smallest(self) -> float:
        """The smallest node: an upper bound of the smallest eigenvalue."""
        return float(self.nodes.min())

    @property
    def largest(self) -> float:
        """The largest node: a lower bound of the largest eigenvalue."""
        return float(self.nodes.max())

    def density(
        self, grid: ArrayLike, bandwidth: float | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the density smoothed by a Gaussian, and its standard error over probes.

        Args:
            grid: [g], where.
            bandwidth: Standard deviation of the Gaussian; None for 1 % of the range of the nodes.

        Returns:
            (density [g], standard error [g]); the error is NaN with one probe.
        """
        grid = np.asarray(grid, np.float64)
        if bandwidth is None:
            bandwidth = 0.01 * (self.largest - self.smallest) or 1e-3
        if not bandwidth > 0:
            raise ValueError(f"`bandwidth` must be positive; got {bandwidth}.")
        z = (grid[:, None] - self.nodes) / bandwidth
        bells = np.exp(-0.5 * z**2) / (bandwidth * np.sqrt(2 * np.pi))
        return self._mean_over_probes(bells)

    def mean(self, function: Any) -> tuple[float, float]:
        """Return the mean of function(λ) over all eigenvalues, and its standard error.

        Args:
            function: Of an array of nodes.
        """
        value, error = self._mean_over_probes(np.asarray(function(self.nodes), np.float64)[None])
        return float(value[0]), float(error[0])

    def fraction_below(self, magnitude: float) -> tuple[float, float]:
        """Return the fraction of eigenvalues with |λ| < magnitude, and its standard error.

        It is that of the quadrature: near 0, nodes lie further apart than eigenvalues.
        """
        return self.mean(lambda t: (np.abs(t) < magnitude).astype(np.float64))

    def _mean_over_probes(self, values: Array) -> tuple[Array, Array]:
        count = self.num_probes
        parts = np.stack(
            [
                (values * np.where(self.probes == p, self.weights, 0.0)).sum(axis=-1) * count
                for p in range(count)
            ]
        )
        error = parts.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.nan * parts[0]
        return parts.mean(axis=0), error

    def plot(self, ax: Axes | None = None, bandwidth: float | None = None) -> Axes:
        """Draw the smoothed density on a logarithmic scale, with two standard errors."""
        ax = axes(ax)
        margin = 0.05 * (self.largest - self.smallest) or 1e-2
        grid = np.linspace(self.smallest - margin, self.largest + margin, 1000)
        value, error = self.density(grid, bandwidth)
        floor = 0.1 / self.size / max(self.largest - self.smallest, 1e-12)
        (line,) = ax.plot(grid, np.maximum(value, floor))
        if self.num_probes > 1:
            low, high = np.maximum(value - 2 * error, floor), np.maximum(value + 2 * error, floor)
            ax.fill_between(grid, low, high, color=line.get_color(), alpha=0.25, lw=0)
        ax.set(xlabel="eigenvalue", ylabel="density of eigenvalues", yscale="log")
        ax.set_ylim(bottom=floor)
        return ax


def spectral_density(
    operator: CurvatureOperator,
    num_probes: int = 10,
    num_steps: int = 100,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> SpectralDensity:
    """Estimate the density of eigenvalues by stochastic Lanczos quadrature.

    All probes advance together, so that their products share gradients. Each new vector is
    orthogonalised twice against all before it; without, copies of converged eigenvalues appear. A
    probe whose recurrence breaks down has found an invariant subspace: its quadrature is exact.

    Args:
        operator: What to take it of.
        num_probes: Random vectors; the standard errors fall with their square root.
        num_steps: Lanczos steps per probe, at most n; the nodes of each.
        seed: Of the vectors.
        progress: Whether to show a bar; None for "on a terminal".

    Raises:
        ValueError: A number is out of range.
    """
    n = operator.shape[0]
    for name, value in (("num_probes", num_probes), ("num_steps", num_steps)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer; got {value!r}.")
    before = operator.matvecs
    rng = np.random.default_rng(seed)
    start = np.stack([_unit(rng, n) for _ in range(num_probes)])
    with progress_bar(min(num_steps, n), "Lanczos steps", progress) as bar:
        rules = lanczos(operator, start, min(num_steps, n), bar)
    low = min(rules, key=lambda rule: rule.nodes[0])
    high = max(rules, key=lambda rule: rule.nodes[-1])
    return SpectralDensity(
        nodes=np.concatenate([rule.nodes for rule in rules]),
        weights=np.concatenate([rule.weights for rule in rules]) / num_probes,
        probes=np.repeat(np.arange(num_probes), [len(rule.nodes) for rule in rules]),
        size=n,
        lower_residual=float(low.residuals[0]),
        upper_residual=float(high.residuals[-1]),
        matvecs=operator.matvecs - before,
    )


@dataclasses.dataclass(frozen=True)
class QuadratureRule:
    """The Gauss quadrature of one vector's spectral measure: nodes ascending, weights, sum 1."""

    nodes: Array
    weights: Array
    residuals: Array  # ‖H y - θ y‖ of each Ritz pair


def lanczos(
    operator: CurvatureOperator, start: Array, num_steps: int, bar: Any = None
) -> list[QuadratureRule]:
    """Run Lanczos' recurrence from each row of `start`, unit vectors [probes, n]."""
    from scipy.linalg import eigh_tridiagonal

    probes, n = start.shape
    basis = np.zeros((probes, num_steps, n))
    alphas, betas = np.zeros((probes, num_steps)), np.zeros((probes, num_steps))
    lengths = np.full(probes, num_steps)
    current, active = start.copy(), np.arange(probes)
    for step in range(num_steps):
        basis[active, step] = current
        products = (operator @ current.T).T
        following = []
        for p, product in zip(active, products, strict=True):
            q = basis[p, : step + 1]
            scale = np.linalg.norm(product)
            alphas[p, step] = q[step] @ product
            w = product
            for _ in range(2):  # twice is enough (Kahan and Parlett)
                w = w - q.T @ (q @ w)
            betas[p, step] = np.linalg.norm(w)
            # What is left is rounding: of the model's sums, or of float64.
            if betas[p, step] <= _BREAKDOWN * max(scale, np.abs(alphas[p]).max()):
                lengths[p], betas[p, step] = step + 1, 0.0
            following.append(w)
        if bar is not None:
            bar.update(1)
        going = betas[active, step] > 0
        if step == num_steps - 1 or not going.any():
            break
        active, following = active[going], np.stack(following)[going]
        current = following / betas[active, step][:, None]
    rules = []
    for p, m in enumerate(lengths):
        nodes, vectors = eigh_tridiagonal(alphas[p, :m], betas[p, : m - 1])
        residuals = betas[p, m - 1] * np.abs(vectors[-1])
        rules.append(QuadratureRule(nodes, vectors[0] ** 2, residuals))
    return rules


_BREAKDOWN = 1e-10


# ---- the trace ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Trace(Result):
    """The sum of all eigenvalues.

    Attributes:
        estimate: Of the trace.
        standard_error: Of the estimate, from the spread of its random part.
        matvecs: Products with a vector that it took.
    """

    estimate: float
    standard_error: float
    matvecs: int

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the estimate with two standard errors."""
        ax = axes(ax)
        ax.errorbar([0], [self.estimate], yerr=[2 * self.standard_error], fmt="o", capsize=4)
        ax.set(ylabel="trace ± 2 std. err.", xticks=[])
        return ax


def trace(
    operator: CurvatureOperator,
    num_matvecs: int = 99,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> Trace:
    """Estimate the trace by Hutch++.

    A third of the products sketches the range of H: Q = orth(H S). On it the trace is computed
    exactly, and off it from random signs Z,

        tr H ≈ tr(Q' H Q) + mean over columns of z' (I - Q Q') H (I - Q Q') z.

    Source: Meyer, Musco, Musco and Woodruff, "Hutch++: optimal stochastic trace estimation", 2021,
    algorithm 1.

    Args:
        operator: What to take it of.
        num_matvecs: Products with a vector, >= 6. With 3 n or more the result is exact.
        seed: Of S and Z.
        progress: Whether to show a bar; None for "on a terminal".
    """
    if isinstance(num_matvecs, bool) or num_matvecs < 6:
        raise ValueError(f"`num_matvecs` must be at least 6; got {num_matvecs!r}.")
    n, third, before = operator.shape[0], int(num_matvecs) // 3, operator.matvecs
    rng = np.random.default_rng(seed)

    def signs() -> Array:
        return rng.integers(0, 2, (n, third)) * 2.0 - 1.0

    with progress_bar(3, "trace", progress) as bar:
        if third >= n:
            q = np.eye(n)
        else:
            q, _ = np.linalg.qr(operator @ signs())
        bar.update(1)
        exact = float(np.einsum("ij,ij->", q, operator @ q))
        bar.update(1)
        if third >= n:
            return Trace(exact, 0.0, operator.matvecs - before)
        z = signs()
        z -= q @ (q.T @ z)
        samples = np.einsum("ij,ij->j", z, operator @ z)
        bar.update(1)
    error = float(samples.std(ddof=1) / np.sqrt(third))
    return Trace(exact + float(samples.mean()), error, operator.matvecs - before)
