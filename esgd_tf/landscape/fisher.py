"""The empirical Fisher matrix of the loss: the second moment of the gradients of examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from esgd_tf.landscape._batch_loss import BatchLoss
from esgd_tf.landscape._jacobian import through_differences, through_jacobian
from esgd_tf.landscape._objective import Selection
from esgd_tf.landscape._types import Data, Held, Loss, Nested, Network, Tensors, Vector, Weights
from esgd_tf.landscape.operator import CurvatureOperator

__all__ = ["FisherOperator"]


class FisherOperator(CurvatureOperator):
    """The empirical Fisher matrix: the second moment of the gradients of single examples.

    F = 1/N Σ_i w_i g_i g_i' with g_i the gradient of example i's loss at its own label and w_i its
    sample weight, 1 without. With `centered` it is the covariance, 1/N Σ_i w_i (g_i - m)(g_i - m)'
    with m the weighted mean of the g_i, whose diagonal is what Chaudhari et al. (2017) plot for
    their largest network. Losses that layers add are left out. Where Keras' loss of an example
    depends on its batch by the number of steps that masks leave in it, so does g_i.

    Args:
        model: keras.Model that is built, or a list of weights. The network, as for
            `HessianOperator`.
        loss: nested structure of losses, or callable. The loss, as for `HessianOperator`; it must
            give a value for each example. Defaults to None, which takes the one that the model was
            compiled with.
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data, as for
            `HessianOperator`. Defaults to None, which means that there are none.
        batch_size: int >= 1. Examples at a time, for arrays, as for `HessianOperator`. Defaults to
            None, which means 512, or 32 where it matters how the data are cut.
        variables: list of variables, layers, names or indices, or a callable. The weights that f is
            a function of, as for `HessianOperator`. Defaults to None, which means all trainable
            ones.
        centered: bool. Whether to subtract the mean gradient. Defaults to False.

    Raises:
        ValueError: As for `HessianOperator`, or the loss has no value for each example.
    """

    matrix = "the Fisher matrix"
    needs_second_derivatives = False

    def __init__(
        self,
        model: Network,
        loss: Loss = None,
        data: Data = None,
        *,
        batch_size: int | None = None,
        variables: Selection = None,
        centered: bool = False,
    ) -> None:
        super().__init__(model, loss, data, batch_size=batch_size, variables=variables)
        self.centered = bool(centered)
        self._mean: Vector | None = None

    def at(self, weights: Weights | ArrayLike | None = None) -> Self:
        """See `CurvatureOperator.at`."""
        other = super().at(weights)
        other._mean = None
        return other

    def _check(self) -> None:
        if not self._objective.has_examples or not self._objective.traces.loss.sees_examples:
            raise ValueError(
                "The Fisher matrix needs the loss of each example: give data, and a loss that "
                "returns one value for each."
            )

    def _columns(self, rows: NDArray[np.number[Any]]) -> Vector:
        result = super()._columns(rows)
        if self.centered:
            if self._mean is None:
                graph = self._objective.graph("means", _graph_means)
                *slopes, weights = self._objective.sum_over_batches(graph, self._objective.start)
                # Scaled so that its outer product with itself is what has to be subtracted.
                scale = np.sqrt(self._objective.count * float(weights))
                self._mean = self._objective.flatten(slopes) / scale
            result -= np.outer(rows @ self._mean, self._mean)
        return result

    @staticmethod
    def _product_of_a_batch(
        f: BatchLoss, weights: Tensors, vectors: Tensors, held: Held, *batch: Nested
    ) -> Tensors:
        losses, counts = _outputs(f, held, *batch)
        return through_jacobian(
            losses, weights, vectors, lambda _, tangents: [[t[0] * counts[-1]] for t in tangents]
        )

    @staticmethod
    def _difference(
        f: BatchLoss, weights: Tensors, vector: Tensors, step: float, held: Held, *batch: Nested
    ) -> Tensors:
        losses, counts = _outputs(f, held, *batch)
        return through_differences(
            losses, weights, vector, lambda _, tangent, h: [tangent[0] * counts[-1]], step
        )


def _graph_means(f: BatchLoss, *arguments: Nested) -> Tensors:
    """Return the weighted sum of the gradients of examples, and the sum of their weights."""

    def on_a_device(weights: Tensors, held: Held, *batch: Nested) -> Tensors:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            losses, counts = _losses(f, weights, held, *batch)
            total = tf.reduce_sum(losses * counts)
        slopes = tape.gradient(total, weights, unconnected_gradients="zero")
        return [*(tf.convert_to_tensor(slope) for slope in slopes), tf.reduce_sum(counts)]

    return f.run(on_a_device, *arguments)


def _outputs(
    f: BatchLoss, held: Held, *batch: Nested
) -> tuple[Callable[[Tensors], Tensors], Tensors]:
    """Return the losses of examples as a function of the weights, and the list of their counts.

    Each call of the function appends to the list how many times each example counts.
    """
    counts: Tensors = []

    def losses(weights: Tensors) -> Tensors:
        values, count = _losses(f, weights, held, *batch)
        counts.append(count)
        return [values]

    return losses, counts


def _losses(
    f: BatchLoss, weights: Tensors, held: Held, x: Nested, y: Nested, sample_weight: Nested
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the loss of each example [n], and how many times each counts [n]."""
    parts = tf.nest.flatten(sample_weight)
    one_each = len(parts) == 1 and parts[0] is not None and _is_column(parts[0])
    # Weights of the steps or pixels of an example belong to its loss.
    inside = None if one_each else sample_weight
    losses = f.loss_of_each_example(weights, held, x, y, inside)
    if not one_each:
        return losses, tf.ones_like(losses)
    return losses, tf.cast(tf.reshape(parts[0], [-1]), losses.dtype)


def _is_column(weight: tf.Tensor) -> bool:
    return weight.shape.rank == 1 or (weight.shape.rank == 2 and weight.shape[1] == 1)
