"""The rules by which replicas w^1 ... w^y of a network are attracted to each other.

    Replicated-SGD      dw^a = ∇L(w^a) + K gamma (w^a - c)             c = (1/y) Σ_a w^a
    elastic averaging   w^a  = w^a - alpha (w^a - c)                   c = c + beta (mean - c)
    ... of the walkers  w^a  = w^a - alpha (w^a - c)                   c = mean, rescaled
    Parle               dx^a = (x^a - <x'>^a) + rho (x^a - c)          c = (1/y) Σ_a x^a

every K updates. An update is a step of the inner optimizer. If that is Entropy-SGD, it is the outer
update, and the weights are the anchors x^a: all rules hold for both. "Elastic" pulls move the
weights themselves and stay out of momentum; the others enter the gradient.

Sources: Pittorino et al., "Entropic gradient descent algorithms and wide flat minima", ICLR 2021,
arXiv 2006.07897 (Replicated-SGD, with K as in its released code); Zhang, Choromanska and LeCun,
"Deep learning with elastic averaging SGD", NeurIPS 2015, arXiv 1412.6651; L. Sagun's
elementary-walkers (the rescaled center); Chaudhari et al., "Parle: parallelizing stochastic
gradient descent", arXiv 1707.00424.

The functions use arithmetic only, so they take TensorFlow tensors as well as NumPy arrays.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from esgd_tf.replicas.focusing import CouplingSchedule

__all__ = [
    "Coupling",
    "coupled_gradient",
    "elastic_center",
    "elastic_pull",
    "norm_mean",
]

# A tf.Tensor or a NumPy array: the rules are arithmetic and hold for both.
Array = Any


# ---- the rules --------------------------------------------------------------------------------


def coupled_gradient(gradient: Array, weights: Array, center: Array, strength: Any) -> Array:
    """Return gradient + strength (w^a - c): Replicated-SGD (K gamma) and Parle (rho).

    The second term is the gradient of strength/2 |w^a - c|^2 for a fixed center.

    Args:
        gradient: array or tensor. The gradient of the loss at w^a, or the outer gradient x^a -
            <x'>^a.
        weights: array or tensor. w^a, or the anchor x^a.
        center: array or tensor. c.
        strength: float >= 0, or a scalar tensor. The strength of the spring.
    """
    return gradient + strength * (weights - center)


def elastic_pull(weights: Array, center: Array, alpha: Any) -> Array:
    """Return w^a - alpha (w^a - c).

    Args:
        weights: array or tensor. w^a.
        center: array or tensor. c, before it moves.
        alpha: float in [0, 1], or a scalar tensor. The fraction of the way to the center.
    """
    return weights - alpha * (weights - center)


def elastic_center(center: Array, mean: Array, rate: Any) -> Array:
    """Return c + beta (mean - c), which is c + alpha Σ_a (w^a - c) for beta = y alpha.

    Args:
        center: array or tensor. c.
        mean: array or tensor. The mean of the replicas, before they are pulled.
        rate: float in [0, 1], or a scalar tensor. beta, the fraction of the way to the mean.
    """
    return center + rate * (mean - center)


def norm_mean(mean: Array, norm_of_mean: Any, mean_norm: Any) -> Array:
    """Return the mean of the replicas, rescaled to the mean of their norms.

    The mean of weights that point in different directions is shorter than they are.

    Args:
        mean: array or tensor. (1/y) Σ_a w^a, or a part of it.
        norm_of_mean: float > 0, or a scalar tensor. The norm of the whole mean over all weights.
        mean_norm: float, or a scalar tensor. (1/y) Σ_a |w^a|.
    """
    return mean * (mean_norm / norm_of_mean)


# ---- the base class of the couplings ----------------------------------------------------------


class Coupling:
    """A rule by which replicas are attracted to their center; the base of all couplings.

    Attributes:
        every: The number of updates between couplings.
        enters_gradient: Whether the rule adds to the gradient; otherwise it moves the weights.
        pulls_after: Whether a rule that moves the weights does so after the inner optimizer's step.
        keeps_center: Whether the center has a state of its own; otherwise it is a mean.
        rescales_center: Whether the mean is rescaled to the mean norm.
    """

    every: int = 1
    enters_gradient: bool = True
    pulls_after: bool = False
    keeps_center: bool = False
    rescales_center: bool = False

    @property
    def center_step(self) -> tf.Tensor:
        """The fraction of its way to the mean by which a center with a state moves: float64."""
        return tf.constant(0.0, tf.float64)

    @property
    def strength(self) -> float | CouplingSchedule:
        """gamma, alpha or rho, as given to the constructor."""
        raise NotImplementedError

    def factor(self, gamma: tf.Tensor) -> tf.Tensor:
        """Return the factor of (w^a - c) for the current strength.

        Args:
            gamma: float64 scalar tensor. The current strength.
        """
        return gamma

    def inner_optimizer(
        self, optimizer: keras.optimizers.Optimizer, replicas: int
    ) -> keras.optimizers.Optimizer:
        """Return the optimizer of each replica, made from the one given to `compile`.

        Args:
            optimizer: keras.optimizers.Optimizer that is not built yet. The optimizer of a replica.
            replicas: int >= 1. y, the number of replicas.
        """
        del replicas
        return optimizer

    def for_replicas(self, replicas: int) -> Coupling:
        """Return this coupling with the defaults that depend on y filled in.

        Args:
            replicas: int >= 1. y, the number of replicas.
        """
        del replicas
        return self

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Coupling:
        """Rebuild the coupling from `get_config`."""
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value)
                if isinstance(value, dict)
                else value
                for name, value in config.items()
            }
        )

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if k[0] != "_")
        return f"{type(self).__name__}({arguments})"
