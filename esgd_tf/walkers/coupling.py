"""A coupling whose strength can be changed during training."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from esgd_tf.replicas import ElasticAveraging, Parle, ReplicatedSGD
from esgd_tf.replicas.coupling import Coupling
from esgd_tf.replicas.focusing import CouplingSchedule
from esgd_tf.walkers.settings import Settings

__all__ = ["Adjustable", "make_coupling"]


class _Held(CouplingSchedule):
    """The strength, held in a variable, so that a traced step reads its current value."""

    def __init__(self, value: float) -> None:
        self.variable = tf.Variable(value, dtype=tf.float64, trainable=False)

    def __call__(self, step: Any, gamma_zero: Any) -> tf.Tensor:
        """Return the strength."""
        del step, gamma_zero
        return tf.identity(self.variable)


class Adjustable(Coupling):
    """A coupling whose strength is replaced by one that can be changed.

    Args:
        coupling: Coupling. The rule by which the workers are attracted to their center.
        strength: float >= 0. The strength of the attraction at the start.
    """

    def __init__(self, coupling: Coupling, strength: float) -> None:
        self.inner = coupling
        self._held = _Held(strength)
        self.every = coupling.every
        self.enters_gradient = coupling.enters_gradient
        self.pulls_after = coupling.pulls_after
        self.keeps_center = coupling.keeps_center
        self.rescales_center = coupling.rescales_center
        self._workers = 0

    @property
    def center_step(self) -> tf.Tensor:
        """Return beta = n alpha for the current alpha."""
        return tf.identity(self._held.variable) * self._workers

    @property
    def strength(self) -> CouplingSchedule:
        """The variable's value."""
        return self._held

    @property
    def value(self) -> float:
        """The current strength; may be set."""
        return float(self._held.variable.numpy())

    @value.setter
    def value(self, value: float) -> None:
        self._held.variable.assign(value)

    def factor(self, gamma: tf.Tensor) -> tf.Tensor:
        """Return the factor of (w^a - c)."""
        return self.inner.factor(gamma)

    def inner_optimizer(
        self, optimizer: keras.optimizers.Optimizer, replicas: int
    ) -> keras.optimizers.Optimizer:
        """Return the optimizer of each worker."""
        return self.inner.inner_optimizer(optimizer, replicas)

    def for_replicas(self, replicas: int) -> Coupling:
        """Return this coupling with the defaults that depend on the number of workers."""
        coupling = Adjustable(self.inner.for_replicas(replicas), self.value)
        coupling._workers = replicas
        return coupling

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "coupling": keras.saving.serialize_keras_object(self.inner),
            "strength": self.value,
        }


def make_coupling(settings: Settings) -> Adjustable:
    """Return the coupling of an experiment.

    "elastic", as in the original walkers code: after each step w^a moves by the fraction alpha of
    its way to the center before the step, the mean of the workers rescaled to their mean norm.
    "rsgd": alpha is gamma. "easgd": the center moves too, by the fraction beta = n alpha of its way
    to the mean. "parle": alpha is rho, which does not grow here.

    Args:
        settings: Settings. The name, the strength, and the inner loop of Parle.
    """
    alpha = settings.alpha
    inner: Coupling
    if settings.coupling == "elastic":
        inner = ElasticAveraging(alpha, center="norm_mean")
    elif settings.coupling == "rsgd":
        inner = ReplicatedSGD(alpha)
    elif settings.coupling == "easgd":
        inner = ElasticAveraging(alpha)
    else:
        inner = Parle(
            settings.langevin_steps,
            rho=alpha,
            langevin_learning_rate=settings.langevin_lr,
            momentum=settings.momentum or 1e-30,  # not 0, so that there is a velocity if it changes
        )
    return Adjustable(inner, alpha)
