"""The Hessian of the loss.

The product is reverse over reverse (Pearlmutter, "Fast exact multiplication by the Hessian", 1994):
the graph of the gradient is differentiated with v as output gradient,

    H v = ∇(∇f(w) · v),

and several columns share one evaluation of the gradient. (Forward over reverse takes longer on CPU:
benchmarks/landscape.py.)
"""

from __future__ import annotations

import tensorflow as tf

from esgd_tf.landscape._batch_loss import BatchLoss
from esgd_tf.landscape._check import moved, quotient
from esgd_tf.landscape._types import Held, Nested, Tensors
from esgd_tf.landscape.operator import CurvatureOperator, stacked

__all__ = ["HessianOperator"]


class HessianOperator(CurvatureOperator):
    """The Hessian of the mean loss over all the data, H = ∇²f(w).

    Examples:
        >>> from esgd_tf import landscape
        >>> H = landscape.HessianOperator(model, loss, (x, y))
        >>> landscape.eigenpairs(H, k=5).eigenvalues

    The loss is the one that `model.evaluate` reports on the same data: with the loss weights,
    masks, sample weights, reductions and added losses of Keras, and divided by the number of
    examples. Where it matters how the data are cut into batches (masks, losses of a whole batch,
    the reduction "sum"), it is the loss of these batches.

    The weights are those that the model has now; if it changes later, the operator does not
    (`at()` follows it). Of a model that `EntropySGD` trains and that is between two outer updates
    the anchor is measured, not the Langevin weights, and of `Replicas` the center: see
    `measured_at`. A network in mixed precision is measured with activations in float32.

    Args:
        model: keras.Model that is built, or a list of weights. The network. Dropout is off, and
            BatchNormalization uses its moving statistics.
        loss: nested structure of losses, or callable. All that `compile` takes as a loss: a Keras
            loss, its name, a function of (y_true, y_pred), or a list or dictionary of these, one
            for each output. With a list of weights, a function of (weights, x, y), or of (weights).
            Defaults to None, which takes the compiled loss with its `loss_weights`.
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. Arrays (x, y) or
            (x, y, sample_weight), or batches of these, which must be the same at each pass.
            Defaults to None, which means that the loss is a function of the weights alone.
        batch_size: int >= 1. Examples at a time, for arrays; it bounds the memory needed. Defaults
            to None, which means 512, or 32 as in `evaluate` where it matters how data are cut.
        variables: list of variables, layers, names or indices, or a callable. The weights that f is
            a function of; the others keep their values. A callable is asked about each variable.
            Defaults to None, which means all trainable ones.

    Raises:
        ValueError: The data are empty or differ from pass to pass (a dataset that shuffles), or the
            model's outputs do (a layer that uses random numbers), the loss is not finite at these
            weights or cannot be trained by Keras, weights are float16 or bfloat16, or
            `variables` names nothing.
    """

    @staticmethod
    def _product_of_a_batch(
        f: BatchLoss, weights: Tensors, vectors: Tensors, held: Held, *batch: Nested
    ) -> Tensors:
        columns = vectors[0].shape[0]
        with tf.GradientTape(persistent=columns > 1, watch_accessed_variables=False) as outer:
            outer.watch(weights)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(weights)
                value = f.loss_sum(weights, held, *batch)
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

    @staticmethod
    def _difference(
        f: BatchLoss, weights: Tensors, vector: Tensors, step: float, held: Held, *batch: Nested
    ) -> Tensors:
        def gradient(h: float) -> Tensors:
            return f.gradient_sum(moved(weights, vector, h), held, *batch)

        return quotient(gradient, step)
