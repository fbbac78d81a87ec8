"""How replicas w^1 ... w^y of one network are drawn together: the rules, one function each.

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

from esgd_tf.optimizers import ExponentialScope, LocalEntropy, _checks
from esgd_tf.replicas.focusing import CappedGrowth, CouplingSchedule, Focusing

__all__ = [
    "Coupling",
    "ElasticAveraging",
    "Parle",
    "ReplicatedSGD",
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

    It is the gradient of strength/2 |w^a - c|^2, the center held fixed.

    Args:
        gradient: Of the loss at w^a, or the outer gradient x^a - <x'>^a.
        weights: w^a, or the anchor x^a.
        center: c.
        strength: Scalar, >= 0.
    """
    return gradient + strength * (weights - center)


def elastic_pull(weights: Array, center: Array, alpha: Any) -> Array:
    """Return w^a - alpha (w^a - c).

    Args:
        weights: w^a.
        center: c, before it moves itself.
        alpha: Share of the way to the center, from 0 to 1.
    """
    return weights - alpha * (weights - center)


def elastic_center(center: Array, mean: Array, rate: Any) -> Array:
    """Return c + beta (mean - c), what c + alpha Σ_a (w^a - c) is for beta = y alpha.

    Args:
        center: c.
        mean: Of the replicas, before they are pulled.
        rate: beta, from 0 to 1.
    """
    return center + rate * (mean - center)


def norm_mean(mean: Array, norm_of_mean: Any, mean_norm: Any) -> Array:
    """Return the mean of the replicas, rescaled to the mean of their norms.

    The mean of weights that point different ways is shorter than they are.

    Args:
        mean: (1/y) Σ_a w^a, or a part of it.
        norm_of_mean: Norm of the whole mean over all weights, > 0.
        mean_norm: (1/y) Σ_a |w^a|.
    """
    return mean * (mean_norm / norm_of_mean)


# ---- the couplings ----------------------------------------------------------------------------


class Coupling:
    """What draws replicas together; the base of the classes below.

    Attributes:
        every: Updates from one coupling to the next.
        enters_gradient: Whether it adds to the gradient, or else pulls the weights.
        pulls_after: Of pulls: whether after the inner optimizer's step, or before.
        keeps_center: Whether the center has a state of its own, or is made of the replicas.
        rescales_center: Whether the mean is rescaled to the mean norm.
    """

    every: int = 1
    enters_gradient: bool = True
    pulls_after: bool = False
    keeps_center: bool = False
    rescales_center: bool = False

    @property
    def strength(self) -> float | CouplingSchedule:
        """gamma, alpha or rho, as it was given."""
        raise NotImplementedError

    def factor(self, gamma: tf.Tensor) -> tf.Tensor:
        """Return what (w^a - c) is multiplied by, for the strength in force.

        Args:
            gamma: float64 scalar.
        """
        return gamma

    def inner_optimizer(
        self, optimizer: keras.optimizers.Optimizer, replicas: int
    ) -> keras.optimizers.Optimizer:
        """Return the optimizer of each replica, made of the one given to `compile`.

        Args:
            optimizer: Not built yet.
            replicas: y.
        """
        del replicas
        return optimizer

    def for_replicas(self, replicas: int) -> Coupling:
        """Return this coupling with the defaults that depend on y filled in.

        Args:
            replicas: y.
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


@keras.saving.register_keras_serializable(package="esgd_tf")
class ReplicatedSGD(Coupling):
    """Replicated-SGD: y replicas with a spring of strength gamma to their mean.

    At every K-th update

        dw^a = ∇L(w^a; minibatch^a) + K gamma (w^a - c),    c = (1/y) Σ_a w^a

    and ∇L alone at the others; then the inner optimizer's step. It descends
    Σ_a L(w^a) + gamma Σ_a |w^a - c|^2 / 2: y interacting replicas sample the local entropy, and
    growing gamma ("focusing") makes them collapse into one wide minimum.

    Source: Pittorino et al., ICLR 2021, arXiv 2006.07897, Replicated-SGD.

    Args:
        gamma: Strength >= 0 of the springs, or its schedule, a `Focusing`.
        every: K >= 1, updates from one coupling to the next. The factor K makes up for the rest.

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
        """What was given."""
        return self.gamma

    def factor(self, gamma: tf.Tensor) -> tf.Tensor:
        """Return K gamma."""
        return self.every * gamma

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"gamma": _serialized(self.gamma), "every": self.every}


