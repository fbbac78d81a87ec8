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
        learning_rate: eta'.
        momentum: Of the velocity.
        nesterov: Whether the step looks ahead.
        noise: epsilon.
        averaging: Weight of the old mean.
        pulls: Whether there is a pull toward the anchor to compute.
        statistics: What wants to see x' - x, or None.
    """

    learning_rate: float
    momentum: float
    nesterov: bool
    noise: float
    averaging: float
    pulls: bool
    statistics: StatisticsVariables | None

    @property
    def displacement_scale(self) -> float:
        """Standard deviation of the thermal term: sqrt(2 eta') noise."""
        return float((2.0 * self.learning_rate) ** 0.5 * self.noise)

    def constants(
        self, scope: tf.Tensor, seed: tf.Variable, iterations: Any, dtypes: set[tf.DType]
    ) -> dict[str, Any]:
        """Make the scalars of a step once per dtype: per weight they would slow tracing down.

        Args:
            scope: gamma(t).
            seed: Of the noise.
            iterations: Number of Langevin steps so far; every step has its own noise.
            dtypes: Those of the weights.
        """
        step = tf.cast(tf.convert_to_tensor(iterations), tf.int64)
        values: dict[str, Any] = {
            "rate": self.learning_rate,
            "momentum": self.momentum,
            "pull": self.learning_rate * scope,
            "noise": -self.displacement_scale,
            "rest": 1.0 - self.averaging,
        }

        def in_dtype(value: Any, dtype: tf.DType) -> tf.Tensor:
            # `tf.cast` would round a Python number through float32.
            return tf.cast(value, dtype) if tf.is_tensor(value) else tf.constant(value, dtype)

        constants: dict[str, Any] = {
            name: {dtype.name: in_dtype(value, dtype) for dtype in dtypes}
            for name, value in values.items()
        }
        constants["key"] = _in_place.noise_key(seed, step) if self.noise > 0 else None
        return constants

    def take(
        self,
        variable: tf.Variable,
        gradient: tf.Tensor,
        slots: Slots,
        index: int,
        constants: dict[str, Any],
    ) -> tf.Tensor:
        """Take one Langevin step; return its N(0, I).

        Args:
            variable: x'.
            gradient: q, dense and in the variable's dtype.
            slots: Anchor, mean and velocity.
            index: Number of the weight, which tells its noise from that of the others.
            constants: From `constants`.
        """
        dtype = variable.dtype
        constant = {name: constants[name][dtype.name] for name in constants if name != "key"}
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
