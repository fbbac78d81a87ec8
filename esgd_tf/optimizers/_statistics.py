"""The numbers by which the original code watches the inner loop, gathered without extra gradients.

The authors' Lua code prints them every fifty outer updates (its option -v). Here they are summed up
inside the training step, from what the step has at hand, and kept in optimizer variables.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

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
    """The state behind `LocalEntropy.statistics` and the measurement of `AutoScope`."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.has_seen_loss = False

        def variable(name: str, shape: tuple[int, ...], initializer: Any = "zeros") -> Any:
            return optimizer.add_variable(
                shape=shape, initializer=initializer, dtype="float32", name=name
            )

        self._sums = variable("statistics_sums", (len(_SUMS),))
        self._distance = variable("statistics_distance", ())
        not_yet = lambda shape, dtype: tf.fill(shape, tf.constant(float("nan"), dtype))  # noqa: E731
        self._result = variable("statistics", (len(LangevinStatistics._fields),), not_yet)
        self.gamma_zero = variable("gamma_zero", ())
        # Every device sees the loss of its part of the minibatch, divided by the number of devices.
        self._loss = optimizer.add_variable(
            shape=(), initializer="zeros", dtype="float32", aggregation="sum", name="loss"
        )

    def read(self) -> LangevinStatistics:
        """Return the statistics of the last outer update."""
        return LangevinStatistics(*(float(value) for value in self._result.numpy()))

    def see_loss(self, loss: tf.Tensor) -> None:
        """Remember the loss of this minibatch; called in each replica."""
        self.has_seen_loss = True
        self._loss.assign(tf.cast(tf.stop_gradient(loss), tf.float32))

    def see_step(self, pull: tf.Tensor) -> None:
        """Add x' - x of one weight, before this step."""
        self._add(distance_before=_square(pull))

    def finish_step(self, distribution: Any) -> None:
        """Add |x' - x| over all weights to the inner loop's sum, after the step's last weight."""

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
            gradient: ∇f at the last Langevin step.
            normal: The N(0, I) of the last Langevin step.
            difference: x - mean.
            distance: x' - x.
            noise_scale: Standard deviation of the thermal displacement, a float64 scalar.
        """
        self._add(
            gradient=_square(gradient),
            outer=_square(difference),
            dot=tf.reduce_sum(tf.cast(gradient * difference, tf.float32)),
            noise=tf.cast(noise_scale, tf.float32) ** 2 * _square(normal),
            distance_after=_square(distance),
        )

    def finish_outer_update(self, distribution: Any, outer_iterations: Any) -> None:
        """Turn the sums over all weights into norms, after the last weight of an outer update."""
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
                    distance / self._optimizer.langevin_steps,
                    tf.sqrt(at["noise"]),
                ]
            )
        )
        measure = getattr(self._optimizer._schedule, "measure", None)
        if measure is not None:
            gamma_zero = tf.convert_to_tensor(self.gamma_zero.value)
            loss = tf.convert_to_tensor(self._loss.value)
            self.gamma_zero.value.assign(
                measure(outer_iterations + 1, gamma_zero, loss, at["distance_after"])
            )

    def _add(self, **sums: tf.Tensor) -> None:
        zero = tf.constant(0.0)
        self._sums.value.assign_add(tf.stack([sums.get(name, zero) for name in _SUMS]))


def _square(tensor: tf.Tensor) -> tf.Tensor:
    return 2.0 * tf.nn.l2_loss(tf.cast(tensor, tf.float32))
