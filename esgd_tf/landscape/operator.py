"""Curvature matrices of the loss that are never formed: products with vectors.

For f(w) = 1/N Σ_i l_i(w) over ALL the data, the operators are symmetric and linear, of dimension n,
the number of weights: the Hessian in `hessian.py`, the Gauss-Newton matrix in `gauss_newton.py`,
the Fisher matrix in `fisher.py`; what they share is here, and `relative_operator.py` puts any of
them in units of the weights. A product costs about as much as two gradients and needs no more
memory. `H @ v` takes a vector or the columns of a matrix, `H.as_linear_operator()` is for SciPy,
and eigenvalues, density and trace of any of them have modules of their own.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from esgd_tf.landscape._batch_loss import BatchLoss
from esgd_tf.landscape._diagonal import DiagonalEstimate, estimate_diagonal
from esgd_tf.landscape._objective import Objective, Selection
from esgd_tf.landscape._try import NOT_DIFFERENTIABLE, no_products, try_products
from esgd_tf.landscape._types import Data, Held, Loss, Nested, Network, Tensors, Vector, Weights

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["CurvatureOperator", "stacked"]


class CurvatureOperator:
    """The methods that the three operators share.

    Attributes:
        shape: (n, n).
        dtype: float64, whatever the model computes in: sums over batches are.
        matvecs: The number of products with a vector so far.
        measured_at: At which weights: "weights", those that the model holds or that were given;
            "anchor", of a model that is trained by `EntropySGD` and is between two outer updates;
            "mean", inside `evaluate_at(model, "mean")`; or "center", of a model of replicas.
    """

    dtype = np.dtype(np.float64)
    measured_at = "weights"
    #: The name of the matrix in messages.
    matrix = "the Hessian"
    #: Whether it contains second derivatives of the loss, by weights or by predictions.
    needs_second_derivatives = True

    def __init__(
        self,
        model: Network,
        loss: Loss = None,
        data: Data = None,
        *,
        batch_size: int | None = None,
        variables: Selection = None,
    ) -> None:
        self._objective = Objective(model, loss, data, batch_size=batch_size, variables=variables)
        self._objective.finite_start()
        self._check()
        self._try()
        self.measured_at = self._objective.measured_at
        n = self._objective.size
        self.shape = (n, n)
        self.matvecs = 0

    def _check(self) -> None:
        """Refuse an objective that has no such operator."""

    def _try(self) -> None:
        """Refuse a network or a loss with which products would be wrong: see `_check.py`."""
        objective = self._objective
        key = (type(self), tuple(objective.batch_loss.selected))
        if key not in objective.traces.tried:
            try_products(self)
            objective.traces.tried.add(key)

    def at(self, weights: Weights | ArrayLike | None = None) -> Self:
        """Return this operator at other weights, without tracing its graph anew.

        Args:
            weights: list of arrays, or a flat vector of shape [n]. The weights. Defaults to None,
                which takes those that the model has now (then BatchNormalization statistics are
                read anew too).
        """
        other = copy.copy(self)
        if weights is None:
            other._objective = self._objective.reread()
        else:
            other._objective = self._objective.moved_to(weights)
        other._objective.finite_start()
        other.measured_at = other._objective.measured_at
        other.matvecs = 0
        return other

    # ---- products -------------------------------------------------------------------------------

    def __matmul__(self, v: ArrayLike) -> Vector:
        """Return the product with a vector [n] or with the columns of a matrix [n, k]."""
        v = np.asarray(v)
        n = self.shape[0]
        if v.ndim not in (1, 2) or v.shape[0] != n:
            raise ValueError(f"The operator has dimension {n:,}; got an array of shape {v.shape}.")
        if not np.issubdtype(v.dtype, np.number) or np.iscomplexobj(v):
            raise ValueError(f"The operator acts on real numbers; got dtype {v.dtype}.")
        if v.ndim == 1:
            return self._columns(v[None, :])[0]
        if v.shape[1] == 0:
            return np.zeros(v.shape)
        return self._columns(np.ascontiguousarray(v.T)).T

    def _columns(self, rows: NDArray[np.number[Any]]) -> Vector:
        """Return the products with the rows of a [k, n] array, as rows."""
        objective, width = self._objective, self.block_size
        result = np.empty(rows.shape)
        for at in range(0, len(rows), width):
            block = rows[at : at + width]
            # The last block is filled up with zeros, so that it needs no graph of its own.
            full = len(block) if at == 0 or len(block) == 1 else width
            padded = np.zeros((full, rows.shape[1]))
            padded[: len(block)] = block
            vectors, start = [], 0
            for shape, dtype in zip(objective.shapes, objective.dtypes, strict=True):
                stop = start + int(np.prod(shape))
                vectors.append(tf.constant(padded[:, start:stop].reshape(full, *shape), dtype))
                start = stop
            kind = type(self)
            product = objective.graph((kind, full), kind._graph_product)
            try:
                sums = objective.sum_over_batches(product, objective.start, vectors)
            except NOT_DIFFERENTIABLE as error:
                raise no_products(self) from error
            flat = np.concatenate([s.reshape(full, -1) for s in sums], axis=1)
            result[at : at + width] = flat[: len(block)]
        self.matvecs += len(rows)
        result /= objective.count
        return result

    @property
    def block_size(self) -> int:
        """The number of columns that are multiplied at once."""
        return 8

    @classmethod
    def _graph_product(cls, f: BatchLoss, *arguments: Nested) -> Tensors:
        return f.run(functools.partial(cls._product_of_a_batch, f), *arguments)

    @staticmethod
    def _product_of_a_batch(
        f: BatchLoss, weights: Tensors, vectors: Tensors, held: Held, *batch: Nested
    ) -> Tensors:
        """Return the products for a batch, summed over its examples, while a graph is traced.

        Args:
            f: BatchLoss. The loss whose curvature it is.
            weights: list of tensors. The weights at which the curvature is taken.
            vectors: list of tensors of shape [k, *shape], one for each weight. The k vectors.
            held: pair of lists of tensors. What the loss is not a function of.
            *batch: x, y and sample_weight.

        Returns:
            A tensor of shape [k, *shape] for each weight.
        """
        raise NotImplementedError

    @staticmethod
    def _difference(
        f: BatchLoss, weights: Tensors, vector: Tensors, step: float, held: Held, *batch: Nested
    ) -> Tensors:
        """Return the product with one vector by a difference quotient of first derivatives.

        `_try.py` compares it with `_product_of_a_batch`.
        """
        raise NotImplementedError

    # ---- other views of it ----------------------------------------------------------------------

    def as_linear_operator(self) -> LinearOperator:
        """Return the operator as SciPy's solvers take it."""
        from scipy.sparse.linalg import LinearOperator

        return LinearOperator(
            self.shape,
            matvec=lambda v: self @ np.ravel(v),
            rmatvec=lambda v: self @ np.ravel(v),
            matmat=lambda v: self @ v,
            rmatmat=lambda v: self @ v,
            dtype=self.dtype,
        )

    def weights(self) -> Vector:
        """Return w, the weights at which the curvature is taken, a vector [n]."""
        return self._objective.flatten(self._objective.start)

    def loss(self) -> float:
        """Return f(w)."""
        return self._objective.evaluate()["loss"]

    def gradient(self) -> Vector:
        """Return ∇f(w), a vector [n]."""
        return self._objective.value_and_gradient()[1]

    def unflatten(self, v: ArrayLike) -> list[NDArray[np.floating[Any]]]:
        """Return a vector [n] as a list of arrays in the shapes of the weights."""
        return [t.numpy() for t in self._objective.unflatten(v)]

    def diagonal_estimate(
        self, num_probes: int = 100, *, seed: int = 0, progress: bool | None = None
    ) -> DiagonalEstimate:
        """Estimate the diagonal from products with random signs.

        With z uniform on {-1, 1}^n, E[z * (H z)] = diag H (Bekas, Kokiopoulou and Saad, "An
        estimator for the diagonal of a matrix", 2007).

        About 95 of 100 entries lie within two standard errors, which contain Student's factor for
        the number of probes. With fewer than ten probes it may be less where a row has only a few
        entries beside the diagonal, whose signs may agree by chance in all probes.

        Args:
            num_probes: int >= 2. Products with a vector. Defaults to 100.
            seed: int >= 0. The seed of the signs. Defaults to 0.
            progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

        Raises:
            ValueError: `num_probes` is out of range, or a product is not finite.
        """
        return estimate_diagonal(self, num_probes, seed=seed, progress=progress)


def stacked(columns: Iterable[Tensors]) -> Tensors:
    """Return k lists of tensors as one list of stacked tensors [k, *shape]."""
    return [tf.stack(parts) for parts in zip(*columns, strict=True)]
