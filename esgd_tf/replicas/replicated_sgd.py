"""Replicated-SGD: springs between the replicas and their mean, in the gradient.

Source: Pittorino et al., "Entropic gradient descent algorithms and wide flat minima", ICLR 2021,
arXiv 2006.07897.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from esgd_tf import _checks
from esgd_tf.replicas.coupling import Coupling
from esgd_tf.replicas.focusing import CouplingSchedule, Focusing

__all__ = ["ReplicatedSGD"]


@keras.saving.register_keras_serializable(package="esgd_tf")
class ReplicatedSGD(Coupling):
    """Replicated-SGD: y replicas with a spring of strength gamma to their mean.

    At every K-th update

        dw^a = ∇L(w^a; minibatch^a) + K gamma (w^a - c),    c = (1/y) Σ_a w^a

    and ∇L alone at the other updates; then the inner optimizer takes its step. This descends
    Σ_a L(w^a) + gamma Σ_a |w^a - c|^2 / 2: y interacting replicas sample the local entropy, and
    growing gamma ("focusing") makes them collapse into one wide minimum.

    Source: Pittorino et al., ICLR 2021, arXiv 2006.07897, Replicated-SGD.

    Args:
        gamma: float >= 0, or a Focusing. The strength of the springs, or its schedule. Defaults to
            0.01.
        every: int >= 1. K, the number of updates from one coupling to the next. The factor K makes
            up for the updates without coupling. Defaults to 1.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, gamma: float | Focusing = 0.01, every: int = 1) -> None:
        self.gamma = (
            gamma if isinstance(gamma, Focusing) else _checks.real("gamma", gamma, at_least=0)
        )
        self.every = _checks.integer("every", every, at_least=1)

    @property
    def strength(self) -> float | CouplingSchedule:
        """The strength that was given, which is `gamma`."""
        return self.gamma

    def factor(self, gamma: tf.Tensor) -> tf.Tensor:
        """Return K gamma."""
        return self.every * gamma

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "gamma": keras.saving.serialize_keras_object(self.gamma)
            if isinstance(self.gamma, Focusing)
            else self.gamma,
            "every": self.every,
        }
