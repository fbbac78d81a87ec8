"""The inner step size and momentum, which may be set at any time, and what they are by weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from esgd_tf import _checks
from esgd_tf.optimizers._multipliers import Multipliers


class StepSizes:
    """The step sizes of one `LocalEntropy`, and its inner momentum.

    Variables, so that a step that is traced already sees what is set later.

    Args:
        optimizer: The `LocalEntropy`.
        langevin_learning_rate: eta', a number > 0 or a Keras schedule over outer updates.
        momentum: Of the inner velocity, in [0, 1).
        outer_multipliers: Factors on the outer step size by patterns of weights' paths, or None.
        inner_multipliers: Factors on eta', likewise.

    Attributes:
        has_momentum: Whether there is a velocity.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        optimizer: Any,
        langevin_learning_rate: Any,
        momentum: float,
        outer_multipliers: Mapping[str, float] | None,
        inner_multipliers: Mapping[str, float] | None,
    ) -> None:
        self._optimizer = optimizer
        self._outer = Multipliers("learning_rate_multipliers", outer_multipliers)
        self._inner = Multipliers("langevin_learning_rate_multipliers", inner_multipliers)
        momentum = _checks.real("momentum", momentum, at_least=0, below=1)
        self.has_momentum = momentum > 0
        self._rate: Any = langevin_learning_rate
        if not isinstance(self._rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = _checks.real("langevin_learning_rate", langevin_learning_rate, above=0)
            self._rate = self._variable("langevin_learning_rate", rate)
        self._momentum = self._variable("momentum", momentum)

    def _variable(self, name: str, value: float) -> Any:
        return scalar(self._optimizer, name, "float64", value)

    def build(self, weights: Sequence[Any]) -> None:
        """Find the factors of every weight."""
        self._outer.build(weights)
        self._inner.build(weights)

    @property
    def rate(self) -> Any:
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
    def momentum(self) -> Any:
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
        return tf.cast(self._rate(self._optimizer.outer_iterations), tf.float64)

    def momentum_now(self) -> tf.Tensor:
        """Return the momentum, a float64 scalar."""
        return tf.convert_to_tensor(self._momentum.value)

    def inner(self, i: int) -> float:
        """Return the factor on eta' of weight number i."""
        return self._inner.of(i)

    def outer(self, i: int) -> float:
        """Return the factor on the outer step size of weight number i."""
        return self._outer.of(i)

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
            "learning_rate_multipliers": self._outer.config(),
            "langevin_learning_rate_multipliers": self._inner.config(),
        }


def scalar(optimizer: Any, name: str, dtype: str, value: float = 0) -> Any:
    """Return a new scalar variable of an optimizer."""
    return optimizer.add_variable(
        shape=(),
        # Keras' Constant would round through float32.
        initializer=lambda shape, dtype: tf.constant(value, dtype, shape),
        dtype=dtype,
        aggregation="only_first_replica",
        name=name,
    )
