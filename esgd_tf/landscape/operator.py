"""Curvature matrices of the loss that are never formed: products with vectors.

For f(w) = 1/N Σ_i l_i(w) over ALL the data, the operators are symmetric and linear, of dimension n,
the number of weights: the Hessian here, the Gauss-Newton matrix in `gauss_newton.py`, the Fisher
matrix in `fisher.py`. A product costs about as much as two gradients and needs no more memory.
`H @ v` takes a vector or the columns of a matrix, `H.as_linear_operator()` is for SciPy, and
eigenvalues, density and trace of any of them have modules of their own.

The Hessian product is reverse over reverse (Pearlmutter, "Fast exact multiplication by the
Hessian", 1994): the graph of the gradient is differentiated with v as output gradient,

    H v = ∇(∇f(w) · v),

and several columns share one evaluation of the gradient. (Forward over reverse takes longer on CPU:
benchmarks/landscape.py.)
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from esgd_tf.landscape._check import moved, quotient
from esgd_tf.landscape._objective import Objective, Selection
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, axes
from esgd_tf.landscape._try import NOT_DIFFERENTIABLE, no_products, try_products
from esgd_tf.landscape._vectors import finite, random_signs, student_factor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from scipy.sparse.linalg import LinearOperator

__all__ = ["CurvatureOperator", "DiagonalEstimate", "HessianOperator"]


class CurvatureOperator:
    """The common face of the three operators; see there.

    Attributes:
        shape: (n, n).
        dtype: float64, whatever the model computes in: sums over batches are.
        matvecs: Products with a vector so far.
        measured_at: Around which weights: "weights", those that the model holds or that were given;
            "anchor", of a model that is trained by `EntropySGD` and is between two outer updates;
            "mean", inside `evaluate_at(model, "mean")`; or "center", of a model of replicas.
    """

    dtype = np.dtype(np.float64)
    measured_at = "weights"
    #: What it is, in messages.
    matrix = "the Hessian"
    #: Whether it has second derivatives of the loss in it, by weights or by predictions.
    needs_second_derivatives = True

    def __init__(
        self,
        model: keras.Model | Sequence[Any],
        loss: Any = None,
        data: Any = None,
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
        """Refuse a network or a loss of which products would be wrong: see `_check.py`."""
        objective = self._objective
        tried = objective.traces.graphs
        key = ("tried", type(self), tuple(objective._selected))
        if key not in tried:
            try_products(self)
            tried[key] = True

    def at(self, weights: Sequence[Any] | ArrayLike | None = None) -> CurvatureOperator:
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

    # ---- products -----------------------------------------------------------------------------

    def __matmul__(self, v: ArrayLike) -> NDArray[np.float64]:
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

    def _columns(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Return the products with the rows of a [k, n] array, as rows."""
        objective, width = self._objective, self.block_size
        result = np.empty(rows.shape)
        for at in range(0, len(rows), width):
            block = rows[at : at + width]
            # What is left over after full blocks gets zeros, not a graph of its own.
            full = len(block) if at == 0 or len(block) == 1 else width
            padded = np.zeros((full, rows.shape[1]))
            padded[: len(block)] = block
            vectors, start = [], 0
            for shape, dtype in zip(objective.shapes, objective.dtypes, strict=True):
                stop = start + int(np.prod(shape))
                vectors.append(tf.constant(padded[:, start:stop].reshape(full, *shape), dtype))
                start = stop
            kind = type(self)
            product = objective.graph((kind, full), kind._graph_product, of=self)
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
        """Columns that are multiplied at once, where there are several."""
        return 8

    def _graph_product(
        self, weights: Any, vectors: Any, held: Any, x: Any, y: Any, sample_weight: Any
    ) -> Any:
        return self._objective.run(
            self._product_on_a_device, weights, vectors, held, x, y, sample_weight
        )

    def _product_on_a_device(
        self, weights: Any, vectors: Any, held: Any, x: Any, y: Any, sample_weight: Any
    ) -> list[tf.Tensor]:
        """In a graph: return [k, *shape] for each weight, summed over the examples of a batch."""
        raise NotImplementedError

    def _difference(
        self, weights: Any, vector: Any, step: float, held: Any, x: Any, y: Any, sample_weight: Any
    ) -> list[tf.Tensor]:
        """Return for one vector what `_product_on_a_device` must, from first derivatives only."""
        raise NotImplementedError

    # ---- other faces --------------------------------------------------------------------------

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

    def loss(self) -> float:
        """Return f(w)."""
        return self._objective.evaluate()["loss"]

    def gradient(self) -> NDArray[np.float64]:
        """Return ∇f(w), a vector [n]."""
        return self._objective.value_and_gradient()[1]

    def unflatten(self, v: ArrayLike) -> list[NDArray[Any]]:
        """Return a vector [n] as a list of arrays in the shapes of the weights."""
        return [t.numpy() for t in self._objective.unflatten(v)]

    def diagonal_estimate(
        self, num_probes: int = 100, *, seed: int = 0, progress: bool | None = None
    ) -> DiagonalEstimate:
        """Estimate the diagonal from products with random signs.

        With z uniform on {-1, 1}^n, E[z * (H z)] = diag H (Bekas, Kokiopoulou and Saad, "An
        estimator for the diagonal of a matrix", 2007).

        Two standard errors hold an entry in about 95 of 100: they have Student's factor for the
        number of probes. But below ten probes it may be fewer where a row has only a few entries
        beside the diagonal, whose signs may agree by chance in all probes.

        Args:
            num_probes: int >= 2. Products with a vector. Defaults to 100.
            seed: int >= 0. The seed of the signs. Defaults to 0.
            progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

        Raises:
            ValueError: `num_probes` is out of range, or a product is not finite.
        """
        integer = isinstance(num_probes, int | np.integer) and not isinstance(num_probes, bool)
        if not integer or num_probes < 2:
            raise ValueError(f"`num_probes` must be an integer of at least 2; got {num_probes!r}.")
        rng = np.random.default_rng(seed)
        # Welford's sums: of squares of what is left of the mean, not of the numbers themselves,
        # whose difference would be rounding where the diagonal dominates.
        mean, squares, seen = np.zeros(self.shape[0]), np.zeros(self.shape[0]), 0
        with progress_bar(num_probes, "diagonal", progress) as bar:
            for at in range(0, num_probes, self.block_size):
                rows = min(self.block_size, num_probes - at)
                z = random_signs(rng, (rows, self.shape[0]))
                for sample in finite(z * self._columns(z)):
                    seen += 1
                    off = sample - mean
                    mean += off / seen
                    squares += off * (sample - mean)
                bar.update(rows)
        error = np.sqrt(squares / (num_probes - 1) / num_probes)
        return DiagonalEstimate(
            mean, student_factor(int(num_probes)) * error, num_probes, measured_at=self.measured_at
        )


