"""Scope schedules: how gamma grows with the outer updates.

The local entropy of the loss f at the anchor x is

    F(x, gamma) = log ∫ exp(-f(x') - gamma/2 |x - x'|^2) dx'.

A small gamma (a wide scope) smooths the landscape the most; a large one brings -F back to f.
Training therefore starts wide and narrows ("scoping"): gamma(t) grows with t = 1, 2, ..., the
number of the outer update it is used in. The paper uses the exponential law and reports that a
linear, a quadratic and a bounded one give similar results (Chaudhari et al., ICLR 2017, arXiv
1611.01838, section "Scoping"); it prints the exponential and the bounded law, the other two are
written here in the same form. `AutoScope` is the rule of the code of Pittorino et al., arXiv
2006.07897.

What acts on the Langevin weights is the pull gamma(t) eta', but at most 1: there x' is held at the
anchor, and nothing is left to be narrowed. So no law can make training diverge, and one that grows
without end ends there, with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from esgd_tf import _checks

__all__ = [
    "AutoScope",
    "BoundedScope",
    "ConstantScope",
    "ExponentialScope",
    "LinearScope",
    "QuadraticScope",
    "ScopeSchedule",
]


class ScopeSchedule:
    """gamma as a function of t, the number of the outer update (1 for the first).

    Subclasses implement `__call__` with TensorFlow operations, so that it can run inside the
    training graph, and `get_config`.
    """

    def __call__(self, t: tf.Tensor | float) -> tf.Tensor:
        """Return gamma(t), a float64 scalar.

        Args:
            t: float, or a scalar tensor. The number of the outer update, 1 for the first.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ScopeSchedule:
        """Rebuild the schedule from `get_config`."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


class _GrowingScope(ScopeSchedule):
    """A law gamma(t) with a start value `gamma`, one rate `scoping`, and an end to the growth."""

    def __init__(
        self, gamma: float = 1e-4, scoping: float = 1e-3, maximum: float | None = None
    ) -> None:
        self.gamma = _checks.real("gamma", gamma, at_least=0)
        self.scoping = _checks.real("scoping", scoping, at_least=0)
        self.maximum = None if maximum is None else _checks.real("maximum", maximum, at_least=0)

    def __call__(self, t: tf.Tensor | float) -> tf.Tensor:
        if self.gamma == 0.0:
            return _float64(0.0)  # not 0 times an overflow
        gamma = _float64(self.gamma) * self._growth(_float64(t))
        return gamma if self.maximum is None else tf.minimum(gamma, _float64(self.maximum))

    def _growth(self, t: tf.Tensor) -> tf.Tensor:
        """Return gamma(t) / gamma."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {"gamma": self.gamma, "scoping": self.scoping, "maximum": self.maximum}


@keras.saving.register_keras_serializable(package="esgd_tf")
class ExponentialScope(_GrowingScope):
    """gamma(t) = gamma (1 + scoping)^t, the paper's law; with a maximum, Parle's.

    Args:
        gamma: float >= 0. The scope before the first outer update. Defaults to 1e-4.
        scoping: float >= 0. The relative growth per outer update. Defaults to 1e-3.
        maximum: float >= 0. The value at which the growth ends. Defaults to None, which sets no
            end.

    Raises:
        ValueError: An argument is negative or not a finite number.
    """

    def _growth(self, t: tf.Tensor) -> tf.Tensor:
        return tf.pow(_float64(1.0 + self.scoping), t)


@keras.saving.register_keras_serializable(package="esgd_tf")
class LinearScope(_GrowingScope):
    """gamma(t) = gamma (1 + scoping t).

    Args:
        gamma: float >= 0. The scope before the first outer update. Defaults to 1e-4.
        scoping: float >= 0. The growth per outer update, in units of `gamma`. Defaults to 1e-3.
        maximum: float >= 0. The value at which the growth ends. Defaults to None, which sets no
            end.

    Raises:
        ValueError: An argument is negative or not a finite number.
    """

    def _growth(self, t: tf.Tensor) -> tf.Tensor:
        return 1.0 + _float64(self.scoping) * t


@keras.saving.register_keras_serializable(package="esgd_tf")
class QuadraticScope(_GrowingScope):
    """gamma(t) = gamma (1 + scoping t^2).

    Args:
        gamma: float >= 0. The scope before the first outer update. Defaults to 1e-4.
        scoping: float >= 0. The growth per squared outer update, in units of `gamma`. Defaults to
            1e-3.
        maximum: float >= 0. The value at which the growth ends. Defaults to None, which sets no
            end.

    Raises:
        ValueError: An argument is negative or not a finite number.
    """

    def _growth(self, t: tf.Tensor) -> tf.Tensor:
        return 1.0 + _float64(self.scoping) * tf.square(t)


