"""The density of the eigenvalues of a curvature operator.

The density of the n eigenvalues, φ(t) = 1/n Σ_i δ(t - λ_i), is estimated by stochastic Lanczos
quadrature. For a random unit vector v, m steps of Lanczos' recurrence

    H Q = Q T + β_m q_(m+1) e_m',    q_1 = v,    T symmetric and tridiagonal

give the Gauss quadrature of v's spectral measure: with T = U diag(θ) U', the nodes θ_k and weights
U_1k². Their mean over random v estimates φ; for each v, the first 2m - 1 moments are exact.

Sources: Golub and Welsch, "Calculation of Gauss quadrature rules", 1969; Lin, Saad and Yang,
"Approximating spectral densities of large matrices", 2016; Ghorbani, Krishnan and Xiao, "An
investigation into neural net optimization via Hessian eigenvalue density", 2019.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esgd_tf import _checks, _density
from esgd_tf.landscape import _memory
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes
from esgd_tf.landscape._vectors import Array, finite, random_unit, standard_error
from esgd_tf.landscape.operator import CurvatureOperator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["QuadratureRule", "SpectralDensity", "lanczos", "spectral_density"]


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

        What is estimated is the density of the eigenvalues smoothed by the same Gaussian; about the
        error see `mean`. Where the bandwidth is less than the distance of nodes, the quadrature is
        off by more.

        Args:
            grid: array of shape [g]. Where to evaluate it.
            bandwidth: float > 0. The standard deviation of the Gaussian. Defaults to None, which
                means 1 % of the range of the nodes.

        Returns:
            (density [g], standard error [g]); the error is NaN with one probe.
        """
        if bandwidth is None:
            bandwidth = _density.bandwidth_for(self.nodes)
        bandwidth = _checks.real("bandwidth", bandwidth, above=0)
        return self._mean_over_probes(_density.bells(self.nodes, grid, bandwidth))

    def mean(self, function: Any) -> tuple[float, float]:
        """Return the mean of function(λ) over all eigenvalues, and its standard error.

        Two standard errors hold the mean in 93 to 97 of 100, however few the probes: they have
        Student's factor. It is less where one or two eigenvalues are nearly all of the mean (about
        85 of 100 with few probes), and nothing is said of the error of the quadrature, which is
        none for polynomials of a degree below twice the number of steps and small for functions
        that are smooth over the distance of nodes.

        Args:
            function: callable. A function of an array of nodes.
        """
        value, error = self._mean_over_probes(np.asarray(function(self.nodes), np.float64)[None])
        return float(value[0]), float(error[0])

    def fraction_below(self, magnitude: float) -> tuple[float, float]:
        """Return the fraction of eigenvalues with |λ| < magnitude, and its standard error.

        It is that of the quadrature: near 0, nodes lie further apart than eigenvalues. The error is
        that over probes only, as in `mean`; what the quadrature does to a step is not in it.
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
        return parts.mean(axis=0), standard_error(parts)

    def rows(self) -> Iterator[Row]:
        """Yield the nodes with their weights."""
        for node, weight in zip(self.nodes, self.weights, strict=True):
            yield Row("", "density weight", node, weight)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        color: str | None = None,
        label: str | None = None,
        bandwidth: float | None = None,
    ) -> Axes:
        """Plot the smoothed density on a logarithmic scale, with two standard errors.

        It is plotted between the smallest and the largest node, which are marked: what the Gaussian
        smears beyond them is no part of the spectrum.

        Args:
            ax: matplotlib.axes.Axes. Where to plot. Defaults to None, which makes a new figure.
            color: str. A colour of Matplotlib. Defaults to None, which takes the next one.
            label: str. What the legend says. Defaults to None, for nothing.
            bandwidth: float > 0. The standard deviation of the Gaussian, as for `density`. Defaults
                to None, which means 1 % of the range of the nodes.
        """
        ax = axes(ax)
        # With one node, there is only what the Gaussian makes of it.
        spread = self.largest > self.smallest
        grid = _density.grid_for(self.nodes, margin=0.0 if spread else 0.05)
        value, error = self.density(grid, bandwidth)
        floor = _density.floor_for(self.nodes, self.size)
        (line,) = ax.plot(grid, np.maximum(value, floor), lw=1, color=color, label=label)
        if self.num_probes > 1:
            low, high = np.maximum(value - 2 * error, floor), np.maximum(value + 2 * error, floor)
            ax.fill_between(grid, low, high, color=line.get_color(), alpha=0.25, lw=0)
        # The marks stand on the axis, wherever it is.
        ends, axis_heights = [self.smallest, self.largest], ax.get_xaxis_transform()
        ax.plot(ends, [0, 0], "^", color=line.get_color(), transform=axis_heights, clip_on=False)
        width = "1 % of the range" if bandwidth is None else f"{bandwidth:.2g}"
        ax.set(xlabel=f"eigenvalue (smoothed by a Gaussian of σ = {width})", yscale="log")
        ax.set(ylabel="density of eigenvalues")
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

    Probes advance together, so that their products share gradients: all of them, or as many at a
    time as fit into the free memory, at 8 bytes x num_steps x n each. (The result is the same, but
    for rounding.) Each new vector is orthogonalised twice against all before it; without, copies of
    converged eigenvalues appear. A probe whose recurrence breaks down has found an invariant
    subspace: its quadrature is exact.

    Args:
        operator: CurvatureOperator. The matrix.
        num_probes: int >= 1. Random vectors; the standard errors fall with their square root.
            Defaults to 10.
        num_steps: int >= 1. Lanczos steps per probe, at most n; each gives a node. Defaults to 100.
        seed: int >= 0. The seed of the vectors. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: A number is out of range, or a product is not finite.
        MemoryError: The vectors of a single probe do not fit into the memory that is free.
    """
    n = operator.shape[0]
    num_probes = _checks.integer("num_probes", num_probes, at_least=1)
    num_steps = _checks.integer("num_steps", num_steps, at_least=1)
    before = operator.matvecs
    rng = np.random.default_rng(seed)
    steps, rules = min(num_steps, n), []
    together = probes_that_fit(operator, num_probes, steps)
    groups = -(-num_probes // together)
    with progress_bar(groups * steps, "Lanczos steps", progress) as bar:
        for at in range(0, num_probes, together):
            start = [random_unit(rng, n) for _ in range(min(together, num_probes - at))]
            rules += lanczos(operator, np.stack(start), steps, bar)
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
        measured_at=operator.measured_at,
    )


