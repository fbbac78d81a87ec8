"""The sum of all eigenvalues of a curvature operator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from esgd_tf import _checks
from esgd_tf.landscape import _memory
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes
from esgd_tf.landscape._vectors import Array, finite, random_signs, standard_error
from esgd_tf.landscape.operator import CurvatureOperator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Trace", "trace"]

# The spread of fewer numbers tells too little.
_FEWEST_SAMPLES = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Trace(Result):
    """The sum of all eigenvalues.

    Attributes:
        estimate: Of the trace.
        standard_error: Of the estimate, from the spread of its random part, widened for few samples
            (see `trace`); 0 where the estimate is exact.
        matvecs: Products with a vector that it took.
    """

    estimate: float
    standard_error: float
    matvecs: int

    def rows(self) -> Iterator[Row]:
        """Yield the estimate."""
        yield Row("", "trace", "", self.estimate, self.standard_error)

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot the estimate with two standard errors."""
        ax = axes(ax)
        ax.errorbar(
            [0], [self.estimate], yerr=[2 * self.standard_error], fmt="o", capsize=4, color=color,
            label=label,
        )  # fmt: skip
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

    A third of the products sketches the range of H: Q = orth(H S), with s columns. On it the trace
    is computed exactly, and off it from m random vectors z,

        tr H ≈ tr(Q' H Q) + mean over z of z' H z,

    each uniform on the sphere of radius sqrt(n - s) in the complement of Q: if H is a multiple of 1
    there, nothing is random. (With the random signs of the source two z may agree by chance, and
    then there seems to be no error.) Below 30 products the sketch is smaller than a third, and none
    up to 11, so that m is 10 if it can be.

    Two standard errors hold the trace in 93 to 97 of 100: the error has Student's factor for m
    samples. It holds it less often (about 85 of 100) where few products meet an H in which one or
    two eigenvalues are nearly all, and the sketch does not hold these.

    Source: Meyer, Musco, Musco and Woodruff, "Hutch++: optimal stochastic trace estimation", 2021,
    algorithm 1; Epperly, Tropp and Webber, "XTrace: making the most of every sample in stochastic
    trace estimation", 2024 (the sphere).

    Args:
        operator: CurvatureOperator. The matrix.
        num_matvecs: int >= 6. Products with a vector. With n or more the result is exact, and takes
            n. Defaults to 99.
        seed: int >= 0. The seed of S and z. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: `num_matvecs` is out of range, or a product is not finite.
        MemoryError: The sketch, n s numbers, does not fit into the memory that is free.
    """
    total = _checks.integer("num_matvecs", num_matvecs, at_least=6)
    n, before = operator.shape[0], operator.matvecs
    rng = np.random.default_rng(seed)
    exact = total >= n
    size = 0 if exact else max(min(total // 3, (total - _FEWEST_SAMPLES) // 2), 0)
    # The sketch, what LAPACK takes beside it, and a block of products.
    needed = 8 * n * (2 * size + 3 * operator.block_size)
    _memory.require(
        needed, f"A sketch of {size:,} columns for {n:,} weights",
        "take a smaller `num_matvecs`, or select layers with `variables`",
    )  # fmt: skip
    with progress_bar(n if exact else total, "trace", progress) as bar:

        def forms(vectors: Array) -> Array:
            bar.update(len(vectors))
            return np.einsum("ij,ij->i", vectors, finite(operator @ vectors.T).T)

        if exact:
            parts = [forms(np.eye(len(b), n, b.start)) for b in _blocks(n, operator)]
            return Trace(
                float(np.concatenate(parts).sum()),
                0.0,
                operator.matvecs - before,
                measured_at=operator.measured_at,
            )
        q = np.zeros((n, size), order="F")
        for block in _blocks(size, operator):
            columns = operator @ random_signs(rng, (len(block), n)).T
            q[:, block.start : block.stop] = finite(columns)
            bar.update(len(block))
        q = _orthonormal(q)
        inside = [forms(q[:, b.start : b.stop].T) for b in _blocks(size, operator)]
        samples = []
        for block in _blocks(total - 2 * size, operator):
            z = rng.standard_normal((len(block), n))
            z -= (z @ q) @ q.T
            z *= np.sqrt(n - size) / np.linalg.norm(z, axis=1, keepdims=True)
            samples.append(forms(z))
    found = np.concatenate(samples)
    estimate = sum(float(part.sum()) for part in inside) + float(found.mean())
    return Trace(
        estimate,
        float(standard_error(found)),
        operator.matvecs - before,
        measured_at=operator.measured_at,
    )


def _blocks(count: int, operator: CurvatureOperator) -> list[range]:
    width = operator.block_size
    return [range(at, min(at + width, count)) for at in range(0, count, width)]


def _orthonormal(columns: Array) -> Array:
    """Return an orthonormal basis of at least the range of [n, s] columns, in their place."""
    from scipy.linalg import qr

    if not columns.shape[1]:
        return columns
    return qr(columns, mode="economic", overwrite_a=True, check_finite=False)[0]
