"""The generalised Gauss-Newton matrix of the loss: J' (∇²_z l) J for the network's output z."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from esgd_tf.landscape._batch_loss import BatchLoss
from esgd_tf.landscape._check import moved, quotient
from esgd_tf.landscape._jacobian import through_differences, through_jacobian
from esgd_tf.landscape._types import Held, Nested, Tensors
from esgd_tf.landscape.operator import CurvatureOperator

__all__ = ["GaussNewtonOperator"]


class GaussNewtonOperator(CurvatureOperator):
    """The generalised Gauss-Newton matrix: the Hessian without the curvature of the network.

    G = 1/N Σ_i J_i' (∇²_z l_i) J_i, positive semi-definite if the loss is convex in the output z.
    For softmax with cross entropy, and other losses that are the negative logarithm of an
    exponential family in its natural parameters, it is the Fisher information. Losses that layers
    add are left out.

    Where Keras computes a cross entropy of probabilities from the logits behind them, as it does
    where the last layer is a softmax or sigmoid, z are the logits: the matrix is that of the same
    network without the last activation, and of the loss with `from_logits=True`. For other losses
    z is what the network returns. Of a network with several outputs z is all of them together.

    Source: Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent",
    2002; Martens, "New insights and perspectives on the natural gradient method", 2020.

    Args:
        model: keras.Model that is built. The network, as for `HessianOperator`; a list of weights
            has no output.
        loss: nested structure of losses, or callable. The loss, as for `HessianOperator`. Defaults
            to None, which takes the one that the model was compiled with.
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data, as for
            `HessianOperator`.
        batch_size: int >= 1. Examples at a time, for arrays, as for `HessianOperator`. Defaults to
            None, which means 512, or 32 where it matters how the data are cut.
        variables: list of variables, layers or names, or a callable. The weights that f is a
            function of, as for `HessianOperator`. Defaults to None, which means all trainable ones.

    Raises:
        ValueError: As for `HessianOperator`, or there is no Keras model.
    """

    matrix = "the Gauss-Newton matrix"

    def _check(self) -> None:
        if not self._objective.has_predictions:
            raise ValueError(
                "A Gauss-Newton matrix is that of a loss after a network: give a Keras model."
            )

    @staticmethod
    def _product_of_a_batch(
        f: BatchLoss, weights: Tensors, vectors: Tensors, held: Held, *batch: Nested
    ) -> Tensors:
        outputs, loss = _outputs_and_loss(f, held, *batch)

        def curve(parts: Tensors, tangents: list[Tensors]) -> list[Tensors]:
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                tape.watch(parts)
                slopes = _slopes(loss, parts)
            return [
                tape.gradient(slopes, parts, output_gradients=t, unconnected_gradients="zero")
                for t in tangents
            ]

        return through_jacobian(outputs, weights, vectors, curve)

    @staticmethod
    def _difference(
        f: BatchLoss, weights: Tensors, vector: Tensors, step: float, held: Held, *batch: Nested
    ) -> Tensors:
        outputs, loss = _outputs_and_loss(f, held, *batch)

        def curve(parts: Tensors, tangent: Tensors, h: float) -> Tensors:
            return quotient(lambda h: _slopes(loss, moved(parts, tangent, h)), h)

        return through_differences(outputs, weights, vector, curve, step)


def _outputs_and_loss(
    f: BatchLoss, held: Held, x: Nested, y: Nested, sample_weight: Nested
) -> tuple[_Outputs, Callable[[Tensors], tf.Tensor]]:
    """Return the outputs as a function of the weights, and the loss as a function of outputs."""
    outputs = _Outputs(lambda weights: f.predictions(weights, held, x))

    def loss(parts: Tensors) -> tf.Tensor:
        return f.loss_of_predictions(x, y, outputs.predictions(parts), sample_weight)

    return outputs, loss


def _slopes(loss: Callable[[Tensors], tf.Tensor], parts: Tensors) -> Tensors:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(parts)
        total = loss(parts)
    return tape.gradient(total, parts, unconnected_gradients="zero")


class _Outputs:
    """The real outputs of a network as a list, and the logits behind those that have some.

    A loss is computed from one of the two, and its derivative by the other is zero.
    """

    def __init__(self, function: Callable[[Tensors], Nested]) -> None:
        self._function = function
        self._last: Nested = None

    def __call__(self, weights: Tensors) -> Tensors:
        self._last = self._function(weights)
        parts = []
        for leaf in keras.tree.flatten(self._last):
            if leaf.dtype.is_floating:
                logits = _logits(leaf)
                parts += [leaf] if logits is None else [leaf, logits]
        return parts

    def predictions(self, parts: Tensors) -> Nested:
        """Return other outputs in the structure of the last call's, with its masks and logits."""
        given = iter(parts)

        def other(leaf: tf.Tensor) -> tf.Tensor:
            if not leaf.dtype.is_floating:
                return leaf
            copy = tf.identity(next(given))
            if _logits(leaf) is not None:
                copy._keras_logits = tf.identity(next(given))
            if getattr(leaf, "_keras_mask", None) is not None:
                copy._keras_mask = leaf._keras_mask
            return copy

        return keras.tree.map_structure(other, self._last)


def _logits(output: tf.Tensor) -> tf.Tensor | None:
    """Return the logits from which Keras' losses compute a cross entropy, or None.

    Keras attaches them to the output, or reads them from the graph.
    """
    logits = getattr(output, "_keras_logits", None)
    if logits is None and tf.is_symbolic_tensor(output) and output.op.type in _ACTIVATIONS:
        (logits,) = output.op.inputs
    return logits


_ACTIVATIONS = ("Softmax", "Sigmoid")
