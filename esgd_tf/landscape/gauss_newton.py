"""The generalised Gauss-Newton matrix of the loss: J' (∇²_z l) J for the network's output z."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from esgd_tf.landscape._jacobian import through_jacobian
from esgd_tf.landscape.operator import CurvatureOperator

__all__ = ["GaussNewtonOperator"]


class GaussNewtonOperator(CurvatureOperator):
    """The generalised Gauss-Newton matrix: the Hessian without the curvature of the network.

    G = 1/N Σ_i J_i' (∇²_z l_i) J_i, positive semi-definite if the loss is convex in the output z.
    For softmax with cross entropy, and other losses that are the negative logarithm of an
    exponential family in its natural parameters, it is the Fisher information. Losses that layers
    add are left out.

    Source: Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent",
    2002; Martens, "New insights and perspectives on the natural gradient method", 2020.

    Args:
        model: As for `HessianOperator`, but a Keras model.
        loss: As there.
        data: As there.
        batch_size: As there.
        variables: As there.

    Raises:
        ValueError: As there.
    """

    def _check(self) -> None:
        if not self._objective.has_predictions:
            raise ValueError(
                "A Gauss-Newton matrix is that of a loss after a network: give a Keras model."
            )

    def _product_on_a_device(
        self, weights: Any, vectors: Any, held: Any, x: Any, y: Any, sample_weight: Any
    ) -> list[tf.Tensor]:
        def outputs(weights: Any) -> tf.Tensor:
            return self._objective.forward(weights, held, x)[0]

        def curve(predictions: tf.Tensor, tangents: list[tf.Tensor]) -> list[tf.Tensor]:
            with tf.GradientTape(persistent=True) as outer:
                outer.watch(predictions)
                with tf.GradientTape() as inner:
                    inner.watch(predictions)
                    total = self._objective.loss_of_predictions(x, y, predictions, sample_weight)
                slope = inner.gradient(total, predictions)
            return [
                outer.gradient(slope, predictions, t, unconnected_gradients="zero")
                for t in tangents
            ]

        return through_jacobian(outputs, weights, vectors, curve)