@keras.saving.register_keras_serializable(package="esgd_tf")
class BoundedScope(ScopeSchedule):
    """gamma(t) = gamma (1 - exp(-tau t)), which rises from 0 to the bound `gamma`.

    Args:
        gamma: float >= 0. The bound that gamma(t) approaches.
        tau: float > 0. The rate per outer update. Defaults to 1e-3.

    Raises:
        ValueError: An argument is out of range or not a finite number.
    """

    def __init__(self, gamma: float, tau: float = 1e-3) -> None:
        self.gamma = _checks.real("gamma", gamma, at_least=0)
        self.tau = _checks.real("tau", tau, above=0)

    def __call__(self, t: tf.Tensor | float) -> tf.Tensor:
        return -_float64(self.gamma) * tf.math.expm1(-_float64(self.tau) * _float64(t))

    def get_config(self) -> dict[str, Any]:
        return {"gamma": self.gamma, "tau": self.tau}


@keras.saving.register_keras_serializable(package="esgd_tf")
class ConstantScope(ScopeSchedule):
    """gamma(t) = gamma: no scoping.

    Args:
        gamma: float >= 0. The scope at every outer update.

    Raises:
        ValueError: `gamma` is negative or not a finite number.
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = _checks.real("gamma", gamma, at_least=0)

    def __call__(self, t: tf.Tensor | float) -> tf.Tensor:
        del t
        return _float64(self.gamma)

    def get_config(self) -> dict[str, Any]:
        return {"gamma": self.gamma}


@keras.saving.register_keras_serializable(package="esgd_tf")
class AutoScope(ScopeSchedule):
    """gamma0 measured in training, then grown to `growth` times its value.

    With T = `outer_updates` and t0 = `start`:

        gamma(t) = 0                                       for t <= t0
        gamma0   = loss / (1/2 |x - x'|^2)                 at the end of outer update t0
        gamma(t) = gamma0 growth^(min(t - t0, T) / T)      for t > t0

    so that the proximal energy gamma/2 |x - x'|^2 starts out as large as the loss. The loss is
    taken from the last minibatch of outer update t0, and x' are the last Langevin weights.

    Source: focusing protocol of the code of Pittorino et al., "Entropic gradient descent algorithms
    and wide flat minima", arXiv 2006.07897 (there growth = 1e4).

    Note:
        Keras hands the loss to the optimizer through `optimizer.scale_loss(loss)`, which `fit`
        calls and a custom training loop must call. Under `mixed_float16` Keras' loss scaling keeps
        the loss to itself: give the scope a number there. A loss that is never above 0 leaves
        gamma0 unmeasured and gamma(t) at 0, with a warning. With `gamma_in_outer_step`, the outer
        step is not multiplied by gamma before gamma0 is known (gamma is 0 there, and would freeze
        the weights for good).

    Args:
        outer_updates: int >= 1. T, the number of outer updates over which gamma grows by `growth`.
        growth: float > 0. The total growth factor. Defaults to 1e4.
        start: int >= 1. t0, the outer update at whose end gamma0 is measured. Defaults to 1.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, outer_updates: int, growth: float = 1e4, start: int = 1) -> None:
        self.outer_updates = _checks.integer("outer_updates", outer_updates, at_least=1)
        self.growth = _checks.real("growth", growth, above=0)
        self.start = _checks.integer("start", start, at_least=1)

    def __call__(self, t: tf.Tensor | float, gamma_zero: tf.Tensor | float = 0.0) -> tf.Tensor:
        """Return gamma(t), given the measured gamma0 (0 before it is known)."""
        exponent = (_float64(t) - self.start) / self.outer_updates
        return _float64(gamma_zero) * tf.pow(_float64(self.growth), tf.minimum(exponent, 1.0))

    def measure(
        self, t: tf.Tensor, gamma_zero: tf.Tensor, loss: tf.Tensor, squared_distance: tf.Tensor
    ) -> tf.Tensor:
        """Return gamma0 after outer update `t`.

        Args:
            t: scalar tensor. The number of the outer update that ends now.
            gamma_zero: float32 scalar tensor. gamma0 so far; 0 before it is known.
            loss: float32 scalar tensor. The loss of the last minibatch.
            squared_distance: float32 scalar tensor. |x - x'|^2 over all weights, with x'
                after the last Langevin step.

        Returns:
            A scalar of the dtype of `gamma_zero`. It stays 0 where the distance is 0 or the ratio
            is not finite, and is then measured at the next outer update.
        """
        ratio = tf.cast(loss, tf.float64) / (0.5 * tf.cast(squared_distance, tf.float64))
        ratio = tf.cast(ratio, gamma_zero.dtype)
        due = (tf.cast(t, tf.int64) >= self.start) & (gamma_zero <= 0)
        good = tf.math.is_finite(ratio) & (ratio > 0)
        return tf.where(due & good, ratio, gamma_zero)

    def get_config(self) -> dict[str, Any]:
        return {"outer_updates": self.outer_updates, "growth": self.growth, "start": self.start}


def _float64(value: tf.Tensor | float) -> tf.Tensor:
    # `tf.cast(0.3, tf.float64)` would round a Python number through float32.
    return tf.cast(value, tf.float64) if tf.is_tensor(value) else tf.constant(value, tf.float64)
