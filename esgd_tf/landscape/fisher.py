"""The empirical Fisher matrix of the loss: the second moment of the gradients of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from esgd_tf.landscape._jacobian import through_differences, through_jacobian
from esgd_tf.landscape._objective import Selection
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
        ValueError: As there, or there are no examples.
    """

    matrix = "the Fisher matrix"
    needs_second_derivatives = False

    def __init__(
        self,
        model: keras.Model | Sequence[Any],
        loss: Any = None,
        data: Any = None,
        *,
        batch_size: int | None = None,
        variables: Selection = None,
        centered: bool = False,
    ) -> None:
        super().__init__(model, loss, data, batch_size=batch_size, variables=variables)
        self.centered = bool(centered)
        self._mean: NDArray[np.float64] | None = None

    def at(self, weights: Sequence[Any] | ArrayLike | None = None) -> CurvatureOperator:
        """See `CurvatureOperator.at`."""
        other = super().at(weights)
        other._mean = None  # type: ignore[attr-defined]
        return other

    def _check(self) -> None:
        if not self._objective.has_examples or not self._objective.traces.loss.sees_examples:
            raise ValueError(
                "The Fisher matrix needs the loss of each example: give data, and a loss that "
                "returns one value for each."
            )

    def _columns(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        result = super()._columns(rows)
        if self.centered:
            if self._mean is None:
                graph = self._objective.graph("means", type(self)._graph_means, of=self)
                *slopes, weights = self._objective.sum_over_batches(graph, self._objective.start)
                # Scaled so that its outer product with itself is what has to be subtracted.
                scale = np.sqrt(self._objective.count * float(weights))
                self._mean = self._objective.flatten(slopes) / scale
            result -= np.outer(rows @ self._mean, self._mean)
        return result

    def _graph_means(self, *arguments: Any) -> Any:
        def on_a_device(weights: Any, held: Any, x: Any, y: Any, sample_weight: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                losses, counts = self._losses(weights, held, x, y, sample_weight)
                total = tf.reduce_sum(losses * counts)
            slopes = tape.gradient(total, weights, unconnected_gradients="zero")
            return [*(tf.convert_to_tensor(slope) for slope in slopes), tf.reduce_sum(counts)]

        return self._objective.run(on_a_device, *arguments)

    def _losses(
        self, weights: Any, held: Any, x: Any, y: Any, sample_weight: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the loss of each example [n], and how many times each counts [n]."""
        parts = tf.nest.flatten(sample_weight)
        one_each = len(parts) == 1 and parts[0] is not None and _is_column(parts[0])
        # Weights of the steps or pixels of an example belong to its loss.
        inside = None if one_each else sample_weight
        losses = self._objective.loss_of_each_example(weights, held, x, y, inside)
        if not one_each:
            return losses, tf.ones_like(losses)
        return losses, tf.cast(tf.reshape(parts[0], [-1]), losses.dtype)

    def _product_on_a_device(
        self, weights: Any, vectors: Any, held: Any, x: Any, y: Any, sample_weight: Any
    ) -> list[tf.Tensor]:
        losses, counts = self._outputs(held, x, y, sample_weight)
        return through_jacobian(
            losses, weights, vectors, lambda _, tangents: [[t[0] * counts[-1]] for t in tangents]
        )

    def _difference(
        self, weights: Any, vector: Any, step: float, held: Any, x: Any, y: Any, sample_weight: Any
    ) -> list[tf.Tensor]:
        losses, counts = self._outputs(held, x, y, sample_weight)
        return through_differences(
            losses, weights, vector, lambda _, tangent, h: [tangent[0] * counts[-1]], step
        )

    def _outputs(self, held: Any, x: Any, y: Any, sample_weight: Any) -> Any:
        """Return the losses of examples as a function of the weights, and where it puts counts."""
        counts: list[tf.Tensor] = []

        def losses(weights: Any) -> list[tf.Tensor]:
            values, count = self._losses(weights, held, x, y, sample_weight)
            counts.append(count)
            return [values]

        return losses, counts


def _is_column(weight: tf.Tensor) -> bool:
    return weight.shape.rank == 1 or (weight.shape.rank == 2 and weight.shape[1] == 1)
