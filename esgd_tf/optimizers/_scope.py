"""The scope that acts on the inner loop: gamma(t), and where its growth ends."""

from __future__ import annotations

import keras
import tensorflow as tf

from esgd_tf import _checks
from esgd_tf.optimizers._statistics import StatisticsVariables
from esgd_tf.optimizers._step_sizes import StepSizes
from esgd_tf.optimizers.scoping import AutoScope, ExponentialScope, ScopeSchedule

__all__ = ["ActingScope", "scope_schedule"]

# A scope that is given as a number grows until the pull, gamma(t) eta', comes to this: 1 would hold
# x' at the anchor.
_LARGEST_PULL = 0.9


def scope_schedule(gamma: float | ScopeSchedule, scoping: float) -> ScopeSchedule:
    """Return the law of gamma(t): the one given, or gamma (1 + scoping)^t for a number.

    Args:
        gamma: float >= 0, or a ScopeSchedule. The scope gamma0, or its law.
        scoping: float >= 0. The relative growth of a number per outer update.

    Raises:
        ValueError: `gamma` is out of range.
    """
    if isinstance(gamma, ScopeSchedule):
        return gamma
    return ExponentialScope(_checks.real("gamma", gamma, at_least=0), scoping)


class ActingScope:
    """gamma(t) at the outer update that is under way.

    Args:
        gamma: float >= 0, or a ScopeSchedule. The user's argument: a number grows no further than
            to a pull gamma(t) eta' of 0.9, unless it starts above that.
        schedule: ScopeSchedule. The law, from `scope_schedule`.
        step_sizes: StepSizes. eta'.
        outer_iterations: keras.Variable, an integer scalar. Outer updates so far.
        statistics: StatisticsVariables. They hold what an `AutoScope` has measured; other laws need
            None.
    """

    def __init__(
        self,
        gamma: float | ScopeSchedule,
        schedule: ScopeSchedule,
        step_sizes: StepSizes,
        outer_iterations: keras.Variable,
        statistics: StatisticsVariables | None,
    ) -> None:
        self._number = None if isinstance(gamma, ScopeSchedule) else float(gamma)
        self._schedule = schedule
        self._step_sizes = step_sizes
        self._outer_iterations = outer_iterations
        self._statistics = statistics

    def now(self) -> tf.Tensor:
        """Return gamma(t), a float64 scalar, as the law has it: above 1 / eta' too."""
        t = tf.cast(self._outer_iterations, tf.float64) + 1.0
        if isinstance(self._schedule, AutoScope):
            assert self._statistics is not None
            return self._schedule(t, self._statistics.gamma_zero)
        gamma = self._schedule(t)
        if self._number is None:
            return gamma
        # A number grows until the pull nearly holds x' at the anchor, however long the run.
        end = tf.constant(_LARGEST_PULL, tf.float64) / self._step_sizes.rate_now()
        return tf.minimum(gamma, tf.maximum(end, tf.constant(self._number, tf.float64)))

    def acting(self) -> tf.Tensor:
        """Return the scope that acts, min(gamma(t), 1 / eta'), a float64 scalar."""
        return tf.minimum(self.now(), 1.0 / self._step_sizes.rate_now())

    def factor(self) -> tf.Tensor:
        """Return the factor on x - mean under `gamma_in_outer_step`, a float64 scalar."""
        scope = self.acting()
        if isinstance(self._schedule, AutoScope):
            # gamma is 0 until it is measured; a factor of 0 would keep the distance, and with it
            # the measurement, at 0 for good.
            scope = tf.where(scope > 0, scope, tf.ones_like(scope))
        return scope

    def pull(self) -> float:
        """Return gamma(t) eta' as the law has it, eagerly: from 1 on it acts as 1."""
        return float(self.now() * self._step_sizes.rate_now())

    def is_unmeasured(self) -> bool:
        """Return, eagerly, whether an `AutoScope` has not measured gamma0 when it should have."""
        return (
            isinstance(self._schedule, AutoScope)
            and self._statistics is not None
            and int(self._outer_iterations.numpy()) >= self._schedule.start
            and float(self._statistics.gamma_zero.numpy()) == 0.0
        )
