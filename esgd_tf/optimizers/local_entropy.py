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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import keras
import tensorflow as tf

from esgd_tf import _checks, _keras
from esgd_tf.optimizers import _kernels, _nonfinite, _serialization
from esgd_tf.optimizers._inner_loop import InnerLoop, Rule
from esgd_tf.optimizers._options import KerasOptions
from esgd_tf.optimizers._outer_update import AnchorCoupling, OuterUpdate, checked
from esgd_tf.optimizers._scope import ActingScope, scope_schedule
from esgd_tf.optimizers._statistics import LangevinStatistics
from esgd_tf.optimizers._step_sizes import StepSizes
from esgd_tf.optimizers._swap import Where
from esgd_tf.optimizers._variables import as_tf, is_frozen, scalar
from esgd_tf.optimizers._warnings import Warnings, watch_evaluation
from esgd_tf.optimizers.scoping import AutoScope, ScopeSchedule

__all__ = ["LocalEntropy"]

watch_evaluation()

# Attributes that the traced step contains.
_FIXED = {
    "averaging", "gamma", "gamma_in_outer_step", "keeps_statistics", "langevin_steps", "nesterov",
    "noise", "outer_optimizer", "scoping", "seed", "skip_nonfinite", "weight_decay",
}  # fmt: skip