@dataclasses.dataclass(frozen=True)
class QuadratureRule:
    """The Gauss quadrature of one vector's spectral measure: nodes ascending, weights, sum 1."""

    nodes: Array
    weights: Array
    residuals: Array  # ‖H y - θ y‖ of each Ritz pair


def probes_that_fit(operator: CurvatureOperator, probes: int, steps: int) -> int:
    """Return how many probes can advance together in the memory that is free.

    Raises:
        MemoryError: Not even one.
    """
    n = operator.shape[0]
    # The basis, and a few vectors beside it.
    together = _memory.rows_that_fit(8 * n * (steps + 6), probes, operator.block_size)
    if not together:
        fit = max(_memory.rows_that_fit(8 * n, steps + 6) - 6, 0)
        instead = f"`num_steps={fit}` would fit" if fit else "no number of steps fits"
        _memory.refuse(
            8 * n * (steps + 6), f"A probe of {steps:,} Lanczos steps for {n:,} weights",
            f"{instead}; or select layers with `variables`",
        )  # fmt: skip
    return together


def lanczos(
    operator: CurvatureOperator, start: Array, num_steps: int, bar: Any = None
) -> list[QuadratureRule]:
    """Run Lanczos' recurrence from each row of `start`, unit vectors [probes, n]."""
    from scipy.linalg import eigh_tridiagonal

    probes, n = start.shape
    # Not zeros: where a recurrence ends early, the rest is never touched.
    basis = np.empty((probes, num_steps, n))
    alphas, betas = np.zeros((probes, num_steps)), np.zeros((probes, num_steps))
    lengths = np.full(probes, num_steps)
    current, active = start.copy(), np.arange(probes)
    for step in range(num_steps):
        basis[active, step] = current
        products = finite(operator @ current.T).T
        following = []
        for p, product in zip(active, products, strict=True):
            q = basis[p, : step + 1]
            scale = np.linalg.norm(product)
            alphas[p, step] = q[step] @ product
            w = product - alphas[p, step] * q[step]
            if step:
                w -= betas[p, step - 1] * q[step - 1]
            before = np.linalg.norm(w)
            w -= q.T @ (q @ w)
            betas[p, step] = np.linalg.norm(w)
            # Only where most of it is gone has rounding left something of the others in it; twice
            # is enough (Daniel, Gragg, Kaufman and Stewart; Kahan and Parlett). Each time reads
            # the whole basis, which for small networks takes longer than the product.
            if betas[p, step] < _LEFT * before:
                w -= q.T @ (q @ w)
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
    for probe, m in enumerate(lengths.tolist()):
        nodes, vectors = eigh_tridiagonal(alphas[probe, :m], betas[probe, : m - 1])
        residuals = betas[probe, m - 1] * np.abs(vectors[-1])
        rules.append(QuadratureRule(nodes, vectors[0] ** 2, residuals))
    return rules


_BREAKDOWN = 1e-10
_LEFT = 0.7
