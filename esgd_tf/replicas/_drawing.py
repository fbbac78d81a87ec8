"""What draws one replica to the center: the rules of `coupling.py` on its variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from esgd_tf.optimizers import LocalEntropy, _kernels
from esgd_tf.replicas.coupling import Coupling, coupled_gradient

__all__ = ["Drawing"]


class Drawing:
    """Stands around the step of a replica's optimizer, at its anchor; see `LocalEntropy.coupling`.

    Args:
        coupling: Coupling. The rule.
        optimizer: LocalEntropy. The replica's optimizer.
        center: sequence of tf.Variable. The center's weights on the replica's device.
    """

    def __init__(
        self, coupling: Coupling, optimizer: LocalEntropy, center: Sequence[tf.Variable]
    ) -> None:
        self._coupling = coupling
        self._optimizer = optimizer
        self._center = list(center)
        self._due: Any = None
        self._factor: Any = None

    def now(self, due: Any, gamma: tf.Tensor) -> None:
        """Set what holds for the step that is traced next.

        Args:
            due: bool scalar tensor, or True for always. Whether replicas without an inner loop
                couple at this step.
            gamma: float64 scalar tensor. The strength in force.
        """
        optimizer, every = self._optimizer, self._coupling.every
        if optimizer.langevin_steps and every > 1:
            # A replica that has skipped a minibatch makes its outer update later than the others.
            update = tf.cast(optimizer.outer_iterations, tf.int64) + 1
            due = tf.equal(update % every, 0)
        elif every == 1:
            due = True
        self._due, self._factor = due, self._coupling.factor(gamma)

    def before(self, i: int, variable: tf.Variable, gradient: tf.Tensor) -> tf.Tensor:
        """Pull the weights, or return the gradient with the coupling's part.

        Args:
            i: int. The number of the weight.
            variable: tf.Variable. The weight, at its anchor.
            gradient: tf.Tensor of the weight's shape. What the optimizer would step with.
        """
        if self._coupling.enters_gradient:
            factor = tf.cast(self._factor, gradient.dtype)
            return self._if_due(
                lambda: coupled_gradient(gradient, variable, self._center[i], factor),
                lambda: tf.identity(gradient),
            )
        if not self._coupling.pulls_after:
            self._pull(i, variable)
        return gradient

    def after(self, i: int, variable: tf.Variable) -> None:
        """Pull the weights, if that comes after the step.

        Args:
            i: int. The number of the weight.
            variable: tf.Variable. The weight after the optimizer's step.
        """
        if self._coupling.pulls_after:
            self._pull(i, variable)

    def _pull(self, i: int, variable: tf.Variable) -> None:
        """W = w - alpha (w - c) in place."""

        def pull() -> tf.Tensor:
            difference = tf.subtract(variable, self._center[i])
            _kernels.subtract_scaled(variable, tf.cast(self._factor, variable.dtype), difference)
            return tf.constant(0)

        self._if_due(pull, lambda: tf.constant(0))

    def _if_due(self, true: Callable[[], Any], false: Callable[[], Any]) -> Any:
        return true() if self._due is True else tf.cond(self._due, true, false)
