"""Focusing: the growth of the coupling of replicas during training.

Replicas that start far apart are coupled weakly at first and strongly at the end. With u from 0
at the first step to 1 at the last and G the total growth,

    exponential   gamma(u) = gamma_0 G^u
    linear        gamma(u) = gamma_0 (1 + (G - 1) u)
    cosine        gamma(u) = gamma_0 G (1 - cos(pi u)) / 2            (which starts at 0)

and gamma_0 is given, or measured when training starts, as the ratio of the two terms that it
weighs against each other:

    gamma_0 = mean_a L(w^a) / mean_a d(w^a, c),    d(w, c) = |w - c|^2 / 2.

Source: Pittorino et al., ICLR 2021, arXiv 2006.07897, and their released code, where G is 1e4 and
the growth is exponential, once per epoch.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from esgd_tf import _checks

__all__ = ["CappedGrowth", "CouplingSchedule", "Focusing"]

KINDS = ("exponential", "linear", "cosine")


class CouplingSchedule:
    """A strength of the coupling that changes during training."""

    #: Whether gamma_0 is measured when training starts.
    is_measured: bool = False
    #: Whether the strength is lowered when a step of the optimizer would overshoot the center.
    is_capped: bool = False

    def __call__(self, step: Any, gamma_zero: Any) -> tf.Tensor:
        """Return the strength, a float64 scalar.

        Args:
            step: int, or a scalar tensor. Training steps taken so far: minibatches per replica.
            gamma_zero: float, or a scalar tensor. The measured gamma_0; not used if it was given.
        """
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="esgd_tf")
class Focusing(CouplingSchedule):
    """A growing strength of the coupling; the equations are at the top of this module.

    Args:
        steps: int >= 1. Training steps in all: minibatches per replica, over which u goes from 0 to
            1. After that gamma is constant.
        gamma: float >= 0. gamma_0, the strength at the start. Defaults to None, which measures it
            at the first step; this needs replicas that start at different weights.
        growth: float >= 1. G, the total growth. Defaults to 1e4.
        kind: "exponential", "linear" or "cosine". The law of the growth. Defaults to 'exponential'.
        interval: int >= 1. The number of steps between changes of gamma: 1 for every step, the
            steps of an epoch for every epoch. Defaults to 1.
        maximum: float > 0. The largest strength. Defaults to None, which ends it when one step of
            SGD takes a replica all the way to the center: K learning_rate gamma is at most 1, or (1
            + m) / (1 + 2 m) with Nesterov momentum m (0.68 for 0.9), whatever the learning rate at
            the moment. With twice as stiff a spring, replicas overshoot the center and fly apart.
            Optimizers that normalise their gradients, such as Adam, have no limit.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        steps: int,
        gamma: float | None = None,
        growth: float = 1e4,
        kind: str = "exponential",
        interval: int = 1,
        maximum: float | None = None,
    ) -> None:
        self.steps = _checks.integer("steps", steps, at_least=1)
        self.gamma = None if gamma is None else _checks.real("gamma", gamma, at_least=0)
        self.growth = _checks.real("growth", growth, at_least=1)
        _checks.choice("kind", kind, KINDS)
        self.kind = kind
        self.interval = _checks.integer("interval", interval, at_least=1)
        self.maximum = None if maximum is None else _checks.real("maximum", maximum, at_least=0)

    @property
    def is_measured(self) -> bool:  # type: ignore[override]
        """Return whether gamma_0 was not given."""
        return self.gamma is None

    @property
    def is_capped(self) -> bool:  # type: ignore[override]
        """Return whether `maximum` was not given."""
        return self.maximum is None

    def __call__(self, step: Any, gamma_zero: Any) -> tf.Tensor:
        """Return gamma after so many steps."""
        start = tf.cast(gamma_zero, tf.float64) if self.gamma is None else _real(self.gamma)
        whole = tf.cast(step, tf.int64) // self.interval * self.interval
        # The last interval has the full growth; intervals of one step have it at step `steps` - 1.
        last = max((self.steps - 1) // self.interval * self.interval, 1)
        u = tf.minimum(tf.cast(whole, tf.float64) / _real(float(last)), _real(1.0))
        if self.kind == "exponential":
            law = tf.pow(_real(self.growth), u)
        elif self.kind == "linear":
            law = 1.0 + _real(self.growth - 1.0) * u
        else:
            law = _real(self.growth / 2) * (1.0 - tf.cos(_real(math.pi) * u))
        gamma = start * law
        return gamma if self.maximum is None else tf.minimum(gamma, _real(self.maximum))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            name: getattr(self, name)
            for name in ("steps", "gamma", "growth", "kind", "interval", "maximum")
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Focusing:
        """Rebuild the schedule from `get_config`."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


class CappedGrowth(CouplingSchedule):
    """min(start (1 + rate)^t, maximum), t = 1 for the first update: Parle's law.

    Args:
        start: float >= 0. The value before the first update.
        rate: float >= 0. The relative growth per update.
        maximum: float. The value at which the growth ends.
        interval: int >= 1. The number of training steps in an update.
    """

    is_capped = True

    def __init__(self, start: float, rate: float, maximum: float, interval: int) -> None:
        self.start, self.rate, self.maximum, self.interval = start, rate, maximum, interval

    def __call__(self, step: Any, gamma_zero: Any) -> tf.Tensor:
        """Return the strength after so many steps."""
        del gamma_zero
        t = tf.cast(tf.cast(step, tf.int64) // self.interval + 1, tf.float64)
        grown = _real(self.start) * tf.pow(_real(1.0 + self.rate), t)
        return tf.minimum(grown, _real(self.maximum))


def _real(value: float) -> tf.Tensor:
    return tf.constant(value, tf.float64)
