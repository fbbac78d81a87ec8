"""The numbers by which the original code watches the inner loop, gathered without extra gradients.

The authors' Lua code prints them every fifty outer updates (its option -v). Here they are summed up
inside the training step, from what the step has at hand, and kept in optimizer variables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from esgd_tf.optimizers.scoping import AutoScope, ScopeSchedule

__all__ = ["LangevinStatistics", "StatisticsVariables"]

# Sums over all weights while a step runs.
_SUMS = ("gradient", "outer", "dot", "noise", "distance_before", "distance_after")


class LangevinStatistics(NamedTuple):
    """Norms over all weights at the last outer update; NaN before the first.

    Attributes:
        gradient_norm: |∇f|, the minibatch gradient at the last Langevin step, with its L2 term.
        outer_gradient_norm: |x - mean|.
        cosine: Cosine of the angle between the two.
        mean_distance: |x - x'|, averaged over the Langevin steps.
        noise_norm: Norm of the thermal displacement of the last Langevin step.
    """

    gradient_norm: float
    outer_gradient_norm: float
    cosine: float
    mean_distance: float
    noise_norm: float


class StatisticsVariables:
    """The variables behind `LocalEntropy.statistics` and the measurement of `AutoScope`.

    Args:
        owner: keras.optimizers.Optimizer. The optimizer that saves the variables as its state.
        langevin_steps: int >= 0. L, Langevin steps per outer update.
        schedule: ScopeSchedule. The law of gamma; an `AutoScope` is told what it measures.

    Attributes:
        has_seen_loss: Whether a loss has been passed to `see_loss`, which `AutoScope` needs.
        gamma_zero: keras.Variable, a float32 scalar. gamma0 as `AutoScope` measured it; 0 before.
    """

    def __init__(
        self, owner: keras.optimizers.Optimizer, langevin_steps: int, schedule: ScopeSchedule
    ) -> None:
        self._langevin_steps = langevin_steps
        self._schedule = schedule
        self.has_seen_loss = False

        def variable(
            name: str, shape: tuple[int, ...], initializer: str | Callable[..., tf.Tensor] = "zeros"
        ) -> keras.Variable:
            return owner.add_variable(
                shape=shape, initializer=initializer, dtype="float32", name=name
            )

        self._sums = variable("statistics_sums", (len(_SUMS),))
        self._distance = variable("statistics_distance", ())
        not_yet = lambda shape, dtype: tf.fill(shape, tf.constant(float("nan"), dtype))  # noqa: E731
        self._result = variable("statistics", (len(LangevinStatistics._fields),), not_yet)
        self.gamma_zero = variable("gamma_zero", ())
        # Every device sees the loss of its part of the minibatch, divided by the number of devices.
        self._loss = owner.add_variable(
            shape=(), initializer="zeros", dtype="float32", aggregation="sum", name="loss"
        )

    def read(self) -> LangevinStatistics:
        """Return the statistics of the last outer update."""
        return LangevinStatistics(*(float(value) for value in self._result.numpy()))

    def see_loss(self, loss: tf.Tensor) -> None:
        """Remember the loss of this minibatch; called in each replica.

        Args:
            loss: tf.Tensor, a scalar. The loss of this device's part of the minibatch.
        """
        self.has_seen_loss = True
        self._loss.assign(tf.cast(tf.stop_gradient(loss), tf.float32))

    def see_step(self, pull: tf.Tensor) -> None:
        """Add x' - x of one weight, before this step.

        Args:
            pull: tf.Tensor of the weight's shape. x' - x.
        """
        self._add(distance_before=_square(pull))

    def finish_step(self, distribution: tf.distribute.Strategy) -> None:
        """Add |x' - x| over all weights to the inner loop's sum, after the step's last weight.

        Args:
            distribution: tf.distribute.Strategy. The strategy in force.
        """

        def finish(sums: tf.Variable) -> None:
            value = tf.convert_to_tensor(sums)
            self._distance.value.assign_add(tf.sqrt(value[_SUMS.index("distance_before")]))
            sums.assign(tf.zeros_like(value))

        distribution.extended.update(self._sums.value, finish, group=False)

    def see_outer_update(
        self,
        gradient: tf.Tensor,
        normal: tf.Tensor,
        difference: tf.Tensor,
        distance: tf.Tensor,
        noise_scale: tf.Tensor,
    ) -> None:
        """Add what one weight contributes at the end of an inner loop.

        Args:
            gradient: tf.Tensor of the weight's shape. ∇f at the last Langevin step.
            normal: tf.Tensor of the weight's shape. The N(0, I) of the last Langevin step.
            difference: tf.Tensor of the weight's shape. x - mean.
            distance: tf.Tensor of the weight's shape. x' - x.
            noise_scale: float64 scalar tensor. The standard deviation of the thermal displacement.
        """
        self._add(
            gradient=_square(gradient),
            outer=_square(difference),
            dot=tf.reduce_sum(tf.cast(gradient * difference, tf.float32)),
            noise=tf.cast(noise_scale, tf.float32) ** 2 * _square(normal),
            distance_after=_square(distance),
        )

    def finish_outer_update(
        self, distribution: tf.distribute.Strategy, outer_iterations: keras.Variable
    ) -> None:
        """Turn the sums over all weights into norms, after the last weight of an outer update.

        Args:
            distribution: tf.distribute.Strategy. The strategy in force.
            outer_iterations: keras.Variable, an integer scalar. Outer updates before this one.
        """
        distribution.extended.update(
            self._sums.value,
            self._finish,
            args=(tf.convert_to_tensor(outer_iterations),),
            group=False,
        )

    def _finish(self, sums: tf.Variable, outer_iterations: tf.Tensor) -> None:
        at = dict(zip(_SUMS, tf.unstack(tf.convert_to_tensor(sums)), strict=True))
        distance = tf.convert_to_tensor(self._distance.value) + tf.sqrt(at["distance_after"])
        sums.assign(tf.zeros_like(sums))
        self._distance.value.assign(0.0)
        gradient, outer = tf.sqrt(at["gradient"]), tf.sqrt(at["outer"])
        self._result.value.assign(
            tf.stack(
                [
                    gradient,
                    outer,
                    tf.math.divide_no_nan(at["dot"], gradient * outer),
                    distance / self._langevin_steps,
                    tf.sqrt(at["noise"]),
                ]
            )
        )
        if isinstance(self._schedule, AutoScope):
            gamma_zero = tf.convert_to_tensor(self.gamma_zero.value)
            loss = tf.convert_to_tensor(self._loss.value)
            self.gamma_zero.value.assign(
                self._schedule.measure(outer_iterations + 1, gamma_zero, loss, at["distance_after"])
            )

    def _add(self, **sums: tf.Tensor) -> None:
        zero = tf.constant(0.0)
        self._sums.value.assign_add(tf.stack([sums.get(name, zero) for name in _SUMS]))


def _square(tensor: tf.Tensor) -> tf.Tensor:
    return 2.0 * tf.nn.l2_loss(tf.cast(tensor, tf.float32))
