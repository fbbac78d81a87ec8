"""Two norms of a curvature matrix A, from a few products.

    Fisher-Rao norm     w' A w                 of the weights w, in the metric A: one product
    Frobenius norm      ‖A‖_F = sqrt(Σ λ²)     by E‖A z‖² = Σ λ², z uniform on {-1, 1}^n

The Fisher-Rao norm with the Fisher or Gauss-Newton matrix is Liang et al.'s measure of capacity,
the square of a norm; with the Hessian it may be negative. It does not change where a layer is
multiplied by c and the next divided by c, since w and A change in opposite ways. Of a network with
rectifiers and without biases, with K layers of weights and outputs z, w' ∂z/∂w = K z, and so

    w' F w = K² 1/N Σ_i (z_i · ∂l_i/∂z_i)²

for the empirical Fisher matrix F.

Sources: Liang et al., "Fisher-Rao metric, geometry, and complexity of neural networks", AISTATS
2019, definition 2 and theorem 3.1; Hutchinson, "A stochastic estimator of the trace of the
influence matrix", 1990 (the estimate, of the trace of A²).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from esgd_tf import _checks
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes
from esgd_tf.landscape._vectors import finite, random_signs, standard_error
from esgd_tf.landscape.operator import CurvatureOperator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CurvatureNorm", "fisher_rao_norm", "frobenius_norm"]


@dataclasses.dataclass(frozen=True, eq=False)
class CurvatureNorm(Result):
    """A norm of a curvature matrix.

    Attributes:
        kind: "Fisher-Rao" or "Frobenius".
        estimate: Of the norm; w' A w itself, not its root, for "Fisher-Rao".
        standard_error: Of the estimate; 0 where it is exact.
        matvecs: Products with a vector that it took.
    """

    kind: str
    estimate: float
    standard_error: float
    matvecs: int

    def rows(self) -> Iterator[Row]:
        """Yield the norm."""
        yield Row("", f"{self.kind} norm", "", self.estimate, self.standard_error)

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot the norm with two standard errors."""
        ax = axes(ax)
        ax.errorbar(
            [0], [self.estimate], yerr=[2 * self.standard_error], fmt="o", capsize=4, color=color,
            label=label,
        )  # fmt: skip
        ax.set(ylabel=f"{self.kind} norm ± 2 std. err.", xticks=[])
        return ax


def fisher_rao_norm(operator: CurvatureOperator) -> CurvatureNorm:
    """Compute w' A w, exactly, by one product.

    Args:
        operator: CurvatureOperator. A. `FisherOperator` and `GaussNewtonOperator` make it a measure
            of capacity that is never negative; of a `RelativeOperator` it has no meaning.

    Raises:
        ValueError: The product is not finite.
    """
    weights, before = operator.weights(), operator.matvecs
    product = finite(operator @ weights)
    return CurvatureNorm(
        "Fisher-Rao",
        float(weights @ product),
        0.0,
        operator.matvecs - before,
        measured_at=operator.measured_at,
    )


def frobenius_norm(
    operator: CurvatureOperator,
    num_probes: int = 30,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> CurvatureNorm:
    """Estimate the Frobenius norm, the root of the sum of all squared eigenvalues.

    The mean of ‖A z‖² over probes estimates its square, without bias; the standard error of the
    root is that of the mean over twice the root. Squares are skewed where few eigenvalues are
    nearly all of the sum: then two standard errors hold the norm less often than in 95 of 100.

    Args:
        operator: CurvatureOperator. The matrix.
        num_probes: int >= 2. Products with a vector. With n or more the result is exact, and takes
            n. Defaults to 30.
        seed: int >= 0. The seed of the signs. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: `num_probes` is out of range, or a product is not finite.
    """
    num_probes = _checks.integer("num_probes", num_probes, at_least=2)
    n, before = operator.shape[0], operator.matvecs
    exact = num_probes >= n
    count = n if exact else num_probes
    rng = np.random.default_rng(seed)
    squares = np.empty(count)
    with progress_bar(count, "Frobenius norm", progress) as bar:
        for at in range(0, count, operator.block_size):
            rows = min(operator.block_size, count - at)
            z = np.eye(rows, n, at) if exact else random_signs(rng, (rows, n))
            squares[at : at + rows] = np.square(finite(operator @ z.T)).sum(axis=0)
            bar.update(rows)
    norm = float(np.sqrt(squares.sum() if exact else squares.mean()))
    spread = 0.0 if exact or norm == 0 else float(standard_error(squares)) / (2 * norm)
    return CurvatureNorm(
        "Frobenius", norm, spread, operator.matvecs - before, measured_at=operator.measured_at
    )
