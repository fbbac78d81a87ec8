"""Attraction of one replica to the center, by the rules of `coupling.py` on its variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf

from esgd_tf.optimizers import LocalEntropy, _kernels
from esgd_tf.replicas.coupling import Coupling, coupled_gradient

__all__ = ["Attraction"]

#: A bool scalar tensor, or True for "always", which needs no branch in the graph.
Due: TypeAlias = tf.Tensor | bool


class Attraction:
    """Acts before and after one step of a replica's optimizer; see `LocalEntropy.coupling`.

    A new one is made for each step and holds the values of that step only.

    Args:
        coupling: Coupling. The rule.
        optimizer: LocalEntropy. The replica's optimizer.
        center: sequence of tf.Variable. The center's weights on the replica's device.
        due: bool scalar tensor, or True for always. Whether replicas without an inner loop couple
            at this step.
        gamma: float64 scalar tensor. The current strength.
    """

    def __init__(
        self,
        coupling: Coupling,
        optimizer: LocalEntropy,
        center: Sequence[tf.Variable],
        due: Due,
        gamma: tf.Tensor,
    ) -> None:
        self._coupling = coupling
        self._center = center
        if optimizer.langevin_steps and coupling.every > 1:
            # A replica that skipped a minibatch makes its outer update later than the others.
            update = tf.cast(optimizer.outer_iterations, tf.int64) + 1
            due = tf.equal(update % coupling.every, 0)
        elif coupling.every == 1:
            due = True
        self._due = due
        self._factor = coupling.factor(gamma)

    def before(self, i: int, variable: tf.Variable, gradient: tf.Tensor) -> tf.Tensor:
        """Attract the weights, or return the gradient with the coupling's part.

        Args:
            i: int. The number of the weight.
            variable: tf.Variable. The weight, at its anchor.
            gradient: tf.Tensor of the weight's shape. The gradient for the optimizer.
        """
        if self._coupling.enters_gradient:
            factor = tf.cast(self._factor, gradient.dtype)
            return self._if_due(
                lambda: coupled_gradient(gradient, variable, self._center[i], factor),
                lambda: tf.identity(gradient),
            )
        if not self._coupling.pulls_after:
            self._attract(i, variable)
        return gradient

    def after(self, i: int, variable: tf.Variable) -> None:
        """Attract the weights, if the coupling does so after the step.

        Args:
            i: int. The number of the weight.
            variable: tf.Variable. The weight after the optimizer's step.
        """
        if self._coupling.pulls_after:
            self._attract(i, variable)

    def _attract(self, i: int, variable: tf.Variable) -> None:
        """Compute w = w - alpha (w - c) in place."""

        def attract() -> tf.Tensor:
            difference = tf.subtract(variable, self._center[i])
            _kernels.subtract_scaled(variable, tf.cast(self._factor, variable.dtype), difference)
            return tf.constant(0)

        self._if_due(attract, lambda: tf.constant(0))

    def _if_due(self, true: Callable[[], tf.Tensor], false: Callable[[], tf.Tensor]) -> tf.Tensor:
        return true() if self._due is True else tf.cond(self._due, true, false)
