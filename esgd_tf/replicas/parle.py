"""Parle: Entropy-SGD in every replica, and springs between their anchors.

Source: Chaudhari et al., "Parle: parallelizing stochastic gradient descent", arXiv 1707.00424.
"""

from __future__ import annotations

from typing import Any

import keras

from esgd_tf import _checks
from esgd_tf.optimizers import ExponentialScope, LocalEntropy
from esgd_tf.replicas.coupling import Coupling
from esgd_tf.replicas.focusing import CappedGrowth, CouplingSchedule

__all__ = ["Parle"]


@keras.saving.register_keras_serializable(package="esgd_tf")
class Parle(Coupling):
    """Parle: Entropy-SGD without noise in every replica, coupled at the outer updates only.

    With x' = mean = x^a and v = 0 at the start of each outer update t = 1, 2, ..., L times

        v    = momentum v + ∇f(x'; minibatch)                          (Nesterov)
        x'   = x' - eta' (step + gamma(t) (x' - x^a))
        mean = averaging mean + (1 - averaging) x'

    and then the optimizer given to `compile` takes a step at x^a with the gradient

        (x^a - mean) + rho(t) (x^a - c),    c = (1/y) Σ_a x^a.

    Both couplings grow: gamma(t) = min(gamma (1 + scoping)^t, gamma_max), and rho(t) alike.

    Source: Chaudhari et al., arXiv 1707.00424, and the authors' released code, where
    gamma = 0.01, rho = 0.01 L y, scoping = 1 / (2 minibatches per epoch), the caps are 1 and 10,
    and the optimizer is SGD with the inner step size. (Its MPI version applies the outer step to
    the last x' instead of x^a; here it is x^a, as in the paper.)

    Args:
        langevin_steps: int >= 1. L, gradient evaluations per outer update. Defaults to 25.
        gamma: float >= 0. The pull of x' toward its anchor at the start. Defaults to 0.01.
        rho: float >= 0. The pull of the anchors toward the center at the start. Defaults to None,
            which is 0.01 L y.
        scoping: float >= 0. The relative growth of both per outer update. Defaults to 0.001.
        gamma_max: float > 0. The largest gamma. Defaults to 1.0.
        rho_max: float > 0. The largest rho. With SGD outside, rho is also held where
            one outer step would take an anchor beyond the center: see `maximum` of `Focusing`.
            Defaults to 10.0.
        langevin_learning_rate: float > 0. eta', the inner step size. Defaults to 0.1.
        momentum: float in [0, 1). Nesterov's momentum of the inner loop. Defaults to 0.9.
        averaging: float in [0, 1). The weight of the OLD mean. Defaults to 0.75.
        weight_decay: float >= 0. L2 coefficient, added to the gradient at x'. Defaults to 0.0.
        every: int >= 1. The number of outer updates between couplings. Defaults to 1.
        skip_nonfinite: bool. Whether to leave out minibatches whose gradient is not finite.
            Defaults to False.

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
        """rho, as given to the constructor."""
        if self.rho is None:
            raise ValueError("Parle's rho depends on the number of replicas: see `for_replicas`.")
        return CappedGrowth(self.rho, self.scoping, self.rho_max, self.langevin_steps)

    def for_replicas(self, replicas: int) -> Coupling:
        """Return this coupling with the defaults that depend on y filled in."""
        if self.rho is not None:
            return self
        return Parle(**{**self.get_config(), "rho": 0.01 * self.langevin_steps * replicas})

    def inner_optimizer(
        self, optimizer: keras.optimizers.Optimizer, replicas: int
    ) -> keras.optimizers.Optimizer:
        """Return the optimizer of the outer update inside Parle's inner loop."""
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
