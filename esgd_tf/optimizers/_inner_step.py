"""The Langevin step on one weight: `langevin.py` with the fused kernels of `_in_place.py`."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from esgd_tf.optimizers import _in_place
from esgd_tf.optimizers._statistics import StatisticsVariables


class Slots(NamedTuple):
    """What a weight has besides x'; the velocity is None for momentum 0."""

    anchor: tf.Variable
    mean: tf.Variable
    velocity: tf.Variable | None


def start(variable: tf.Variable, slots: Slots) -> None:
    """Set x' = mean = x and v = 0."""
    slots.anchor.assign(variable)
    slots.mean.assign(variable)
    if slots.velocity is not None:
        slots.velocity.assign(tf.zeros_like(variable))


@dataclasses.dataclass(frozen=True)
class InnerStep:
    """The rule of a Langevin step, without the state.

    Attributes:
        learning_rate: eta', a float64 scalar.
        momentum: Of the velocity, a float64 scalar.
        nesterov: Whether the step looks ahead.
        noise: epsilon.
        averaging: Weight of the old mean.
        pulls: Whether there is a pull toward the anchor to compute.
        statistics: What wants to see x' - x, or None.
    """

    learning_rate: tf.Tensor
    momentum: tf.Tensor
    nesterov: bool
    noise: float
    averaging: float
    pulls: bool
    statistics: StatisticsVariables | None

    def rate(self, multiplier: float) -> tf.Tensor:
        """Return eta' of weights with this multiplier, a float64 scalar."""
        if multiplier == 1.0:
            return self.learning_rate
        return self.learning_rate * tf.constant(multiplier, tf.float64)

    def displacement_scale(self, multiplier: float) -> tf.Tensor:
        """Standard deviation of the thermal term: sqrt(2 eta') noise, a float64 scalar."""
        return tf.sqrt(2.0 * self.rate(multiplier)) * tf.constant(self.noise, tf.float64)

    def constants(
        self,
        scope: tf.Tensor,
        seed: tf.Variable,
        iterations: Any,
        kinds: set[tuple[tf.DType, float]],
    ) -> dict[str, Any]:
        """Make the scalars of a step once per kind: per weight they would slow tracing down.

        Args:
            scope: gamma(t).
            seed: Of the noise.
            iterations: Number of Langevin steps so far; every step has its own noise.
            kinds: The dtypes of the weights, with the multipliers of their step size.
        """
        step = tf.cast(tf.convert_to_tensor(iterations), tf.int64)
        constants: dict[str, Any] = {
            "key": _in_place.noise_key(seed, step) if self.noise > 0 else None
        }
        for dtype, multiplier in kinds:
            rate = self.rate(multiplier)
            values = {
                "rate": rate,
                "momentum": self.momentum,
                # From 1 on x' is held at the anchor; beyond 2 it would run away from it.
                "pull": tf.minimum(rate * scope, 1.0),
                "noise": -self.displacement_scale(multiplier),
                "rest": tf.constant(1.0 - self.averaging, tf.float64),
            }
            constants[_kind(dtype, multiplier)] = {
                name: tf.cast(value, dtype) for name, value in values.items()
            }
        return constants

    def take(
        self,
        variable: tf.Variable,
        gradient: tf.Tensor,
        slots: Slots,
        index: int,
        constants: dict[str, Any],
        multiplier: float,
    ) -> tf.Tensor:
        """Take one Langevin step; return its N(0, I).

        Args:
            variable: x'.
            gradient: q, dense and in the variable's dtype.
            slots: Anchor, mean and velocity.
            index: Number of the weight, which tells its noise from that of the others.
            constants: From `constants`.
            multiplier: Of the step size of this weight.
        """
        dtype = variable.dtype
        constant = constants[_kind(dtype, multiplier)]
        needs_pull = self.pulls or self.statistics is not None
        pull = tf.subtract(variable, slots.anchor) if needs_pull else None
        _in_place.descend(
            variable,
            slots.velocity,
            gradient,
            learning_rate=constant["rate"],
            momentum=constant["momentum"],
            nesterov=self.nesterov,
            after=[pull] if needs_pull else [],
        )
        if self.pulls:
            _in_place.subtract_scaled(variable, constant["pull"], pull)
        normal = tf.zeros([], dtype)
        if self.noise > 0:
            # Not before the gradient is there: drawn at the step's start, the noise of all weights
            # would lie in memory beside the activations.
            with tf.control_dependencies([gradient]):
                normal = _in_place.standard_normal(variable.shape, dtype, constants["key"], index)
            _in_place.subtract_scaled(variable, constant["noise"], normal)
        _in_place.average(slots.mean, variable, self.averaging, constant["rest"])
        if self.statistics is not None:
            self.statistics.see_step(pull)
        return normal


def _kind(dtype: tf.DType, multiplier: float) -> str:
    return f"{tf.as_dtype(dtype).name} {multiplier!r}"