@keras.saving.register_keras_serializable(package="esgd_tf")
class LocalEntropy(keras.optimizers.Optimizer):
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
        _checks.keras_options(kwargs)
        outer_optimizer = checked(
            outer_optimizer, (LocalEntropy, keras.optimizers.LossScaleOptimizer)
        )
        # A callable, so that the base class makes no variable for a rate that is not its own.
        super().__init__(learning_rate=_rate_of_the_outer_optimizer, name=name, **kwargs)
        self.outer_optimizer = outer_optimizer
        self.langevin_steps = _checks.integer("langevin_steps", langevin_steps, at_least=0)
        self.scoping = _checks.real("scoping", scoping, at_least=0)
        schedule = scope_schedule(gamma, self.scoping)
        self.gamma = gamma if isinstance(gamma, ScopeSchedule) else float(gamma)
        self.noise = _checks.real("noise", noise, at_least=0)
        self.averaging = _checks.real("averaging", averaging, at_least=0, below=1)
        self.nesterov = _checks.boolean("nesterov", nesterov)
        self.weight_decay = _checks.real(
            "weight_decay", 0.0 if weight_decay is None else weight_decay, at_least=0
        )
        self.gamma_in_outer_step = _checks.boolean("gamma_in_outer_step", gamma_in_outer_step)
        self.seed = None if seed is None else _checks.integer("seed", seed, at_least=0, below=2**31)
        self.keeps_statistics = _checks.boolean("statistics", statistics)
        self.skip_nonfinite = _checks.boolean("skip_nonfinite", skip_nonfinite)

        # With an inner loop the base class would count gradient evaluations; this counts outer
        # updates. Without one, or without a step that may be left out, Keras averages by itself.
        self._ema_overwrite_every: int | None = kwargs.get("ema_overwrite_frequency")
        self._averages_in_step = self.use_ema and (self.langevin_steps > 0 or self.skip_nonfinite)
        if self._averages_in_step:
            self.ema_overwrite_frequency = None
        self._outer = OuterUpdate(
            self,
            outer_optimizer,
            learning_rate_multipliers,
            averages=self._averages_in_step,
            overwrite_every=self._ema_overwrite_every,
        )
        self._seed = scalar(
            self, "seed", "int64", _keras.new_seed() if self.seed is None else self.seed
        )
        self._skipped: keras.Variable = None
        if self.skip_nonfinite:
            self._skipped = scalar(self, "skipped", "int64")
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
        self._swap = self._loop.swap
        self._scope = ActingScope(
            self.gamma, schedule, self._step_sizes, self._outer.iterations, self._loop.statistics
        )
        self._measures_scope = isinstance(schedule, AutoScope)
        self._stored = _serialization.StoredState(self)
        self._warnings = Warnings(self)
        self._is_made = True

    # ---- what users read and set --------------------------------------------------------------

    @property
    def outer_iterations(self) -> keras.Variable:
        """Number of outer updates so far."""
        return self.outer_optimizer.iterations

    @property
    def langevin_phase(self) -> tf.Tensor:
        """Langevin steps taken since the last outer update: an int64 scalar in [0, L)."""
        return tf.convert_to_tensor(self._phase.value)

    @property
    def held(self) -> Where | None:
        """The weights in the model: "langevin", "anchor" or "mean"; None if these coincide.

        They coincide right after an outer update (phase 0). This works in eager mode only.
        """
        return self._swap.holds()

    @property
    def scope(self) -> tf.Tensor:
        """The scope that acts now, a float64 scalar: gamma(t), but at most 1 / eta'.

        t is the outer update that is under way. At 1 / eta' x' is held at the anchor.
        """
        return self._scope.acting()

    @property
    def coupling(self) -> AnchorCoupling | None:
        """An object that acts on the anchor around the outer optimizer's step; replicas set it."""
        return self._outer.coupling

    @coupling.setter
    def coupling(self, coupling: AnchorCoupling | None) -> None:
        self._outer.coupling = coupling

    @property
    def skipped(self) -> int:
        """Number of minibatches left out so far because their gradient was not finite."""
        return 0 if self._skipped is None else int(self._skipped.numpy())

    @property
    def learning_rate(self) -> Any:
        """The outer optimizer's learning rate; its schedule counts outer updates."""
        return self.outer_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.outer_optimizer.learning_rate = learning_rate

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

    @property
    def variables(self) -> list[keras.Variable]:
        """All state: this optimizer's variables, then the outer optimizer's."""
        return [*self._variables, *self.outer_optimizer.variables]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all state, in the order of `variables`.

        Args:
            weights: sequence of arrays of the shapes of `variables`. The new state.

        Raises:
            ValueError: The optimizer is not built, or the arrays do not fit.
        """
        _serialization.set_weights(self, weights)
        self._swap.may_be_elsewhere = True

    def anchors(self) -> list[tf.Tensor]:
        """Return the anchor of every weight, wherever it is kept at the moment."""
        return self._swap.anchors()

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
        if self.built:
            return
        variables = list(variables)
        self._outer.find_factors(variables)
        self._step_sizes.build(variables)
        super().build(variables)
        self._outer.build(variables)
        decays = [_keras.uses_weight_decay(self, variable) for variable in variables]
        self._loop.build(variables, [self.weight_decay if decay else 0.0 for decay in decays])
        with tf.init_scope():
            self._stored.restore()

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """Scale the loss as Keras does; `AutoScope` learns the loss here."""
        if self._measures_scope and self._loop.statistics is not None:
            self._loop.statistics.see_loss(loss)
        return super().scale_loss(loss)

    def apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Take one step: one Langevin step, and in the last phase the outer update too."""
        if len(grads) == 0:
            return
        statistics = self._loop.statistics
        if self._measures_scope and statistics is not None and not statistics.has_seen_loss:
            raise ValueError(
                "AutoScope needs the loss, and no one has called `optimizer.scale_loss(loss)`: "
                "call it in your training loop; under mixed_float16 give `gamma` a number."
            )
        if not self.built:
            if trainable_variables is None:
                raise ValueError(
                    f"{type(self).__name__} is not built: pass the variables to the first `apply`, "
                    "or call `build(variables)` before it."
                )
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        grads = [_kernels.fenced(g) for g in grads]
        # At the end of a dataset of unknown length `fit` starts a step for which there is no
        # minibatch. Without this, operations that need no gradient would run all the same.
        with tf.control_dependencies([g for g in grads if g is not None][-1:]):
            self._apply(grads, trainable_variables)

    def _apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None
    ) -> None:
        # These are read before the base class advances its counter of minibatches.
        evaluated: tf.Tensor | bool = True
        if self.gradient_accumulation_steps:
            k = self.gradient_accumulation_steps
            evaluated = tf.equal(tf.cast(_keras.counter_of(self), tf.int64) % k, k - 1)
        last = tf.constant(evaluated) if isinstance(evaluated, bool) else evaluated
        if self.langevin_steps > 0:
            last &= self.langevin_phase >= self.langevin_steps - 1
        scalars = self._outer.advance_scalars(last)
        skipped = None if self._skipped is None else tf.identity(self._skipped.value)
        super().apply(grads, trainable_variables)
        if skipped is not None:
            taken = tf.equal(skipped, self._skipped.value)
            evaluated &= taken
            # The base class has counted the minibatch.
            _nonfinite.undo_counting(
                taken, scalars, _keras.counter_of(self), self.gradient_accumulation_steps or 1
            )
        if self.langevin_steps > 0:
            # This comes after the constraints, which the base class applies last.
            _keras.outside_replicas(
                self, self._loop.probes.remember, None if evaluated is True else evaluated
            )

    def _clip_gradients(self, grads: Sequence[Any]) -> list[Any]:
        clipped = super()._clip_gradients(grads)
        if self.skip_nonfinite and self.clipvalue:
            # An infinity would be clipped to a number, and the minibatch taken.
            clipped = _nonfinite.keep_infinities(grads, clipped)
        return clipped

    def _apply_weight_decay(self, variables: Sequence[keras.Variable]) -> None:
        # Keras' decoupled decay would run at every inner step with the outer rate. Here
        # `weight_decay` is the L2 term of the gradient, added in the inner loop.
        del variables

    def _update_model_variables_moving_average(self, variables: Sequence[keras.Variable]) -> None:
        # With an inner loop Keras would average x' at every step; the anchor is averaged in
        # the outer update.
        if not self._averages_in_step:
            super()._update_model_variables_moving_average(variables)

    def _distributed_tf_update_step(
        self,
        distribution: tf.distribute.Strategy,
        grads_and_vars: Sequence[tuple[Any, tf.Variable]],
        learning_rate: tf.Tensor,
    ) -> None:
        """Take the step of this phase, for all weights; Keras calls it outside any replica.

        The phases branch here: around `apply`, a conditional fails under tf.distribute.
        """
        if self._skipped is None:
            self._step(distribution, grads_and_vars, learning_rate)
            return
        _nonfinite.step_or_skip(
            distribution,
            [gradient for gradient, _ in grads_and_vars],
            self._skipped.value,
            lambda: self._step(distribution, grads_and_vars, learning_rate),
        )

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
            self._step_without_inner_loop(distribution, gradients, learning_rate)
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
                move = _on_devices(distribution, variable, update, i, learning_rate)
                # A weight without a gradient at this step may have had one in this inner loop. If
                # it stays it is averaged all the same, as Keras averages all weights.
                stay = _on_devices(distribution, variable, self._outer.average, i)
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

    def _step_without_inner_loop(
        self,
        distribution: tf.distribute.Strategy,
        gradients: Mapping[int, tuple[Any, tf.Variable]],
        learning_rate: tf.Tensor,
    ) -> None:
        """L = 0: take the outer optimizer's step, given the minibatch gradient as it is."""
        dense = self.weight_decay > 0 or self.coupling is not None

        def step(i: int, variable: tf.Variable, gradient: Any, learning_rate: tf.Tensor) -> None:
            if dense:
                gradient = _kernels.with_l2(gradient, variable, self._loop.l2[i])
            self._outer.step(i, variable, gradient, learning_rate)

        for i, (gradient, variable) in gradients.items():
            _on_devices(distribution, variable, step, i, gradient, learning_rate)()
        self._outer.count(distribution)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable alone; `apply` is the door for a whole model."""
        if len(self._loop.weights) > 1:
            raise ValueError(
                f"{type(self).__name__} moves all weights of an inner loop together: call `apply` "
                "with all gradients instead of `update_step` for each."
            )
        self._distributed_tf_update_step(
            _keras.strategy_of(self), [(gradient, variable)], learning_rate
        )

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Leave the model at the anchor (or at its average) at the end of `fit`."""
        self._swap.place("anchor")
        self._warnings.ending()
        self._warnings.scoping()
        self.outer_optimizer.finalize_variable_values(var_list)
        # Before the first outer update there is no average yet.
        if not self._averages_in_step or int(self.outer_iterations.numpy()) > 0:
            # `var_list` would lack the weights that have been frozen since.
            super().finalize_variable_values(self._loop.weights)

    def save_own_variables(self, store: Any) -> None:
        """Save this optimizer's state; Keras visits the outer optimizer by itself."""
        self._warnings.saving()
        self._stored.save(store)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` saved, at once or when `build` has made the slots.

        A state that does not fit is ignored, with a warning.
        """
        self._stored.load(store)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and self.__dict__.get("_is_made"):
            raise AttributeError(
                f"`{name}` cannot be changed: a training step that is traced already would not see "
                "it. Make a new optimizer; `learning_rate`, `langevin_learning_rate` and "
                "`momentum` can be set."
            )
        super().__setattr__(name, value)

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


def _rate_of_the_outer_optimizer() -> float:
    """Stand in for a learning rate: `LocalEntropy.learning_rate` asks the outer optimizer."""
    raise AssertionError("LocalEntropy has no learning rate of its own")


def _on_devices(
    distribution: tf.distribute.Strategy,
    variable: tf.Variable,
    update: Callable[..., None],
    i: int,
    *arguments: Any,
) -> Callable[[], tf.Tensor]:
    """Return a function that updates weight i on every device, and returns what `tf.cond` wants."""

    def on_devices() -> tf.Tensor:
        distribution.extended.update(
            variable, lambda v, *given: update(i, v, *given), args=arguments, group=False
        )
        return tf.constant(0)

    return on_devices