@keras.saving.register_keras_serializable(package="esgd_tf")
class ElasticAveraging(Coupling):
    """Elastic averaging (EASGD; EAMSGD with a momentum optimizer inside).

    At every tau-th update, all differences taken before anything moves,

        w^a = w^a - alpha (w^a - c)
        c   = c + beta (mean_a w^a - c)

    and the inner optimizer's step, with the gradient at the old w^a. The pull stays out of its
    momentum. c starts as the mean of the replicas.

    With `center="norm_mean"`, the variant of the elementary-walkers code: c is the mean of the
    replicas, rescaled so that |c| = (1/y) Σ_a |w^a|, and the pull comes after the step.

    Sources: Zhang, Choromanska and LeCun, NeurIPS 2015, arXiv 1412.6651; elementary-walkers,
    util-train.lua.

    Args:
        alpha: Share of the way to the center, in [0, 1]; eta rho in the paper.
        every: tau >= 1, updates from one coupling to the next.
        center_rate: beta in (0, 1]; None is y alpha, the paper's symmetric choice (at most 1).
        center: "moving", or "norm_mean", which has no `center_rate`.

    Raises:
        ValueError: An argument is out of range.
    """

    enters_gradient = False

    def __init__(
        self,
        alpha: float = 0.3,
        every: int = 1,
        center_rate: float | None = None,
        center: str = "moving",
    ) -> None:
        self.alpha = _checks.real("alpha", alpha, at_least=0)
        if self.alpha > 1:
            raise ValueError(
                f"`alpha` must be at most 1: beyond, the pull overshoots; got {alpha}."
            )
        self.every = _checks.integer("every", every, at_least=1)
        if center not in ("moving", "norm_mean"):
            raise ValueError(f"`center` must be moving or norm_mean; got {center!r}.")
        if center == "norm_mean" and center_rate is not None:
            raise ValueError("`center_rate` has no meaning for center='norm_mean': leave it out.")
        if center_rate is not None:
            center_rate = _checks.real("center_rate", center_rate, above=0)
            if center_rate > 1:
                raise ValueError(f"`center_rate` must be at most 1; got {center_rate}.")
        self.center_rate, self.center = center_rate, center

    @property
    def keeps_center(self) -> bool:  # type: ignore[override]
        """Whether c is a state of its own."""
        return self.center == "moving"

    @property
    def pulls_after(self) -> bool:  # type: ignore[override]
        """Whether the pull comes after the step."""
        return self.center == "norm_mean"

    @property
    def rescales_center(self) -> bool:  # type: ignore[override]
        """Whether c is the rescaled mean."""
        return self.center == "norm_mean"

    @property
    def strength(self) -> float | CouplingSchedule:
        """What was given."""
        return self.alpha

    def for_replicas(self, replicas: int) -> Coupling:
        """Fill in what depends on the number of replicas."""
        if not self.keeps_center or self.center_rate is not None:
            return self
        rate = replicas * self.alpha
        if rate > 1:
            raise ValueError(
                f"{replicas} replicas with alpha = {self.alpha:g} would move the center by "
                f"beta = y alpha = {rate:g} of the way to their mean, beyond it: take an alpha of "
                f"at most {1 / replicas:.3g}, or give `center_rate`."
            )
        # alpha = 0 leaves the center where it is.
        return ElasticAveraging(self.alpha, self.every, rate) if rate > 0 else self

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "alpha": self.alpha,
            "every": self.every,
            "center_rate": self.center_rate,
            "center": self.center,
        }


