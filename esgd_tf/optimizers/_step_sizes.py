"""The inner step size and momentum, which may be set at any time, and their factors by weight."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from esgd_tf import _checks
from esgd_tf.optimizers._multipliers import Multipliers
from esgd_tf.optimizers._variables import scalar

__all__ = ["Scalars", "StepSizes"]


class Scalars(NamedTuple):
    """The scalars of a Langevin step for weights of one dtype and one factor, in that dtype.

    Attributes:
        rate: eta', times the factor.
        momentum: The momentum of the velocity.
        pull: min(rate gamma(t), 1).
        noise: Minus the standard deviation of the thermal displacement.
        rest: 1 - averaging.
    """

    rate: tf.Tensor
    momentum: tf.Tensor
    pull: tf.Tensor
    noise: tf.Tensor
    rest: tf.Tensor


class StepSizes:
    """The inner step size eta' of one `LocalEntropy`, and its inner momentum.

    Both are variables, so that a step that is traced already sees what is set later.

    Args:
        owner: keras.optimizers.Optimizer. The optimizer that saves the variables as its state.
        outer_iterations: keras.Variable, an integer scalar. Outer updates so far.
        langevin_learning_rate: float > 0, or a Keras schedule over outer updates. eta'.
        momentum: float in [0, 1). The momentum of the inner velocity.
        multipliers: dict of floats >= 0 by regular expression. Factors on eta' for the weights in
            whose paths the expressions are found; None for 1 everywhere.

    Attributes:
        has_momentum: Whether there is a velocity.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        owner: keras.optimizers.Optimizer,
        outer_iterations: keras.Variable,
        langevin_learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
        momentum: float,
        multipliers: Mapping[str, float] | None,
    ) -> None:
        self._outer_iterations = outer_iterations
        self._multipliers = Multipliers("langevin_learning_rate_multipliers", multipliers)
        momentum = _checks.real("momentum", momentum, at_least=0, below=1)
        self.has_momentum = momentum > 0
        # The type is Any because this is a variable or a schedule, and Keras has no types.
        self._rate: Any = langevin_learning_rate
        if not isinstance(self._rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = _checks.real("langevin_learning_rate", langevin_learning_rate, above=0)
            self._rate = scalar(owner, "langevin_learning_rate", "float64", rate)
        self._momentum = scalar(owner, "momentum", "float64", momentum)

    def build(self, weights: Sequence[keras.Variable]) -> None:
        """Find the factor of every weight.

        Args:
            weights: sequence of keras.Variable. The weights that the optimizer trains.
        """
        self._multipliers.build(weights)

    @property
    def rate(self) -> keras.Variable | tf.Tensor:
        """The inner step size as a user reads it: a variable, or what its schedule gives now."""
        return self._rate if isinstance(self._rate, keras.Variable) else self.rate_now()

    @rate.setter
    def rate(self, rate: float) -> None:
        if not isinstance(self._rate, keras.Variable):
            raise TypeError(
                "The inner step size follows a schedule, so it cannot be set: make the optimizer "
                "with a number to set it later."
            )
        self._rate.assign(_checks.real("langevin_learning_rate", rate, above=0))

    @property
    def momentum(self) -> keras.Variable:
        """The inner momentum, a variable."""
        return self._momentum

    @momentum.setter
    def momentum(self, momentum: float) -> None:
        momentum = _checks.real("momentum", momentum, at_least=0, below=1)
        if momentum > 0 and not self.has_momentum:
            raise AttributeError(
                "`momentum` cannot be set on an optimizer that was made with momentum 0, which "
                "keeps no velocity: make a new one."
            )
        self._momentum.assign(momentum)

    def rate_now(self) -> tf.Tensor:
        """Return eta' of this outer update, a float64 scalar."""
        if isinstance(self._rate, keras.Variable):
            return tf.convert_to_tensor(self._rate.value)
        return tf.cast(self._rate(self._outer_iterations), tf.float64)

    def momentum_now(self) -> tf.Tensor:
        """Return the momentum, a float64 scalar."""
        return tf.convert_to_tensor(self._momentum.value)

    def factor(self, i: int) -> float:
        """Return the factor on eta' of a weight.

        Args:
            i: int. The number of the weight.
        """
        return self._multipliers.of(i)

    def scalars(
        self,
        kinds: Collection[tuple[tf.DType, float]],
        scope: tf.Tensor,
        noise: float,
        averaging: float,
    ) -> dict[tuple[tf.DType, float], Scalars]:
        """Return the scalars of a step for each kind of weight.

        They are made once per kind because making them per weight would slow tracing down.

        Args:
            kinds: collection of pairs. The dtypes of the weights, with the factors on eta'.
            scope: float64 scalar tensor. gamma(t).
            noise: float >= 0. epsilon, the strength of the thermal noise.
            averaging: float in [0, 1). The weight of the old mean.
        """
        made = {}
        for dtype, factor in kinds:
            rate = self._scaled_rate(factor)
            values = Scalars(
                rate=rate,
                momentum=self.momentum_now(),
                # At 1 each step starts at the anchor; beyond 2, x' would diverge from it.
                pull=tf.minimum(rate * scope, 1.0),
                noise=-self.displacement_scale(factor, noise),
                rest=tf.constant(1.0 - averaging, tf.float64),
            )
            made[dtype, factor] = Scalars(*(tf.cast(value, dtype) for value in values))
        return made

    def displacement_scale(self, factor: float, noise: float) -> tf.Tensor:
        """Return the standard deviation of the thermal term, sqrt(2 eta') noise: float64.

        Args:
            factor: float >= 0. The factor on eta' of the weight.
            noise: float >= 0. epsilon, the strength of the thermal noise.
        """
        return tf.sqrt(2.0 * self._scaled_rate(factor)) * tf.constant(noise, tf.float64)

    def _scaled_rate(self, factor: float) -> tf.Tensor:
        """Return eta' of weights with this factor, a float64 scalar."""
        rate = self.rate_now()
        return rate if factor == 1.0 else rate * tf.constant(factor, tf.float64)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, serialised."""
        rate = self._rate
        return {
            "langevin_learning_rate": (
                float(rate.numpy())
                if isinstance(rate, keras.Variable)
                else keras.saving.serialize_keras_object(rate)
            ),
            "momentum": float(self._momentum.numpy()),
            "langevin_learning_rate_multipliers": self._multipliers.config(),
        }
