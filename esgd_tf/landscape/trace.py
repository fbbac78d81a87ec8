"""The sum of all eigenvalues of a curvature operator."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, axes
from esgd_tf.landscape._vectors import random_signs
from esgd_tf.landscape.operator import CurvatureOperator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Trace", "trace"]


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

    with progress_bar(3, "trace", progress) as bar:
        if third >= n:
            q = np.eye(n)
        else:
            q, _ = np.linalg.qr(operator @ random_signs(rng, (n, third)))
        bar.update(1)
        exact = float(np.einsum("ij,ij->", q, operator @ q))
        bar.update(1)
        if third >= n:
            return Trace(exact, 0.0, operator.matvecs - before)
        z = random_signs(rng, (n, third))
        z -= q @ (q.T @ z)
        samples = np.einsum("ij,ij->j", z, operator @ z)
        bar.update(1)
    error = float(samples.std(ddof=1) / np.sqrt(third))
    return Trace(exact + float(samples.mean()), error, operator.matvecs - before)