@dataclasses.dataclass(frozen=True, eq=False)
class DiagonalEstimate(Result):
    """The diagonal of a curvature operator.

    Attributes:
        estimate: [n].
        standard_error: [n], widened for few probes: see `diagonal_estimate`.
        num_probes: Products with a vector that it took.
    """

    estimate: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    num_probes: int

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the sorted diagonal, with two standard errors."""
        ax = axes(ax)
        order = np.argsort(self.estimate)[::-1]
        rank = np.arange(1, len(order) + 1)
        value, error = self.estimate[order], 2 * self.standard_error[order]
        ax.fill_between(rank, value - error, value + error, alpha=0.3, lw=0, label="± 2 std. err.")
        ax.plot(rank, value, label="estimate")
        ax.set(xlabel="weight, sorted", ylabel="diagonal of the curvature")
        ax.set_yscale("symlog", linthresh=max(float(np.median(np.abs(value))), 1e-12))
        ax.legend()
        return ax


class HessianOperator(CurvatureOperator):
    """The Hessian of the mean loss over all the data, H = ∇²f(w).

    Example:
        >>> H = HessianOperator(model, "sparse_categorical_crossentropy", (x, y))
        >>> eigenpairs(H, k=5).eigenvalues

    The loss is the one that `model.evaluate` reports on the same data: with the loss weights,
    masks, sample weights, reductions and added losses of Keras, and divided by the number of
    examples. Where it matters how the data are cut into batches (masks, losses of a whole batch,
    the reduction "sum"), it is that of these batches.

    The weights are those that the model has now; if it changes later, the operator does not
    (`at()` follows it). Of a model that `EntropySGD` trains and that is between two outer updates
    it is the anchor, not the Langevin weights; of `Replicas`, the center: see `measured_at`. A
    network in mixed precision is measured with activations in float32.

    Args:
        model: keras.Model that is built, or a list of weights. The network. Dropout is off;
            BatchNormalization uses its moving statistics.
        loss: nested structure of losses, or callable. All that `compile` takes as a loss: a Keras
            loss, its name, a function of (y_true, y_pred), or a list or dictionary of these, one
            for each output. With a list of weights a function of (weights, x, y), or of (weights).
            Defaults to None, which takes the loss that the model was compiled with, with its
            `loss_weights`.
        data: tuple of arrays (x, y) or (x, y, sample_weight), or a batched tf.data.Dataset or
            PyDataset. The data, which must be the same batches at each pass. Defaults to None,
            which goes with a loss of the weights alone.
        batch_size: int >= 1. Examples at a time, for arrays; it bounds the memory needed. Defaults
            to None, which means 512, or 32 as in `evaluate` where it matters how data are cut.
        variables: list of layers, variables or names, or a callable of a variable. The weights that
            are varied. Defaults to None, which means all trainable ones.

    Raises:
        ValueError: The data are empty or differ from pass to pass (a dataset that shuffles), or the
            model's outputs do (a layer with random outputs), the loss is not finite at these
            weights or is none that Keras could train, weights are float16 or bfloat16, or
            `variables` names nothing.
    """

    def _product_on_a_device(
        self, weights: Any, vectors: Any, held: Any, x: Any, y: Any, sample_weight: Any
    ) -> list[tf.Tensor]:
        columns = vectors[0].shape[0]
        with tf.GradientTape(persistent=columns > 1, watch_accessed_variables=False) as outer:
            outer.watch(weights)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(weights)
                value = self._objective.loss_sum(weights, held, x, y, sample_weight)
            gradient = inner.gradient(value, weights, unconnected_gradients="zero")
        return stacked(
            outer.gradient(
                gradient,
                weights,
                output_gradients=[v[k] for v in vectors],
                unconnected_gradients="zero",
            )
            for k in range(columns)
        )

    def _difference(
        self, weights: Any, vector: Any, step: float, held: Any, x: Any, y: Any, sample_weight: Any
    ) -> list[tf.Tensor]:
        def gradient(h: float) -> list[tf.Tensor]:
            return self._objective.gradient_sum(
                moved(weights, vector, h), held, x, y, sample_weight
            )

        return quotient(gradient, step)


def stacked(columns: Any) -> list[tf.Tensor]:
    """Return columns, a list of tensors for each, as one list of tensors [k, *shape]."""
    return [tf.stack(parts) for parts in zip(*columns, strict=True)]
