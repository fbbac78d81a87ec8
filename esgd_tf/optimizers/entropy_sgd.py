"""EntropySGD and EntropyAdam: local entropy with the paper's two outer optimizers.

The equations are those of `langevin.py`; Chaudhari et al., ICLR 2017, arXiv 1611.01838, Algorithm
1 and the section on experiments. The defaults are the values of the MNIST experiments, where the
paper gives them, and those of the released code for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from esgd_tf import _checks
from esgd_tf.optimizers.local_entropy import LocalEntropy
from esgd_tf.optimizers.scoping import ScopeSchedule

__all__ = ["EntropyAdam", "EntropySGD"]


class _FixedOuterOptimizer(LocalEntropy):
    """A `LocalEntropy` whose outer optimizer is given by its hyperparameters.

    Subclasses name in `_outer_arguments` which of the constructor's arguments are the outer
    optimizer's, and how it calls them.
    """

    _outer_arguments: dict[str, str]

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        outer = config.pop("outer_optimizer")["config"]
        config["learning_rate"] = outer["learning_rate"]
        config.update({ours: outer[theirs] for ours, theirs in self._outer_arguments.items()})
        return config


@keras.saving.register_keras_serializable(package="esgd_tf")
class EntropySGD(_FixedOuterOptimizer):
    """Entropy-SGD: stochastic gradient descent into wide valleys.

    At outer update t = 1, 2, ... with x' = mean = x and v = 0 at its start, `langevin_steps` times

        q    = ∇f(x'; minibatch) + weight_decay x'
        v    = momentum v + q
        s    = q + momentum v  if nesterov and momentum else  v
        x'   = x' - eta' s - min(eta' gamma(t), 1) (x' - x) + sqrt(2 eta') noise N(0, I)
        mean = averaging mean + (1 - averaging) x'

    with eta' = `langevin_learning_rate` and gamma(t) = gamma (1 + scoping)^t, and then

        x    = x - learning_rate (x - mean)            (with `outer_momentum` as in keras SGD)

    Source: Chaudhari et al., ICLR 2017, arXiv 1611.01838, Algorithm 1; conventions of the released
    code where the two differ.

    Example:
        >>> model.compile(
        ...     optimizer=EntropySGD(langevin_steps=20),
        ...     loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ... )
        >>> model.fit(x, y, callbacks=[esgd_tf.AnchorCallback()])

    Note:
        One Keras step is one gradient evaluation: an epoch costs what an epoch of SGD costs, and
        makes 1/L as many outer updates. Learning rate schedules count outer updates. The hazards
        are those of `LocalEntropy`.

    Args:
        learning_rate: Outer step size, a number or a Keras schedule over outer updates.
        langevin_steps: L, gradient evaluations per outer update, >= 0; 0 is plain keras SGD.
        langevin_learning_rate: eta', the inner step size, > 0, or a Keras schedule over outer
            updates.
        gamma: Scope gamma0 >= 0, or a schedule of `esgd_tf.optimizers.scoping`.
        scoping: Relative growth of gamma per outer update, >= 0.
        noise: epsilon >= 0, in units of which the thermal term is sqrt(2 eta') noise N(0, I).
        averaging: Weight of the OLD mean, in [0, 1).
        momentum: Of the inner velocity, in [0, 1).
        nesterov: Whether the inner step looks ahead.
        weight_decay: L2 coefficient >= 0, added to the gradient at x'.
        outer_momentum: Momentum of the outer SGD, in [0, 1].
        outer_nesterov: Whether the outer momentum is Nesterov's.
        gamma_in_outer_step: Whether x - mean is multiplied by gamma(t).
        seed: Of the noise; None draws one from Keras' global seed.
        statistics: Whether to keep the norms of the last outer update for `statistics()`.
        skip_nonfinite: Whether to leave out minibatches whose gradient is not finite.
        learning_rate_multipliers: Factors on the outer step size by patterns of weights' paths.
        langevin_learning_rate_multipliers: Factors on eta', likewise.
        name: Name of the optimizer.
        **kwargs: Arguments of every Keras optimizer; see `LocalEntropy`.

    Raises:
        ValueError: An argument is out of range.
    """

    _outer_arguments = {"outer_momentum": "momentum", "outer_nesterov": "nesterov"}  # noqa: RUF012

    def __init__(
        self,
        learning_rate: Any = 1.0,
        langevin_steps: int = 20,
        langevin_learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.1,
        gamma: float | ScopeSchedule = 1e-4,
        scoping: float = 1e-3,
        noise: float = 1e-4,
        averaging: float = 0.75,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float | None = 0.0,
        outer_momentum: float = 0.0,
        outer_nesterov: bool = False,
        gamma_in_outer_step: bool = False,
        seed: int | None = None,
        statistics: bool = False,
        skip_nonfinite: bool = False,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        langevin_learning_rate_multipliers: Mapping[str, float] | None = None,
        name: str = "entropy_sgd",
        **kwargs: Any,
    ) -> None:
        outer_optimizer = keras.optimizers.SGD(
            learning_rate=_rate(learning_rate),
            momentum=_checks.real("outer_momentum", outer_momentum, at_least=0, at_most=1),
            nesterov=_checks.boolean("outer_nesterov", outer_nesterov),
            name=f"{name}_outer",
        )
        super().__init__(
            outer_optimizer,
            langevin_steps=langevin_steps,
            langevin_learning_rate=langevin_learning_rate,
            gamma=gamma,
            scoping=scoping,
            noise=noise,
            averaging=averaging,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            gamma_in_outer_step=gamma_in_outer_step,
            seed=seed,
            statistics=statistics,
            skip_nonfinite=skip_nonfinite,
            learning_rate_multipliers=learning_rate_multipliers,
            langevin_learning_rate_multipliers=langevin_learning_rate_multipliers,
            name=name,
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="esgd_tf")
class EntropyAdam(_FixedOuterOptimizer):
    """Entropy-Adam: Adam, fed with the gradient x - mean of the local entropy.

    The inner loop is that of `EntropySGD`; the outer step is keras Adam's with r = x - mean,

        m = beta_1 m + (1 - beta_1) r,    u = beta_2 u + (1 - beta_2) r^2,
        x = x - learning_rate m^ / (sqrt(u^) + epsilon),

    m^ and u^ being corrected for their start at zero. The paper uses it for recurrent networks,
    with L = 5 and learning rate 0.01 (there with beta_1 = 0.5 for char-LSTM).

    Source: Chaudhari et al., ICLR 2017, arXiv 1611.01838, sections on Algorithm 1 and on RNNs.

    Args:
        learning_rate: Outer step size, a number or a Keras schedule over outer updates.
        beta_1: Decay of the first moment, in [0, 1).
        beta_2: Decay of the second moment, in [0, 1).
        epsilon: Of Adam's denominator, > 0.
        langevin_steps: L, gradient evaluations per outer update, >= 0; 0 is plain keras Adam.
        langevin_learning_rate: eta', the inner step size, > 0, or a Keras schedule over outer
            updates.
        gamma: Scope gamma0 >= 0, or a schedule of `esgd_tf.optimizers.scoping`.
        scoping: Relative growth of gamma per outer update, >= 0.
        noise: epsilon of the thermal term, >= 0.
        averaging: Weight of the OLD mean, in [0, 1).
        momentum: Of the inner velocity, in [0, 1).
        nesterov: Whether the inner step looks ahead.
        weight_decay: L2 coefficient >= 0, added to the gradient at x'.
        gamma_in_outer_step: Whether x - mean is multiplied by gamma(t); Adam's step hardly depends
            on the scale of its gradient.
        seed: Of the noise; None draws one from Keras' global seed.
        statistics: Whether to keep the norms of the last outer update for `statistics()`.
        skip_nonfinite: Whether to leave out minibatches whose gradient is not finite.
        learning_rate_multipliers: Factors on the outer step size by patterns of weights' paths.
        langevin_learning_rate_multipliers: Factors on eta', likewise.
        name: Name of the optimizer.
        **kwargs: Arguments of every Keras optimizer; see `LocalEntropy`.

    Raises:
        ValueError: An argument is out of range.
    """

    _outer_arguments = {"beta_1": "beta_1", "beta_2": "beta_2", "epsilon": "epsilon"}  # noqa: RUF012

    def __init__(
        self,
        learning_rate: Any = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        langevin_steps: int = 5,
        langevin_learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.1,
        gamma: float | ScopeSchedule = 1e-4,
        scoping: float = 1e-3,
        noise: float = 1e-4,
        averaging: float = 0.75,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float | None = 0.0,
        gamma_in_outer_step: bool = False,
        seed: int | None = None,
        statistics: bool = False,
        skip_nonfinite: bool = False,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        langevin_learning_rate_multipliers: Mapping[str, float] | None = None,
        name: str = "entropy_adam",
        **kwargs: Any,
    ) -> None:
        outer_optimizer = keras.optimizers.Adam(
            learning_rate=_rate(learning_rate),
            beta_1=_checks.real("beta_1", beta_1, at_least=0, below=1),
            beta_2=_checks.real("beta_2", beta_2, at_least=0, below=1),
            epsilon=_checks.real("epsilon", epsilon, above=0),
            name=f"{name}_outer",
        )
        super().__init__(
            outer_optimizer,
            langevin_steps=langevin_steps,
            langevin_learning_rate=langevin_learning_rate,
            gamma=gamma,
            scoping=scoping,
            noise=noise,
            averaging=averaging,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            gamma_in_outer_step=gamma_in_outer_step,
            seed=seed,
            statistics=statistics,
            skip_nonfinite=skip_nonfinite,
            learning_rate_multipliers=learning_rate_multipliers,
            langevin_learning_rate_multipliers=langevin_learning_rate_multipliers,
            name=name,
            **kwargs,
        )


def _rate(learning_rate: Any) -> Any:
    """Return a schedule or a function as it is, and a number as the float that Keras wants."""
    if callable(learning_rate):
        return learning_rate
    return _checks.real("learning_rate", learning_rate, at_least=0)
