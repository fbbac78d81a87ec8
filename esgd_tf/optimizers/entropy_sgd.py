"""EntropySGD and EntropyAdam: local entropy with the paper's two outer optimizers.

The equations are those of `langevin.py`; Chaudhari et al., ICLR 2017, arXiv 1611.01838, Algorithm
1 and the section on experiments. The defaults are the values of the MNIST experiments, where the
paper gives them, and those of the released code for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import keras

from esgd_tf import _checks
from esgd_tf.optimizers._options import KerasOptions
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

    Examples:
        >>> model.compile(
        ...     optimizer=esgd_tf.EntropySGD(langevin_steps=20),
        ...     loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ... )
        >>> model.fit(x, y, callbacks=[esgd_tf.AnchorCallback()])

    Note:
        One Keras step is one gradient evaluation: an epoch costs what an epoch of SGD costs, and
        makes 1/L as many outer updates. Learning rate schedules count outer updates. The hazards
        are those of `LocalEntropy`.

    Args:
        learning_rate: float >= 0, or a Keras schedule over outer updates. The outer step size.
            Defaults to 1.0.
        langevin_steps: int >= 0. L, gradient evaluations per outer update; with 0 it is plain keras
            SGD. Defaults to 20.
        langevin_learning_rate: float > 0, or a Keras schedule over outer updates. eta', the inner
            step size. Defaults to 0.1.
        gamma: float >= 0, or a schedule of `esgd_tf.optimizers.scoping`. The scope gamma0, for
            gamma(t) = gamma (1 + scoping)^t, or the law gamma(t) itself. Defaults to 1e-4.
        scoping: float >= 0. The relative growth of gamma per outer update; not used if `gamma` is a
            schedule. Defaults to 1e-3.
        noise: float >= 0. epsilon: the term added to x' is sqrt(2 eta') noise N(0, I). Defaults to
            1e-4.
        averaging: float in [0, 1). alpha, the weight of the OLD mean. Defaults to 0.75.
        momentum: float in [0, 1). Momentum of the inner velocity. Defaults to 0.9.
        nesterov: bool. Whether the inner step looks ahead along the velocity. Defaults to True.
        weight_decay: float >= 0. L2 coefficient, added to the gradient at x' before the momentum.
            Defaults to 0.0.
        outer_momentum: float in [0, 1]. Momentum of the outer SGD. Defaults to 0.0.
        outer_nesterov: bool. Whether the outer momentum is Nesterov's. Defaults to False.
        gamma_in_outer_step: bool. Whether x - mean is multiplied by gamma(t). Defaults to False.
        seed: int in [0, 2^31). Seed of the noise. Defaults to None, which takes one from Keras'
            global seed.
        statistics: bool. Whether to keep the norms of the last outer update for `statistics()`.
            Defaults to False.
        skip_nonfinite: bool. Whether to leave out minibatches whose gradient is not finite.
            Defaults to False.
        learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on the outer
            step size of the weights in whose paths the expressions are found: {"head/": 10.0}.
            Defaults to None, which means 1 everywhere.
        langevin_learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on
            eta', by the same rule. Defaults to None, which means 1 everywhere.
        name: str. Name of the optimizer. Defaults to "entropy_sgd".
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
        **kwargs: Unpack[KerasOptions],
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

    The inner loop is the same as in `EntropySGD`; the outer step is Keras Adam's with r = x - mean,

        m = beta_1 m + (1 - beta_1) r,    u = beta_2 u + (1 - beta_2) r^2,
        x = x - learning_rate m^ / (sqrt(u^) + epsilon),

    m^ and u^ being corrected for their start at zero. The paper uses it for recurrent networks,
    with L = 5 and learning rate 0.01 (there with beta_1 = 0.5 for char-LSTM).

    Source: Chaudhari et al., ICLR 2017, arXiv 1611.01838, sections on Algorithm 1 and on RNNs.

    Args:
        learning_rate: float >= 0, or a Keras schedule over outer updates. The outer step size.
            Defaults to 0.01.
        beta_1: float in [0, 1). Decay of the first moment. Defaults to 0.9.
        beta_2: float in [0, 1). Decay of the second moment. Defaults to 0.999.
        epsilon: float > 0. The term in Adam's denominator. Defaults to 1e-7.
        langevin_steps: int >= 0. L, gradient evaluations per outer update; with 0 it is plain keras
            Adam. Defaults to 5.
        langevin_learning_rate: float > 0, or a Keras schedule over outer updates. eta', the inner
            step size. Defaults to 0.1.
        gamma: float >= 0, or a schedule of `esgd_tf.optimizers.scoping`. The scope gamma0, for
            gamma(t) = gamma (1 + scoping)^t, or the law gamma(t) itself. Defaults to 1e-4.
        scoping: float >= 0. The relative growth of gamma per outer update; not used if `gamma` is a
            schedule. Defaults to 1e-3.
        noise: float >= 0. epsilon: the term added to x' is sqrt(2 eta') noise N(0, I). Defaults to
            1e-4.
        averaging: float in [0, 1). alpha, the weight of the OLD mean. Defaults to 0.75.
        momentum: float in [0, 1). Momentum of the inner velocity. Defaults to 0.9.
        nesterov: bool. Whether the inner step looks ahead along the velocity. Defaults to True.
        weight_decay: float >= 0. L2 coefficient, added to the gradient at x' before the momentum.
            Defaults to 0.0.
        gamma_in_outer_step: bool. Whether x - mean is multiplied by gamma(t); Adam's step hardly
            depends on the scale of its gradient. Defaults to False.
        seed: int in [0, 2^31). Seed of the noise. Defaults to None, which takes one from Keras'
            global seed.
        statistics: bool. Whether to keep the norms of the last outer update for `statistics()`.
            Defaults to False.
        skip_nonfinite: bool. Whether to leave out minibatches whose gradient is not finite.
            Defaults to False.
        learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on the outer
            step size of the weights in whose paths the expressions are found: {"head/": 10.0}.
            Defaults to None, which means 1 everywhere.
        langevin_learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on
            eta', by the same rule. Defaults to None, which means 1 everywhere.
        name: str. Name of the optimizer. Defaults to "entropy_adam".
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
        **kwargs: Unpack[KerasOptions],
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
