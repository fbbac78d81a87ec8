"""LocalEntropy: any Keras optimizer, made to descend the local entropy instead of the loss.

The equations stand in `langevin.py`. This module gives them the shape of a Keras optimizer. One
Keras step is one gradient evaluation on one minibatch; `langevin_steps` of them make one outer
update. The phase counts them, from 0 after an outer update:

    phase 0      anchor = mean = x' (= x) and velocity = 0
    every phase  a Langevin step
    phase L-1    x' = anchor, and the outer optimizer's step with x - mean

so `compile` and `fit` need to know nothing about the inner loop, and no gradient is spent on
anything but a Langevin step. Between two outer updates the model's variables hold x'; see
`esgd_tf.evaluate_at` for evaluating and saving at the anchor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import keras
import tensorflow as tf

from esgd_tf import _checks, _keras
from esgd_tf.optimizers import _serialization
from esgd_tf.optimizers._inner_loop import InnerLoop, Rule
from esgd_tf.optimizers._options import KerasOptions
from esgd_tf.optimizers._scope import ActingScope, scope_schedule
from esgd_tf.optimizers._statistics import LangevinStatistics
from esgd_tf.optimizers._step_sizes import StepSizes
from esgd_tf.optimizers._variables import as_tf, is_frozen, scalar
from esgd_tf.optimizers._warnings import LocalEntropyWarnings
from esgd_tf.optimizers._wrapping import WrappingOptimizer, on_devices
from esgd_tf.optimizers.scoping import AutoScope, ScopeSchedule

__all__ = ["LocalEntropy"]


@keras.saving.register_keras_serializable(package="esgd_tf")
class LocalEntropy(WrappingOptimizer):
    """Local-entropy descent around any Keras optimizer.

    At outer update t = 1, 2, ... with x' = mean = x and v = 0 at its start, `langevin_steps` times

        q    = ∇f(x'; minibatch) + weight_decay x'
        v    = momentum v + q
        s    = q + momentum v  if nesterov and momentum else  v
        x'   = x' - eta' s - min(eta' gamma(t), 1) (x' - x) + sqrt(2 eta') noise N(0, I)
        mean = averaging mean + (1 - averaging) x'

    and then the outer optimizer takes a step at x with the gradient x - mean.

    Source: Chaudhari et al., "Entropy-SGD: biasing gradient descent into wide valleys", ICLR 2017,
    arXiv 1611.01838, Algorithm 1, with the conventions of the authors' released code.

    Examples:
        >>> optimizer = esgd_tf.LocalEntropy(keras.optimizers.Lion(1e-3), langevin_steps=10)
        >>> model.compile(optimizer=optimizer, loss="mse")

    Note:
        * Between two outer updates the model's variables hold x', not the anchor x. Use
          `esgd_tf.evaluate_at` or `esgd_tf.AnchorCallback`. At the end of `fit` the model is left
          at the anchor; the next `fit` goes on with the inner loop where it stood (exactly so with
          `AnchorCallback`; without it, the first gradient is taken at the anchor).
        * `langevin_steps=0` is the outer optimizer itself, bit for bit.
        * The outer learning rate and its schedules count outer updates, not minibatches: a schedule
          for 391 minibatches an epoch must be divided by `langevin_steps`.
        * Momentum amplifies the gradient by 1 / (1 - momentum) but not the pull toward the anchor,
          as in the released code: the scope that acts is gamma (1 - momentum). The pull ends at 1,
          where every step starts at the anchor; beyond 2 it would diverge. A `gamma` that is given
          as a number grows no further than to a pull of 0.9.
        * Gradient clipping acts on the minibatch gradient ∇f; under tf.distribute, as in Keras, on
          each replica's part of it, before the parts are summed. `use_ema` averages the anchor,
          once per outer update. `gradient_accumulation_steps` minibatches make one gradient
          evaluation.
        * Sparse gradients become dense: the proximal term and the noise move every weight.
        * A weight joins the inner loop with its first gradient in it. Weights without one, and
          layers that are frozen, stay where they are; weights that someone sets between two steps
          (`set_weights`, a callback that clips) start their inner loop there. Sixteen
          numbers of each weight are compared: a change elsewhere counts as a part of the walk.
        * `learning_rate`, `langevin_learning_rate` and `momentum` can be set at any time; all else
          is part of the traced step, and setting it is refused.

    Args:
        outer_optimizer: keras.optimizers.Optimizer that is not built yet, or str. The outer
            optimizer, or its name. Its own clipping by norm or value and its decoupled weight decay
            act on the outer step.
        langevin_steps: int >= 0. L, gradient evaluations per outer update; with 0 it is the outer
            optimizer alone. Defaults to 20.
        langevin_learning_rate: float > 0, or a Keras schedule over outer updates. eta', the inner
            step size. The paper found annealing it together with the outer one harmful. Defaults to
            0.1.
        gamma: float >= 0, or a schedule of `esgd_tf.optimizers.scoping`. The scope gamma0, for
            gamma(t) = gamma (1 + scoping)^t, or the law gamma(t) itself. Defaults to 1e-4.
        scoping: float >= 0. The relative growth of gamma per outer update; not used if `gamma` is a
            schedule. Defaults to 1e-3.
        noise: float >= 0. epsilon: the term added to x' is sqrt(2 eta') noise N(0, I), the scale of
            the released code. The paper prints sqrt(eta') noise: divide its value by sqrt(2).
            Defaults to 1e-4.
        averaging: float in [0, 1). alpha, the weight of the OLD mean. Defaults to 0.75.
        momentum: float in [0, 1). Momentum of the inner velocity. Defaults to 0.9.
        nesterov: bool. Whether the inner step looks ahead along the velocity. Defaults to True.
        weight_decay: float >= 0. L2 coefficient, added to the gradient at x' before the momentum
            (not Keras' decoupled decay); `exclude_from_weight_decay` is honoured. None means 0.
            Defaults to 0.0.
        gamma_in_outer_step: bool. Whether x - mean is multiplied by gamma(t), as Algorithm 1
            prints. Defaults to False.
        seed: int in [0, 2^31). Seed of the noise. It is kept in an optimizer variable, so that a
            restored run continues its own noise. Defaults to None, which takes one from Keras'
            global seed.
        statistics: bool. Whether to keep the norms of the last outer update for `statistics()`.
            Defaults to False.
        skip_nonfinite: bool. Whether a minibatch whose gradient, summed over all devices, has a
            NaN, an infinity, or a squared norm that overflows is left out: weights, slots and
            counters stay as they are, and the next minibatch takes the step. `skipped` counts them.
            Costs a pass over the gradient. (`esgd_tf.training.skip_nonfinite` also undoes what such
            a minibatch does to BatchNormalization statistics and metrics.) Defaults to False.
        learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on the outer
            step size of the weights in whose paths the expressions are found: {"head/": 10.0}.
            Defaults to None, which means 1 everywhere.
        langevin_learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on
            eta', by the same rule. Defaults to None, which means 1 everywhere.
        name: str. Name of the optimizer. Defaults to "local_entropy".
        **kwargs: Arguments of every Keras optimizer: `clipnorm`, `clipvalue`, `global_clipnorm`,
            `use_ema`, `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`,
            `gradient_accumulation_steps`.

    Raises:
        ValueError: An argument is out of range, or the outer optimizer has an option that must be
            set on this optimizer instead, or does more than its `update_step`.
    """

    _fixed: ClassVar[set[str]] = WrappingOptimizer._fixed | {
        "averaging", "gamma", "gamma_in_outer_step", "keeps_statistics", "langevin_steps",
        "nesterov", "noise", "scoping", "seed",
    }  # fmt: skip
    _settable: ClassVar[str] = "`learning_rate`, `langevin_learning_rate` and `momentum`"

    def __init__(
        self,
        outer_optimizer: keras.optimizers.Optimizer | str,
        langevin_steps: int = 20,
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
        name: str = "local_entropy",
        **kwargs: Unpack[KerasOptions],
    ) -> None:
        if "learning_rate" in kwargs:
            raise ValueError(
                "`learning_rate` belongs to the outer optimizer; the inner step size is "
                "`langevin_learning_rate`."
            )
        langevin_steps = _checks.integer("langevin_steps", langevin_steps, at_least=0)
        super().__init__(
            outer_optimizer,
            weight_decay=weight_decay,
            skip_nonfinite=skip_nonfinite,
            learning_rate_multipliers=learning_rate_multipliers,
            # The anchor is averaged, once per outer update.
            averages_in_step=langevin_steps > 0,
            name=name,
            **kwargs,
        )
        self.langevin_steps = langevin_steps
        self.scoping = _checks.real("scoping", scoping, at_least=0)
        schedule = scope_schedule(gamma, self.scoping)
        self.gamma = gamma if isinstance(gamma, ScopeSchedule) else float(gamma)
        self.noise = _checks.real("noise", noise, at_least=0)
        self.averaging = _checks.real("averaging", averaging, at_least=0, below=1)
        self.nesterov = _checks.boolean("nesterov", nesterov)
        self.gamma_in_outer_step = _checks.boolean("gamma_in_outer_step", gamma_in_outer_step)
        self.seed = None if seed is None else _checks.integer("seed", seed, at_least=0, below=2**31)
        self.keeps_statistics = _checks.boolean("statistics", statistics)

        self._seed = scalar(
            self, "seed", "int64", _keras.new_seed() if self.seed is None else self.seed
        )
        self._add_skip_counter()
        self._step_sizes = StepSizes(
            self,
            self._outer.iterations,
            langevin_learning_rate,
            momentum,
            langevin_learning_rate_multipliers,
        )
        self._phase = scalar(self, "langevin_phase", "int64")
        rule = Rule(
            langevin_steps=self.langevin_steps,
            nesterov=self.nesterov,
            noise=self.noise,
            averaging=self.averaging,
            # With the number 0 there is no pull toward the anchor to compute.
            pulls=isinstance(self.gamma, ScopeSchedule) or self.gamma > 0,
            seed=self._seed,
        )
        self._loop = InnerLoop(
            self, rule, self._step_sizes, self._phase, self.keeps_statistics, schedule
        )
        self._scope = ActingScope(
            self.gamma, schedule, self._step_sizes, self._outer.iterations, self._loop.statistics
        )
        self._measures_scope = isinstance(schedule, AutoScope)
        self._complete(self._loop)

    def _make_warnings(self) -> LocalEntropyWarnings:
        return LocalEntropyWarnings(self)

    # ---- what users read and set --------------------------------------------------------------

    @property
    def langevin_phase(self) -> tf.Tensor:
        """Langevin steps taken since the last outer update: an int64 scalar in [0, L)."""
        return tf.convert_to_tensor(self._phase.value)

    @property
    def scope(self) -> tf.Tensor:
        """The scope that acts now, a float64 scalar: gamma(t), but at most 1 / eta'.

        t is the outer update that is under way. At 1 / eta' x' is held at the anchor.
        """
        return self._scope.acting()

    @property
    def langevin_learning_rate(self) -> Any:
        """eta', the inner step size: a variable, or what its schedule gives now.

        It can be set at any time, unless it follows a schedule.
        """
        return self._step_sizes.rate

    @langevin_learning_rate.setter
    def langevin_learning_rate(self, langevin_learning_rate: float) -> None:
        self._step_sizes.rate = langevin_learning_rate

    @property
    def momentum(self) -> keras.Variable:
        """Momentum of the inner velocity, a variable; an optimizer made with 0 keeps it at 0."""
        return self._step_sizes.momentum

    @momentum.setter
    def momentum(self, momentum: float) -> None:
        self._step_sizes.momentum = momentum

    def statistics(self) -> LangevinStatistics:
        """Return the norms of the last outer update.

        Raises:
            ValueError: The optimizer was not made with `statistics=True`.
        """
        if self._loop.statistics is None:
            raise ValueError(
                f"This {type(self).__name__} keeps no statistics: make it with `statistics=True`."
            )
        return self._loop.statistics.read()

    # ---- Keras' hooks -------------------------------------------------------------------------

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the slots: anchor, mean and velocity per weight, and the outer optimizer's."""
        if not self.built:
            self._step_sizes.build(list(variables))
        super().build(variables)

    def apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Take one step: one Langevin step, and in the last phase the outer update too."""
        statistics = self._loop.statistics
        if (
            len(grads) > 0
            and self._measures_scope
            and statistics is not None
            and not statistics.has_seen_loss
        ):
            raise ValueError(
                "AutoScope needs the loss, and no one has called `optimizer.scale_loss(loss)`: "
                "call it in your training loop; under mixed_float16 give `gamma` a number."
            )
        super().apply(grads, trainable_variables)

    def _takes_outer_step(self, evaluated: tf.Tensor) -> tf.Tensor:
        if self.langevin_steps == 0:
            return evaluated
        return evaluated & (self.langevin_phase >= self.langevin_steps - 1)

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """Scale the loss as Keras does; `AutoScope` learns the loss here."""
        if self._measures_scope and self._loop.statistics is not None:
            self._loop.statistics.see_loss(loss)
        return super().scale_loss(loss)

    # ---- the step -----------------------------------------------------------------------------

    def _step(
        self,
        distribution: tf.distribute.Strategy,
        grads_and_vars: Sequence[tuple[Any, tf.Variable]],
        learning_rate: tf.Tensor,
    ) -> None:
        """Take a Langevin step with all weights that have a gradient, and any outer update due."""
        gradients = {_keras.number_of(self, v): (g, v) for g, v in grads_and_vars}
        if self.langevin_steps == 0:
            self._step_of_wrapped(distribution, gradients, learning_rate)
            return
        self._swap.back_to_langevin(distribution)
        self._loop.release_frozen(distribution)
        phase = tf.identity(tf.convert_to_tensor(self._phase.value))
        factor = self._scope.factor() if self.gamma_in_outer_step else None
        evaluation = tf.cast(tf.convert_to_tensor(self.iterations), tf.int64)
        taken = self._loop.step(distribution, gradients, evaluation, self._scope.now())

        def update_outer() -> tf.Tensor:
            def update(i: int, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
                gradient = self._loop.end(i, variable, taken, factor)
                self._outer.step(i, variable, gradient, learning_rate)

            for i, weight in enumerate(self._loop.weights):
                if self._loop.anchors[i] is None:
                    continue
                variable = gradients[i][1] if i in gradients else as_tf(weight)
                move = on_devices(distribution, variable, update, i, learning_rate)
                # A weight without a gradient at this step may have had one in this inner loop. If
                # it stays it is averaged all the same, as Keras averages all weights.
                stay = on_devices(distribution, variable, self._outer.average, i)
                if i in gradients:
                    move()
                elif is_frozen(weight):
                    stay()
                else:
                    tf.cond(taken.members[i] > 0, move, stay)
            if self._loop.statistics is not None:
                self._loop.statistics.finish_outer_update(distribution, self._outer.iterations)
            self._outer.count(distribution)
            distribution.extended.update(
                self._phase.value, lambda v: v.assign(tf.zeros_like(v)), group=False
            )
            return tf.constant(0)

        def go_on() -> tf.Tensor:
            distribution.extended.update(
                self._phase.value, lambda v: v.assign_add(tf.ones_like(v)), group=False
            )
            return tf.constant(0)

        # A state that comes from an optimizer with more steps ends its inner loop at once.
        tf.cond(phase >= self.langevin_steps - 1, update_outer, go_on)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, serialised."""
        config = super().get_config()
        del config["learning_rate"]
        config.update(
            _serialization.arguments(self), ema_overwrite_frequency=self._ema_overwrite_every
        )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> LocalEntropy:
        """Rebuild the optimizer from `get_config`."""
        config = _serialization.deserialized(config, custom_objects)
        return super().from_config(config, custom_objects=custom_objects)