@keras.saving.register_keras_serializable(package="esgd_tf")
class Parle(Coupling):
    """Parle: Entropy-SGD without noise in every replica, coupled at the outer updates only.

    With x' = mean = x^a and v = 0 at the start of each outer update t = 1, 2, ..., L times

        v    = momentum v + ∇f(x'; minibatch)                          (Nesterov)
        x'   = x' - eta' (step + gamma(t) (x' - x^a))
        mean = averaging mean + (1 - averaging) x'

    and then the optimizer given to `compile` takes a step at x^a with the gradient

        (x^a - mean) + rho(t) (x^a - c),    c = (1/y) Σ_a x^a.

    Both couplings grow: gamma(t) = min(gamma (1 + scoping)^t, gamma_max), and rho(t) likewise.

    Source: Chaudhari et al., arXiv 1707.00424, and the authors' released code, where
    gamma = 0.01, rho = 0.01 L y, scoping = 1 / (2 minibatches per epoch), the caps are 1 and 10,
    and the optimizer is SGD with the inner step size. (Its MPI version applies the outer step to
    the last x' instead of x^a; here it is x^a, as in the paper.)

    Args:
        langevin_steps: L >= 1.
        gamma: Pull of x' toward its anchor at the start, >= 0.
        rho: Pull of the anchors toward the center at the start, >= 0; None is 0.01 L y.
        scoping: Relative growth of both per outer update, >= 0.
        gamma_max: Cap of gamma.
        rho_max: Cap of rho. Its product with the outer learning rate must stay below 2, or the
            anchors overshoot the center.
        langevin_learning_rate: eta', > 0.
        momentum: Nesterov's, of the inner loop, in [0, 1).
        averaging: Weight of the OLD mean, in [0, 1).
        weight_decay: L2 coefficient >= 0, added to the gradient at x'.
        every: Outer updates from one coupling to the next.
        skip_nonfinite: Whether to leave out minibatches whose gradient is not finite.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        langevin_steps: int = 25,
        gamma: float = 0.01,
        rho: float | None = None,
        scoping: float = 1e-3,
        gamma_max: float = 1.0,
        rho_max: float = 10.0,
        langevin_learning_rate: float = 0.1,
        momentum: float = 0.9,
        averaging: float = 0.75,
        weight_decay: float = 0.0,
        every: int = 1,
        skip_nonfinite: bool = False,
    ) -> None:
        self.langevin_steps = _checks.integer("langevin_steps", langevin_steps, at_least=1)
        self.gamma = _checks.real("gamma", gamma, at_least=0)
        self.rho = None if rho is None else _checks.real("rho", rho, at_least=0)
        self.scoping = _checks.real("scoping", scoping, at_least=0)
        self.gamma_max = _checks.real("gamma_max", gamma_max, at_least=0)
        self.rho_max = _checks.real("rho_max", rho_max, at_least=0)
        self.langevin_learning_rate = _checks.real(
            "langevin_learning_rate", langevin_learning_rate, above=0
        )
        self.momentum = _checks.real("momentum", momentum, at_least=0, below=1)
        self.averaging = _checks.real("averaging", averaging, at_least=0, below=1)
        self.weight_decay = _checks.real("weight_decay", weight_decay, at_least=0)
        self.every = _checks.integer("every", every, at_least=1)
        self.skip_nonfinite = bool(skip_nonfinite)

    @property
    def strength(self) -> float | CouplingSchedule:
        """What was given."""
        if self.rho is None:
            raise ValueError("Parle's rho depends on the number of replicas: see `for_replicas`.")
        return CappedGrowth(self.rho, self.scoping, self.rho_max, self.langevin_steps)

    def for_replicas(self, replicas: int) -> Coupling:
        """Fill in what depends on the number of replicas."""
        if self.rho is not None:
            return self
        return Parle(**{**self.get_config(), "rho": 0.01 * self.langevin_steps * replicas})

    def inner_optimizer(
        self, optimizer: keras.optimizers.Optimizer, replicas: int
    ) -> keras.optimizers.Optimizer:
        """Put the inner loop around the optimizer of the outer update."""
        if isinstance(optimizer, LocalEntropy):
            raise ValueError(
                "Parle makes the inner loop itself: give `compile` the optimizer of the outer "
                "update, such as keras.optimizers.SGD(0.1). For replicas of Entropy-SGD with "
                "noise, couple them by ReplicatedSGD."
            )
        return LocalEntropy(
            optimizer,
            langevin_steps=self.langevin_steps,
            langevin_learning_rate=self.langevin_learning_rate,
            gamma=ExponentialScope(self.gamma, self.scoping, self.gamma_max),
            noise=0.0,
            averaging=self.averaging,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            skip_nonfinite=self.skip_nonfinite,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(vars(self))


def _serialized(value: Any) -> Any:
    return keras.saving.serialize_keras_object(value) if isinstance(value, Focusing) else value
