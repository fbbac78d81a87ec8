"""A search for eigenvectors that Lanczos left out, in the complement of those that are known.

Lanczos' recurrence from one vector finds only one vector of each eigenspace, whatever its
dimension: the projection of the start onto it. Another random vector has other projections. With V
the known vectors and P = 1 - V V', the recurrence for P H P, from P times a random vector, tells
whether an eigenvalue is left that is further out than the known ones, and finds it.

Source: Parlett, "The symmetric eigenvalue problem", 1998, sections 4.5 (the bound by a residual)
and 13.2 (one vector of each eigenspace).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from esgd_tf.landscape import _memory
from esgd_tf.landscape._vectors import Array, random_unit

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["Found", "Search", "complete", "search"]

# A bound by the residual means little before the extreme vectors stand out.
_FEWEST_STEPS = 5
# Below this part of its length, the rest of a product is float64 rounding.
_BREAKDOWN = 1e-13
# With more, orthogonalization would take most of the time.
_MOST_STEPS = 300


class Found:
    """The eigenpairs found so far, with bounds on all the others.

    Args:
        linear: scipy.sparse.linalg.LinearOperator. H, which multiplies a vector or columns.
        vectors: array of shape [n, j], of full rank. The vectors found so far.
        k: int >= 1. How many are wanted.
        ends: pair of ints, or None for the largest in magnitude. How many of them are wanted (from
            below, from above).

    Attributes:
        vectors: [n, j], orthonormal, such that V' H V is diagonal.
        values: [j], descending.
        residuals: [j], the norms of H v - λ v.
        highest: A bound: as far as is known, no other eigenvalue is above it.
        lowest: A bound: as far as is known, no other eigenvalue is below it.
    """

    def __init__(
        self, linear: LinearOperator, vectors: Array, k: int, ends: tuple[int, int] | None
    ) -> None:
        self.linear, self._k, self._ends = linear, k, ends
        n = linear.shape[0]
        self.vectors = self._images = np.zeros((n, 0))
        self.values = self.residuals = np.zeros(0)
        self.highest, self.lowest = np.inf, -np.inf
        if vectors.shape[1]:
            self.add(np.linalg.qr(vectors)[0])

    def add(self, vectors: Array) -> None:
        """Add vectors, orthonormal and orthogonal to the known ones (Rayleigh-Ritz)."""
        both = np.hstack([self.vectors, vectors])
        images = np.hstack([self._images, self.linear @ vectors])
        matrix = both.T @ images
        values, turn = np.linalg.eigh((matrix + matrix.T) / 2)
        turn = turn[:, ::-1]
        self.values, self.vectors, self._images = values[::-1], both @ turn, images @ turn
        self.residuals = np.linalg.norm(self._images - self.vectors * self.values, axis=0)
        self.highest, self.lowest = np.inf, -np.inf

    def limits(self, slack: float) -> tuple[float, float]:
        """Return the interval outside of which no other eigenvalue may be."""
        if self._ends is None:
            least = float(np.abs(self.values[self._chosen()]).min()) + slack
            return -least, least
        (low, high), count = self._ends, len(self.values)
        return (
            float(self.values[-min(low, count)]) - slack if low else -np.inf,
            float(self.values[min(high, count) - 1]) + slack if high else np.inf,
        )

    def best(self, slack: float) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
        """Return k values, vectors and residuals, and which of them are known to be wanted ones."""
        chosen = self._chosen()
        above = self.highest <= self.values + slack
        below = self.lowest >= self.values - slack
        if self._ends is None:
            size = np.abs(self.values) + slack
            sure = (self.highest <= size) & (self.lowest >= -size)
            at = len(chosen)
        else:
            low, high = self._ends
            sure = np.where(np.arange(len(self.values)) < high, above, below)
            at = min(high, len(chosen))
            if low and high and len(chosen) < self._k:
                sure[:] = False  # it is not known which end they belong to
        # The missing ones are those nearest to the middle of the spectrum.
        missing = self._k - len(chosen)
        columns = np.insert(chosen, at, np.full(missing, -1)) if missing else chosen
        absent = columns < 0
        values, residuals = (np.append(a, np.nan)[columns] for a in (self.values, self.residuals))
        vectors = np.full((self.linear.shape[0], self._k), np.nan)
        vectors[:, ~absent] = self.vectors[:, chosen]
        return values, vectors, residuals, np.append(sure, False)[columns]

    def _chosen(self) -> NDArray[np.intp]:
        """Return the indices of the k wanted, or of all if there are fewer."""
        count = len(self.values)
        if count <= self._k:
            return np.arange(count)
        if self._ends is None:
            return np.sort(np.argsort(-np.abs(self.values), kind="stable")[: self._k])
        low, high = self._ends
        return np.r_[:high, count - low : count]


def complete(found: Found, slack: float, products: int | None, rng: np.random.Generator) -> None:
    """Find missing eigenpairs, until none is left that is further out than the k wanted.

    Args:
        found: Found. The eigenpairs so far. Missing ones are added to it, with bounds on all
            others.
        slack: float >= 0. The distance by which others may be further out. It is twice the
            largest residual of the vectors that are found here.
        products: int >= 1. The number of products after which it gives up; None for no limit but
            `_MOST_STEPS` at a time.
        rng: np.random.Generator. The source of the starts.
    """
    start: Array | None = None
    while (found.residuals <= slack).any() and (products is None or products > 0):
        steps = _MOST_STEPS if products is None else min(products, _MOST_STEPS)
        # The basis takes 8 bytes a number, and the vectors made of it as many.
        steps = _memory.rows_that_fit(16 * len(found.vectors), steps)
        if not steps or found.vectors.shape[1] == len(found.vectors):
            return
        result = search(
            found.linear, found.vectors, found.limits(slack), accuracy=slack / 2, steps=steps,
            rng=rng, start=start,
        )  # fmt: skip
        if products is not None:
            products -= result.products
        if result.vectors is not None:
            found.add(result.vectors)
        elif start is None:
            found.highest, found.lowest = result.highest, result.lowest
            if result.start is None:
                return
        # Where going on from there found nothing, the next search starts at a random vector.
        start = result.start


@dataclasses.dataclass(frozen=True)
class Search:
    """The result of a search.

    Attributes:
        vectors: [n, j], orthonormal and in the complement: approximate eigenvectors whose
            eigenvalues are further out than the limits. None if there are none, or not yet.
        highest: A bound: as far as can be told, no eigenvalue of the complement is above it.
        lowest: A bound: as far as can be told, no eigenvalue of the complement is below it.
        start: [n], the vector to go on from if the search ended before its vectors were accurate;
            else None.
        products: The number of products with H that it took.
    """

    vectors: Array | None
    highest: float
    lowest: float
    start: Array | None
    products: int


def search(
    linear: LinearOperator,
    known: Array,
    limits: tuple[float, float],
    *,
    accuracy: float,
    steps: int,
    rng: np.random.Generator,
    start: Array | None = None,
) -> Search:
    """Look for eigenvalues outside of an interval, in the complement of known eigenvectors.

    It ends as soon as its outermost Ritz values, with their residuals, lie inside the interval, or
    those outside have become accurate.

    Args:
        linear: scipy.sparse.linalg.LinearOperator. H, which multiplies a vector.
        known: array of shape [n, j], with orthonormal columns. V, what is known already.
        limits: pair of floats. (lower, upper), infinite where that end is not asked for.
        accuracy: float > 0. The residual at which a vector is good enough.
        steps: int >= 1. The most products.
        rng: np.random.Generator. The source of the start.
        start: array of shape [n]. Where to begin. Defaults to None, which begins at a random
            vector; without it "none" means nothing.
    """
    n, (lower, upper) = len(known), limits
    q = _outside(known, random_unit(rng, n) if start is None else start)
    q /= np.linalg.norm(q)
    steps = min(steps, n - known.shape[1])
    basis = np.empty((steps, n))
    alphas, betas, scale = np.zeros(steps), np.zeros(steps), 0.0
    theta = residuals = ritz = np.zeros(0)
    for step in range(steps):
        basis[step] = q
        w = linear @ q
        scale = max(scale, float(np.linalg.norm(w)))
        alphas[step] = q @ w
        so_far = basis[: step + 1]
        for _ in range(2):
            w = _outside(known, w)
            w -= so_far.T @ (so_far @ w)
        betas[step] = np.linalg.norm(w)
        ended = betas[step] <= _BREAKDOWN * scale or step == n - known.shape[1] - 1
        if ended:
            betas[step] = 0.0
        theta, ritz, residuals = _ritz(alphas[: step + 1], betas[: step + 1])
        beyond = (theta > upper) | (theta < lower)
        if beyond.any():
            done = bool((residuals[beyond] <= accuracy).all())
        else:
            inside = theta[-1] + residuals[-1] <= upper and theta[0] - residuals[0] >= lower
            done = inside and step + 1 >= _FEWEST_STEPS
        if ended or done:
            break
        q = w / betas[step]
    highest, lowest = float(theta[-1] + residuals[-1]), float(theta[0] - residuals[0])
    if not beyond.any():
        return Search(None, highest, lowest, None, step + 1)
    vectors = _orthonormal(known, so_far.T @ ritz[:, beyond])
    if done or ended:
        return Search(vectors, highest, lowest, None, step + 1)
    return Search(None, highest, lowest, vectors.sum(axis=1), step + 1)


def _outside(known: Array, w: Array) -> Array:
    return w - known @ (known.T @ w)


def _ritz(alphas: Array, betas: Array) -> tuple[Array, Array, Array]:
    """Return Ritz values, their vectors in the basis, and the residuals."""
    from scipy.linalg import eigh_tridiagonal

    theta, vectors = eigh_tridiagonal(alphas, betas[:-1])
    return theta, vectors, betas[-1] * np.abs(vectors[-1])


def _orthonormal(known: Array, vectors: Array) -> Array:
    for _ in range(2):
        vectors, _ = np.linalg.qr(_outside(known, vectors))
    return vectors
