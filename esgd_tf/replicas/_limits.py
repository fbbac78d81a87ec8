"""The limit of a coupling, beyond which a step of a replica overshoots the center.

With learning rate eta and the spring K gamma in the gradient of SGD, the distance d of a replica to
the center obeys, without any other force,

    momentum m              d' = d - s d + m (d - d_before),          s = eta K gamma
    Nesterov momentum m     d' = (1 - s) ((1 + m) d - m d_before)

The distance shrinks for s < 2 (1 + m), and for s < 2 (1 + m) / (1 + 2 m) with Nesterov's. Half of
that, and at most 1, leaves room for the curvature of the loss: at s = 1 plain SGD goes all the way
to the center in one step. Optimizers that normalise their gradients go no further, however stiff
the spring.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from esgd_tf.replicas.coupling import Coupling
from esgd_tf.replicas.focusing import CouplingSchedule

__all__ = ["Limits"]


class Limits:
    """The largest strength of a coupling that an optimizer allows.

    Args:
        coupling: Coupling. The rule.
        optimizer: keras.optimizers.Optimizer. The outer optimizer, which steps with the gradient
            that the coupling enters.
    """

    def __init__(self, coupling: Coupling, optimizer: keras.optimizers.Optimizer) -> None:
        self._coupling = coupling
        strength = coupling.strength
        #: Whether a planned strength above the limit is lowered to it.
        self.holds = isinstance(strength, CouplingSchedule) and strength.is_capped
        self._optimizer = (
            optimizer
            if coupling.enters_gradient and isinstance(optimizer, keras.optimizers.SGD)
            else None
        )

    def acting(self, planned: tf.Tensor, rate: Any) -> tf.Tensor:
        """Return the strength that acts, a float64 scalar.

        Args:
            planned: float64 scalar tensor. The schedule's value.
            rate: float, or a scalar tensor. The learning rate.
        """
        if self._optimizer is None or not self.holds:
            return planned
        _, safe = self._bounds()
        return tf.minimum(planned, safe / self._reach(rate))

    def warning(self, planned: tf.Tensor, rate: Any) -> str | None:
        """Return a sentence about a strength that is lowered, or with which replicas fly apart."""
        if self._optimizer is None:
            return None
        unstable, safe = self._bounds()
        reach, asked = float(self._reach(rate)), float(planned)
        if self.holds and asked * reach > safe:
            return (
                f"The coupling is held at {safe / reach:.3g} where its schedule says {asked:.3g}: "
                f"with learning rate {float(rate):.3g} a stiffer spring makes replicas overshoot "
                "their center. Let it grow less, or give Focusing a `maximum` to have no warning."
            )
        if not self.holds and asked * reach >= unstable:
            return (
                f"A coupling of {asked:.3g} with learning rate {float(rate):.3g} makes replicas "
                f"overshoot their center more with every step: it must stay below "
                f"{unstable / reach:.3g}."
            )
        return None

    def _reach(self, rate: Any) -> tf.Tensor:
        """Return s for a strength of 1."""
        one = self._coupling.factor(tf.constant(1.0, tf.float64))
        return tf.cast(one, tf.float64) * tf.cast(tf.convert_to_tensor(rate), tf.float64)

    def _bounds(self) -> tuple[float, float]:
        """Return the s at which the distance grows, and the limit to which s is lowered."""
        assert self._optimizer is not None
        m = float(self._optimizer.momentum)
        unstable = 2 * (1 + m) / (1 + 2 * m if self._optimizer.nesterov else 1)
        return unstable, min(unstable / 2, 1.0)
