"""LocalEntropy: any Keras optimizer, made to descend the local entropy instead of the loss.

The equations stand in `langevin.py`. This module gives them the shape of a Keras optimizer. One
Keras step is one gradient evaluation on one minibatch; `langevin_steps` of them make one outer
update. Step number n (`iterations`) has the phase n mod L:

    phase 0      anchor = mean = x' (= x) and velocity = 0
    every phase  a Langevin step
    phase L-1    x' = anchor, and the outer optimizer's step with x - mean

so `compile` and `fit` need to know nothing about the inner loop, and no gradient is spent on
anything but a Langevin step. Between two outer updates the model's variables hold x'; see
`esgd_tf.evaluate_at` for evaluating and saving at the anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from esgd_tf.optimizers import _checks, _in_place
from esgd_tf.optimizers._statistics import LangevinStatistics, StatisticsVariables
from esgd_tf.optimizers._swap import WeightSwap
from esgd_tf.optimizers.scoping import AutoScope, ExponentialScope, ScopeSchedule

__all__ = ["LocalEntropy"]

# Keras reduces the gradients over the devices, then calls this method once, outside any replica.
# The phases branch there: around `apply`, a conditional fails under tf.distribute (merge_call).
_HOOK = "_distributed_tf_update_step"
if not hasattr(keras.optimizers.Optimizer, _HOOK):
    raise ImportError(
        f"esgd_tf needs Keras 3.15 or a release like it on the TensorFlow backend: Keras "
        f"{keras.__version__} on the {keras.backend.backend()!r} backend has no Optimizer.{_HOOK}. "
        "Set KERAS_BACKEND=tensorflow, or install keras 3.15."
    )


@keras.saving.register_keras_serializable(package="esgd_tf")
class LocalEntropy(keras.optimizers.Optimizer):
    """Local-entropy descent around any Keras optimizer.

    At outer update t = 1, 2, ... with x' = mean = x and v = 0 at its start, `langevin_steps` times

        q    = ∇f(x'; minibatch) + weight_decay x'
        v    = momentum v + q
        s    = q + momentum v  if nesterov and momentum else  v
        x'   = x' - eta' (s + gamma(t) (x' - x)) + sqrt(2 eta') noise N(0, I)
        mean = averaging mean + (1 - averaging) x'

    and then the outer optimizer takes a step at x with the gradient x - mean.

    Source: Chaudhari et al., "Entropy-SGD: biasing gradient descent into wide valleys", ICLR 2017,
    arXiv 1611.01838, Algorithm 1, with the conventions of the authors' released code.

    Example:
        >>> optimizer = LocalEntropy(keras.optimizers.Lion(1e-3), langevin_steps=10)
        >>> model.compile(optimizer=optimizer, loss="mse")

    Note:
        * Between two outer updates the model's variables hold x', not the anchor x. Use
          `esgd_tf.evaluate_at` or `esgd_tf.AnchorCallback`. At the end of `fit` the model is left
          at the anchor; the next `fit` goes on with the inner loop where it stood (exactly so with
          `AnchorCallback`; without, its first gradient is that at the anchor).
        * `langevin_steps=0` is the outer optimizer itself, bit for bit.
        * The outer learning rate and its schedules count outer updates, not minibatches: a schedule
          for 391 minibatches an epoch must be divided by `langevin_steps`.
        * Momentum amplifies the gradient by 1 / (1 - momentum) but not the pull toward the anchor,
          as in the released code: the scope that acts is gamma (1 - momentum).
        * Gradient clipping acts on the minibatch gradient ∇f. `use_ema` averages the anchor, once
          per outer update. `gradient_accumulation_steps` minibatches make one gradient evaluation.
        * Sparse gradients become dense: the proximal term and the noise move every weight. Weights
          without a gradient stay where they are.

    Args:
        outer_optimizer: A Keras optimizer that is not built yet, or its name. Its own clipping by
            norm or value and its decoupled weight decay act on the outer step.
        langevin_steps: L, gradient evaluations per outer update, >= 0.
        langevin_learning_rate: eta', the inner step size, > 0. Constant: the paper found annealing
            it together with the outer one harmful.
        gamma: Scope gamma0 >= 0, for gamma(t) = gamma (1 + scoping)^t, or a schedule of
            `esgd_tf.optimizers.scoping`.
        scoping: Relative growth of gamma per outer update, >= 0. Not used if `gamma` is a schedule.
        noise: epsilon >= 0; the term added to x' is sqrt(2 eta') noise N(0, I), the scale of the
            released code. The paper prints sqrt(eta') noise: divide its value by sqrt(2).
        averaging: alpha, the weight of the OLD mean, in [0, 1).
        momentum: Of the inner velocity, in [0, 1).
        nesterov: Whether the inner step looks ahead along the velocity.
        weight_decay: L2 coefficient >= 0, added to the gradient at x' before the momentum (not
            Keras' decoupled decay); `exclude_from_weight_decay` is honoured.
        gamma_in_outer_step: Whether x - mean is multiplied by gamma(t), as Algorithm 1 prints.
        seed: Of the noise, in [0, 2^31); None draws one from Keras' global seed. It is kept in an
            optimizer variable, so that a restored run continues its own noise.
        statistics: Whether to keep the norms of the last outer update for `statistics()`.
        skip_nonfinite: Whether a minibatch whose gradient, summed over all devices, has a NaN, an
            infinity, or a squared norm that overflows is left out: weights, slots and counters
            stay as they are, and the next minibatch takes the step. `skipped` counts them. Costs
            a pass over the gradient. (`esgd_tf.training.skip_nonfinite` also undoes what such a
            minibatch does to BatchNormalization statistics and metrics.)
        name: Name of the optimizer.
        **kwargs: Arguments of every Keras optimizer: `clipnorm`, `clipvalue`, `global_clipnorm`,
            `use_ema`, `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`,
            `gradient_accumulation_steps`.

    Raises:
        ValueError: An argument is out of range, or the outer optimizer has an option that must be
            set on this optimizer instead.
    """

    def __init__(
        self,
        outer_optimizer: keras.optimizers.Optimizer | str,
        langevin_steps: int = 20,
        langevin_learning_rate: float = 0.1,
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
        name: str = "local_entropy",
        **kwargs: Any,
    ) -> None:
        if "learning_rate" in kwargs:
            raise ValueError(
                "`learning_rate` belongs to the outer optimizer; the inner step size is "
                "`langevin_learning_rate`."
            )
        outer_optimizer = _checked_outer_optimizer(outer_optimizer)
        # A callable, so that the base class makes no variable for a rate that is not its own.
        super().__init__(learning_rate=_rate_of_the_outer_optimizer, name=name, **kwargs)
        self.outer_optimizer = outer_optimizer
        self.langevin_steps = _checks.integer("langevin_steps", langevin_steps, at_least=0)
        self.langevin_learning_rate = _checks.real(
            "langevin_learning_rate", langevin_learning_rate, above=0
        )
        self.scoping = _checks.real("scoping", scoping, at_least=0)
        if isinstance(gamma, ScopeSchedule):
            self._schedule, self._pulls = gamma, True
        else:
            gamma = _checks.real("gamma", gamma, at_least=0)
            # With the number 0 there is no pull toward the anchor to compute.
            self._schedule, self._pulls = ExponentialScope(gamma, self.scoping), gamma > 0
        self.gamma = gamma
        self.noise = _checks.real("noise", noise, at_least=0)
        self.averaging = _checks.real("averaging", averaging, at_least=0, below=1)
        self.momentum = _checks.real("momentum", momentum, at_least=0, below=1)
        self.nesterov = bool(nesterov)
        self.weight_decay = _checks.real("weight_decay", weight_decay or 0.0, at_least=0)
        self.gamma_in_outer_step = bool(gamma_in_outer_step)
        self.seed = None if seed is None else _checks.integer("seed", seed, at_least=0, below=2**31)
        self.keeps_statistics = bool(statistics)
        self.skip_nonfinite = bool(skip_nonfinite)

        # The base class would count gradient evaluations; `_average_anchor` counts outer updates.
        self._ema_overwrite_every: int | None = kwargs.get("ema_overwrite_frequency")
        self.ema_overwrite_frequency = None
        self._seed = self.add_variable(
            shape=(),
            initializer=keras.initializers.Constant(_new_seed() if seed is None else self.seed),
            dtype="int64",
            aggregation="only_first_replica",
            name="seed",
        )
        # Any: Keras has no types, and every use below knows whether it is there.
        self._skipped: Any = None
        if self.skip_nonfinite:
            self._skipped = self.add_variable(
                shape=(),
                initializer="zeros",
                dtype="int64",
                aggregation="only_first_replica",
                name="skipped",
            )
        self._swap = WeightSwap(self)
        needs_statistics = self.keeps_statistics or isinstance(self._schedule, AutoScope)
        self._statistics: Any = StatisticsVariables(self) if needs_statistics else None
        self._anchors: list[keras.Variable | None] = []
        self._means: list[keras.Variable | None] = []
        self._velocities: list[keras.Variable | None] = []

    # ---- what users read ----------------------------------------------------------------------

    @property
    def outer_iterations(self) -> keras.Variable:
        """Number of outer updates so far."""
        return self.outer_optimizer.iterations

    @property
    def langevin_phase(self) -> tf.Tensor:
        """Langevin steps taken since the last outer update: an int64 scalar in [0, L)."""
        if self.langevin_steps == 0:
            return tf.constant(0, tf.int64)
        return tf.cast(self.iterations, tf.int64) % self.langevin_steps

    @property
    def scope(self) -> tf.Tensor:
        """gamma(t) now in force, a float64 scalar; t is the outer update that is under way."""
        t = tf.cast(self.outer_iterations, tf.float64) + 1.0
        if isinstance(self._schedule, AutoScope):
            return self._schedule(t, self._statistics.gamma_zero)
        return self._schedule(t)

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
    def variables(self) -> list[keras.Variable]:
        """All state: this optimizer's variables, then the outer optimizer's."""
        return [*self._variables, *self.outer_optimizer.variables]

    def statistics(self) -> LangevinStatistics:
        """Return the norms of the last outer update.

        Raises:
            ValueError: The optimizer was not made with `statistics=True`.
        """
        if self._statistics is None:
            raise ValueError(
                f"This {type(self).__name__} keeps no statistics: make it with `statistics=True`."
            )
        return self._statistics.read()

    # ---- Keras' hooks -------------------------------------------------------------------------

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the slots: anchor, mean and velocity per weight, and the outer optimizer's."""
        if self.built:
            return
        variables = list(variables)
        super().build(variables)
        # Some optimizers copy the weights into a slot here. Outside init_scope the copy would be
        # lost with the trace that `fit` builds optimizers in.
        with tf.init_scope():
            self.outer_optimizer.build(variables)
        if self.langevin_steps > 0:
            self._anchors, self._means = self.add_optimizer_variables(variables, ["anchor", "mean"])
            if self.momentum > 0:
                self._velocities = self.add_optimizer_variables(variables, "velocity")
            self._swap.build(len(variables))

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """Scale the loss as Keras does; `AutoScope` learns the loss here."""
        if isinstance(self._schedule, AutoScope):
            self._statistics.see_loss(loss)
        return super().scale_loss(loss)

    def apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Take one step: one Langevin step, and in the last phase the outer update too."""
        if len(grads) == 0:
            return
        if isinstance(self._schedule, AutoScope) and not self._statistics.has_seen_loss:
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
        if self.langevin_steps > 0:
            # Read before the base class advances `iterations`.
            last = tf.equal(self.langevin_phase, self.langevin_steps - 1)
            if self.gradient_accumulation_steps:
                k = self.gradient_accumulation_steps
                last &= tf.equal(tf.cast(self._iterations, tf.int64) % k, k - 1)
        else:
            last = tf.constant(True)
        scalars = self._advance_scalars_of_the_outer_optimizer(last)
        skipped = None if self._skipped is None else tf.identity(self._skipped.value)
        super().apply([_in_place.fenced(g) for g in grads], trainable_variables)
        if skipped is not None:
            taken = tf.equal(skipped, self._skipped.value)
            last &= taken
            for variable, old in scalars:
                variable.assign(tf.where(taken, variable.value, old))
            # The base class has counted the minibatch. An evaluation made of several starts over.
            back = tf.cast(self.gradient_accumulation_steps or 1, self._iterations.dtype)
            self._iterations.assign_sub(tf.where(taken, tf.zeros_like(back), back))
        outer_iterations = self.outer_optimizer._iterations
        outer_iterations.assign_add(tf.cast(last, outer_iterations.dtype))

    def _advance_scalars_of_the_outer_optimizer(
        self, last: tf.Tensor
    ) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Let optimizers that keep a running product (Nadam) advance it, per outer update.

        Returns:
            What was advanced, with the values before.
        """
        outer = self.outer_optimizer
        hook = "_backend_update_step"
        if getattr(type(outer), hook) is getattr(keras.optimizers.Optimizer, hook):
            return []
        own = (outer._iterations, outer._learning_rate)
        scalars = [
            v for v in outer.variables if len(v.shape) == 0 and not any(v is other for other in own)
        ]
        before = [tf.identity(tf.convert_to_tensor(v.value)) for v in scalars]
        outer._backend_update_step([], [], outer.learning_rate)
        for variable, old in zip(scalars, before, strict=True):
            variable.assign(tf.where(last, variable.value, old))
        return list(zip(scalars, before, strict=True))

    def _apply_weight_decay(self, variables: Sequence[keras.Variable]) -> None:
        # Keras' decoupled decay would run at every inner step with the outer rate. Here
        # `weight_decay` is the L2 term of the gradient, added in `_langevin_step`.
        del variables

    def _update_model_variables_moving_average(self, variables: Sequence[keras.Variable]) -> None:
        # Keras would average x' at every step; the anchor is averaged in `_outer_update`.
        del variables

    def _distributed_tf_update_step(
        self, distribution: Any, grads_and_vars: Sequence[tuple[Any, Any]], learning_rate: Any
    ) -> None:
        """Take the step of this phase, for all weights; runs outside any replica (see `_HOOK`)."""
        if self._skipped is None:
            self._step(distribution, grads_and_vars, learning_rate)
            return

        def step() -> tf.Tensor:
            self._step(distribution, grads_and_vars, learning_rate)
            return tf.constant(0)  # a branch must return something

        def skip() -> tf.Tensor:
            distribution.extended.update(
                self._skipped.value, lambda v: v.assign_add(1), group=False
            )
            return tf.constant(0)

        # Summed over the devices, the gradient is not finite on any if it was not on one.
        gradients = [distribution.experimental_local_results(g)[0] for g, _ in grads_and_vars]
        tf.cond(_finite(gradients), step, skip)

    def _step(
        self, distribution: Any, grads_and_vars: Sequence[tuple[Any, Any]], learning_rate: Any
    ) -> None:
        """Take the step of this phase."""
        if self.langevin_steps == 0:
            for gradient, variable in grads_and_vars:
                distribution.extended.update(
                    variable,
                    self._step_of_the_outer_optimizer,
                    args=(gradient, learning_rate),
                    group=False,
                )
            return

        taking_part = {self._get_variable_index(variable) for _, variable in grads_and_vars}
        absent = [
            variable
            for i, variable in enumerate(self._trainable_variables)
            if i not in taking_part and self._anchors[i] is not None
        ]

        def start() -> tf.Tensor:
            variables = [v for _, v in grads_and_vars] + [_tf_variable(v) for v in absent]
            for variable in variables:
                distribution.extended.update(variable, self._start_inner_loop, group=False)
            return tf.constant(0)

        def finish() -> tf.Tensor:
            for _, variable in grads_and_vars:
                distribution.extended.update(
                    variable,
                    lambda v, rate: self._outer_update(v, seen[id(v)], rate, scope),
                    args=(learning_rate,),
                    group=False,
                )
            if self._statistics is not None:
                self._statistics.finish_outer_update(distribution, self.outer_iterations)
            return tf.constant(0)

        def nothing() -> tf.Tensor:
            return tf.constant(0)

        phase, scope = self.langevin_phase, self.scope
        constants = self._step_constants(scope, {v.dtype for _, v in grads_and_vars})
        self._swap.back_to_langevin(distribution)
        tf.cond(tf.equal(phase, 0), start, nothing)
        # What the statistics of an outer update need of this step, by the variable on each device.
        seen: dict[int, tuple[tf.Tensor, tf.Tensor]] = {}
        for gradient, variable in grads_and_vars:
            distribution.extended.update(
                variable,
                lambda v, g: seen.update({id(v): self._langevin_update(v, g, constants)}),
                args=(gradient,),
                group=False,
            )
        if self._statistics is not None:
            self._statistics.finish_step(distribution)
        tf.cond(tf.equal(phase, self.langevin_steps - 1), finish, nothing)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable alone; `apply` is the door for a whole model."""
        self._distributed_tf_update_step(
            self._distribution_strategy, [(gradient, variable)], learning_rate
        )

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Leave the model at the anchor (or at its average) at the end of `fit`."""
        self._swap.place("anchor")
        super().finalize_variable_values(var_list)

    def save_own_variables(self, store: Any) -> None:
        """Save this optimizer's state; Keras visits the outer optimizer by itself."""
        for i, variable in enumerate(self._variables):
            store[str(i)] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` saved.

        Raises:
            ValueError: The stored state is that of another configuration.
        """
        if len(store.keys()) != len(self._variables):
            raise ValueError(
                f"The saved state of optimizer {self.name!r} has {len(store.keys())} variables and "
                f"this one has {len(self._variables)}: build it on the same model, with the same "
                "momentum, use_ema, statistics, skip_nonfinite and kind of scope, before loading."
            )
        for i, variable in enumerate(self._variables):
            variable.assign(store[str(i)])

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, serialised."""
        config = super().get_config()
        del config["learning_rate"]
        gamma = self.gamma
        if isinstance(gamma, ScopeSchedule):
            gamma = keras.saving.serialize_keras_object(gamma)
        config.update(
            outer_optimizer=keras.saving.serialize_keras_object(self.outer_optimizer),
            langevin_steps=self.langevin_steps,
            langevin_learning_rate=self.langevin_learning_rate,
            gamma=gamma,
            scoping=self.scoping,
            noise=self.noise,
            averaging=self.averaging,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            gamma_in_outer_step=self.gamma_in_outer_step,
            seed=self.seed,
            statistics=self.keeps_statistics,
            skip_nonfinite=self.skip_nonfinite,
            ema_overwrite_frequency=self._ema_overwrite_every,
        )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> LocalEntropy:
        """Rebuild the optimizer from `get_config`."""
        config = dict(config)
        for key in ("outer_optimizer", "gamma"):
            if isinstance(config.get(key), dict):
                config[key] = keras.saving.deserialize_keras_object(
                    config[key], custom_objects=custom_objects
                )
        return super().from_config(config, custom_objects=custom_objects)

    # ---- the equations, one variable at a time ------------------------------------------------

    def _start_inner_loop(self, variable: tf.Variable) -> None:
        """Set x' = mean = x and v = 0."""
        i = self._get_variable_index(variable)
        self._anchors[i].value.assign(variable)
        self._means[i].value.assign(variable)
        if self._velocities:
            self._velocities[i].value.assign(tf.zeros_like(variable))

    def _step_constants(self, scope: tf.Tensor, dtypes: set[tf.DType]) -> dict[str, Any]:
        """Make the scalars of a step once per dtype: per weight they would slow tracing down."""
        step = tf.cast(tf.convert_to_tensor(self.iterations), tf.int64)
        rate = self.langevin_learning_rate
        values: dict[str, Any] = {
            "rate": rate,
            "momentum": self.momentum,
            "pull": rate * scope,
            "noise": -self._displacement_scale,
            "rest": 1.0 - self.averaging,
        }

        def in_dtype(value: Any, dtype: tf.DType) -> tf.Tensor:
            # `tf.cast` would round a Python number through float32.
            return tf.cast(value, dtype) if tf.is_tensor(value) else tf.constant(value, dtype)

        constants: dict[str, Any] = {
            name: {dtype.name: in_dtype(value, dtype) for dtype in dtypes}
            for name, value in values.items()
        }
        constants["key"] = _in_place.noise_key(self._seed.value, step) if self.noise > 0 else None
        return constants

    @property
    def _displacement_scale(self) -> float:
        """Standard deviation of the thermal term: sqrt(2 eta') noise."""
        return float((2.0 * self.langevin_learning_rate) ** 0.5 * self.noise)

    def _langevin_update(
        self, variable: tf.Variable, gradient: Any, constants: dict[str, Any]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Take one Langevin step; return its gradient and its N(0, I)."""
        i, dtype = self._get_variable_index(variable), variable.dtype
        constant = {name: constants[name][dtype.name] for name in constants if name != "key"}
        anchor, mean = self._anchors[i].value, self._means[i].value

        gradient = self._decayed(gradient, variable)
        needs_pull = self._pulls or self._statistics is not None
        pull = tf.subtract(variable, anchor) if needs_pull else None
        _in_place.descend(
            variable,
            self._velocities[i].value if self._velocities else None,
            gradient,
            learning_rate=constant["rate"],
            momentum=constant["momentum"],
            nesterov=self.nesterov,
            after=[pull] if needs_pull else [],
        )
        if self._pulls:
            _in_place.subtract_scaled(variable, constant["pull"], pull)
        normal = tf.zeros([], dtype)
        if self.noise > 0:
            # Not before the gradient is there: drawn at the step's start, the noise of all weights
            # would lie in memory beside the activations.
            with tf.control_dependencies([gradient]):
                normal = _in_place.standard_normal(variable.shape, dtype, constants["key"], i)
            _in_place.subtract_scaled(variable, constant["noise"], normal)
        _in_place.average(mean, variable, self.averaging, constant["rest"])
        if self._statistics is not None:
            self._statistics.see_step(pull)
        return gradient, normal

    def _outer_update(
        self,
        variable: tf.Variable,
        seen: tuple[tf.Tensor, tf.Tensor],
        learning_rate: Any,
        scope: tf.Tensor,
    ) -> None:
        """Put the variable back to the anchor and let the outer optimizer step with x - mean."""
        i = self._get_variable_index(variable)
        anchor, mean = self._anchors[i].value, self._means[i].value
        difference = tf.subtract(anchor, mean)
        if self._statistics is not None:
            self._statistics.see_outer_update(
                *seen, difference, tf.subtract(variable, anchor), self._displacement_scale
            )
        if self.gamma_in_outer_step:
            if isinstance(self._schedule, AutoScope):
                # gamma is 0 until it is measured; a factor of 0 would keep the distance, and with
                # it the measurement, at 0 for good.
                scope = tf.where(scope > 0, scope, tf.ones_like(scope))
            difference = tf.cast(scope, difference.dtype) * difference
        variable.assign(anchor)
        self._decay_and_step(variable, difference, learning_rate)
        if self.use_ema:
            self._average_anchor(variable)

    def _step_of_the_outer_optimizer(
        self, variable: tf.Variable, gradient: Any, learning_rate: Any
    ) -> None:
        """L = 0: the outer optimizer, given the minibatch gradient as it is."""
        if self.weight_decay > 0:
            gradient = self._decayed(gradient, variable)
        self._decay_and_step(variable, gradient, learning_rate)
        if self.use_ema:
            self._average_anchor(variable)

    def _decay_and_step(self, variable: tf.Variable, gradient: Any, learning_rate: Any) -> None:
        """Do what Keras' `apply` does around `update_step`: clip, decay, step."""
        outer = self.outer_optimizer
        (gradient,) = outer._clip_gradients([gradient])
        keras_variable = self._trainable_variables[self._get_variable_index(variable)]
        weight_decay = outer.weight_decay
        if isinstance(outer, keras.optimizers.Muon) and outer._should_use_adamw(keras_variable):
            weight_decay = outer.adam_weight_decay
        if weight_decay is not None and outer._use_weight_decay(keras_variable):
            # The cast rounds a Python number through float32, as Keras does: L = 0 is exact.
            decay = tf.cast(weight_decay, variable.dtype)
            variable.assign_sub(variable * decay * tf.cast(learning_rate, variable.dtype))
        outer.update_step(gradient, variable, learning_rate)

    def _decayed(self, gradient: Any, variable: tf.Variable) -> tf.Tensor:
        """Return q = gradient + weight_decay x', dense and in the variable's dtype."""
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        keras_variable = self._trainable_variables[self._get_variable_index(variable)]
        if self.weight_decay > 0 and self._use_weight_decay(keras_variable):
            gradient += tf.constant(self.weight_decay, variable.dtype) * variable
        return gradient

    def _average_anchor(self, variable: tf.Variable) -> None:
        """Average the anchor once per outer update, as Keras' `use_ema` does per step."""
        average = self._model_variables_moving_average[self._get_variable_index(variable)].value
        t = tf.cast(self.outer_iterations, tf.int64)
        # As in Keras, the first value is taken whole.
        momentum = tf.where(t > 0, tf.constant(self.ema_momentum, variable.dtype), 0)
        average.assign(momentum * average + (1 - momentum) * variable)
        if self._ema_overwrite_every:
            due = tf.equal((t + 1) % self._ema_overwrite_every, 0)
            variable.assign(tf.where(due, average, variable))


def _rate_of_the_outer_optimizer() -> float:
    """Stand in for a learning rate: `LocalEntropy.learning_rate` asks the outer optimizer."""
    raise AssertionError("LocalEntropy has no learning rate of its own")


def _finite(gradients: Sequence[Any]) -> tf.Tensor:
    """Whether the squared norm of all gradients together is finite: one pass over each."""
    squares = []
    for gradient in gradients:
        dense = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        # Half precision would overflow at once.
        wide = tf.cast(dense, tf.float32) if dense.dtype.size < 4 else dense
        squares.append(tf.cast(tf.nn.l2_loss(wide), tf.float64))
    return tf.math.is_finite(tf.add_n(squares))


def _new_seed() -> int:
    return keras.src.random.seed_generator.make_default_seed()


def _tf_variable(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _checked_outer_optimizer(optimizer: Any) -> keras.optimizers.Optimizer:
    """Return the outer optimizer, or raise a ValueError that says what to do instead."""
    optimizer = keras.optimizers.get(optimizer)
    kind = type(optimizer).__name__
    wrappers = (LocalEntropy, keras.optimizers.LossScaleOptimizer)
    if isinstance(optimizer, wrappers) or hasattr(optimizer, "optimizers"):
        raise ValueError(
            f"The outer optimizer cannot be a {kind}, which wraps other optimizers: wrap "
            "LocalEntropy in it instead, or give the plain optimizer."
        )
    if optimizer.built:
        raise ValueError(
            f"The outer optimizer ({kind}) is built already, on other state: give a new one."
        )
    for option in ("global_clipnorm", "gradient_accumulation_steps", "loss_scale_factor"):
        if getattr(optimizer, option):
            raise ValueError(
                f"`{option}` has no effect on an outer optimizer ({kind}): set it on "
                "LocalEntropy, where it acts on the minibatch gradients."
            )
    if optimizer.use_ema:
        raise ValueError(
            f"`use_ema` has no effect on an outer optimizer ({kind}): set it on LocalEntropy, "
            "which averages the anchor once per outer update."
        )
    return optimizer
