"""The diagonal of a curvature operator, from products with random signs.

With z uniform on {-1, 1}^n, E[z * (H z)] = diag H. Source: Bekas, Kokiopoulou and Saad, "An
estimator for the diagonal of a matrix", 2007.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from esgd_tf import _checks
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes
from esgd_tf.landscape._vectors import finite, random_signs, student_factor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from esgd_tf.landscape.operator import CurvatureOperator

__all__ = ["DiagonalEstimate", "estimate_diagonal"]


@dataclasses.dataclass(frozen=True, eq=False)
class DiagonalEstimate(Result):
    """The diagonal of a curvature operator.

    Attributes:
        estimate: [n], the diagonal.
        standard_error: [n], widened for few probes: see `diagonal_estimate`.
        num_probes: The number of products with a vector that it took.
    """

    estimate: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    num_probes: int

    def rows(self) -> Iterator[Row]:
        """Yield the diagonal by the number of the weight."""
        numbers = zip(self.estimate, self.standard_error, strict=True)
        for number, (value, error) in enumerate(numbers):
            yield Row("", "diagonal", number, value, error)

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot the sorted diagonal, with two standard errors."""
        ax = axes(ax)
        order = np.argsort(self.estimate)[::-1]
        rank = np.arange(1, len(order) + 1)
        value, error = self.estimate[order], 2 * self.standard_error[order]
        (line,) = ax.plot(rank, value, color=color, label=label or "estimate")
        ax.fill_between(
            rank, value - error, value + error, color=line.get_color(), alpha=0.3, lw=0,
            label="± 2 std. err.",
        )  # fmt: skip
        ax.set(xlabel="weight, sorted", ylabel="diagonal of the curvature")
        ax.set_yscale("symlog", linthresh=max(float(np.median(np.abs(value))), 1e-12))
        ax.legend()
        return ax


def estimate_diagonal(
    operator: CurvatureOperator, num_probes: int, *, seed: int, progress: bool | None
) -> DiagonalEstimate:
    """See `CurvatureOperator.diagonal_estimate`."""
    num_probes = _checks.integer("num_probes", num_probes, at_least=2)
    rng = np.random.default_rng(seed)
    # Welford's sums of squared deviations from the mean. Sums of squares of the numbers themselves
    # would differ by rounding only where the diagonal dominates.
    mean, squares, seen = np.zeros(operator.shape[0]), np.zeros(operator.shape[0]), 0
    with progress_bar(num_probes, "diagonal", progress) as bar:
        for at in range(0, num_probes, operator.block_size):
            rows = min(operator.block_size, num_probes - at)
            z = random_signs(rng, (rows, operator.shape[0]))
            for sample in finite(z * operator._columns(z)):
                seen += 1
                off = sample - mean
                mean += off / seen
                squares += off * (sample - mean)
            bar.update(rows)
    error = np.sqrt(squares / (num_probes - 1) / num_probes)
    return DiagonalEstimate(
        mean, student_factor(int(num_probes)) * error, num_probes, measured_at=operator.measured_at
    )
