"""The empirical Fisher matrix of the loss: the second moment of the gradients of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from esgd_tf.landscape._jacobian import through_jacobian
from esgd_tf.landscape._objective import Selection
from esgd_tf.landscape.operator import CurvatureOperator

__all__ = ["FisherOperator"]


class FisherOperator(CurvatureOperator):
    """The empirical Fisher matrix: the second moment of the gradients of single examples.

    F = 1/N Σ_i g_i g_i' with g_i the gradient of example i's loss at its own label; with
    `centered`, the covariance F - ∇f ∇f', whose diagonal is what Chaudhari et al. (2017) plot for
    their largest network. Losses that layers add are left out.

    Args:
        model: As for `HessianOperator`.
        loss: As there; it must give a value for each example.
        data: As there.
        batch_size: As there.
        variables: As there.
        centered: Whether to subtract the mean gradient.

    Raises:
        ValueError: As there, or there are no examples.
    """

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
        if not self._objective.has_examples or self._objective.loss_is_a_mean():
            raise ValueError(
                "The Fisher matrix needs the loss of each example: give data, and a loss that "
                "returns one value for each."
            )

    def _columns(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        result = super()._columns(rows)
        if self.centered:
            if self._mean is None:
                ones = tf.function(self._graph_mean_gradient, autograph=False)
                sums = self._objective.sum_over_batches(ones, self._objective.start)
                self._mean = self._objective.flatten(sums) / self._objective.count
            result -= np.outer(rows @ self._mean, self._mean)
        return result

    def _graph_mean_gradient(self, *arguments: Any) -> Any:
        def on_a_device(weights: Any, held: Any, x: Any, y: Any, sample_weight: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                losses = self._objective.per_example_loss(weights, held, x, y)
                total = tf.reduce_sum(losses * tf.cast(sample_weight, losses.dtype))
            return tape.gradient(total, weights, unconnected_gradients="zero")

        return self._objective.run(on_a_device, *arguments)

    def _product_on_a_device(
        self, weights: Any, vectors: Any, held: Any, x: Any, y: Any, sample_weight: Any
    ) -> list[tf.Tensor]:
        return through_jacobian(
            lambda w: self._objective.per_example_loss(w, held, x, y),
            weights,
            vectors,
            lambda losses, tangents: [t * tf.cast(sample_weight, t.dtype) for t in tangents],
        )
