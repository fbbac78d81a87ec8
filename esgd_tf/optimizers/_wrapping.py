"""A Keras optimizer around another one, which may evaluate at other weights than it trains.

`LocalEntropy` and its rivals (`esgd_tf.baselines`) are such optimizers. What they have in common
stands here: the wrapped optimizer and all that must happen around its step; weight decay as a term
of the gradient; minibatches that are skipped because their gradient is not finite; moving averages;
saving and loading; and the exchange of the weights that walk with their anchors (`_walk.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf

from esgd_tf import _checks, _keras
from esgd_tf.optimizers import _kernels, _nonfinite, _serialization
from esgd_tf.optimizers._outer_update import AnchorCoupling, OuterUpdate, checked
from esgd_tf.optimizers._swap import Where
from esgd_tf.optimizers._variables import scalar
from esgd_tf.optimizers._walk import Walk
from esgd_tf.optimizers._warnings import Warnings, watch_evaluation

__all__ = ["WrappingOptimizer", "on_devices"]

watch_evaluation()


class WrappingOptimizer(keras.optimizers.Optimizer):
    """An optimizer around another one: the base of `LocalEntropy` and of its rivals.

    A subclass calls this constructor, makes its variables, and ends its own constructor with
    `_complete`. By itself this class takes the wrapped optimizer's step, bit for bit.

    Args:
        outer_optimizer: keras.optimizers.Optimizer that is not built yet, or str. The wrapped
            optimizer, or its name.
        role: str. What the wrapped optimizer is called in errors. Defaults to "outer optimizer".
        weight_decay: float >= 0. L2 coefficient, added to the gradient. None means 0. Defaults to
            0.0.
        skip_nonfinite: bool. Whether a minibatch whose gradient is not finite is left out. Defaults
            to False.
        learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on the step
            size of the weights in whose paths the expressions are found. Defaults to None, which
            means 1 everywhere.
        averages_in_step: bool. Whether `use_ema` averages the weights after the wrapped optimizer's
            steps only, and not after every minibatch as in Keras. Defaults to False.
        name: str. Name of the optimizer. Defaults to "wrapping_optimizer".
        **kwargs: Arguments of every Keras optimizer but `learning_rate`.

    Raises:
        ValueError: An argument is out of range, or the wrapped optimizer has an option that must be
            set on this optimizer instead, or does more than its `update_step`.
    """

    #: How many gradients of a minibatch a step takes.
    gradient_evaluations_per_step = 1
    #: L of a local entropy; 0 for all that have no Langevin steps.
    langevin_steps = 0
    # What is part of the traced step, and what may be set at any time.
    _fixed: ClassVar[set[str]] = {"outer_optimizer", "skip_nonfinite", "weight_decay"}
    _settable: ClassVar[str] = "`learning_rate`"
    # The anchor, in a warning.
    _anchor_words: ClassVar[str] = "the weights themselves"

    _is_made = False
    _walk: Walk

    def __init__(
        self,
        outer_optimizer: keras.optimizers.Optimizer | str,
        *,
        role: str = "outer optimizer",
        weight_decay: float | None = 0.0,
        skip_nonfinite: bool = False,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        averages_in_step: bool = False,
        name: str = "wrapping_optimizer",
        **kwargs: Any,
    ) -> None:
        if "learning_rate" in kwargs:
            raise ValueError(f"`learning_rate` belongs to the {role}: set it there.")
        _checks.keras_options(kwargs)
        refused = (WrappingOptimizer, keras.optimizers.LossScaleOptimizer)
        outer_optimizer = checked(outer_optimizer, refused, role, type(self).__name__)
        # A callable, so that the base class makes no variable for a rate that is not its own.
        super().__init__(learning_rate=_rate_of_the_wrapped_optimizer, name=name, **kwargs)
        self.outer_optimizer = outer_optimizer
        self.weight_decay = _checks.real(
            "weight_decay", 0.0 if weight_decay is None else weight_decay, at_least=0
        )
        self.skip_nonfinite = _checks.boolean("skip_nonfinite", skip_nonfinite)
        # Keras would average at minibatches that take no step too.
        self._ema_overwrite_every: int | None = kwargs.get("ema_overwrite_frequency")
        self._averages_in_step = self.use_ema and (averages_in_step or self.skip_nonfinite)
        if self._averages_in_step:
            self.ema_overwrite_frequency = None
        self._outer = OuterUpdate(
            self,
            outer_optimizer,
            learning_rate_multipliers,
            averages=self._averages_in_step,
            overwrite_every=self._ema_overwrite_every,
        )
        self._skipped: keras.Variable = None

    def _add_skip_counter(self) -> None:
        """Make the counter of skipped minibatches, if they are to be skipped."""
        if self.skip_nonfinite:
            self._skipped = scalar(self, "skipped", "int64")

    def _complete(self, walk: Walk) -> None:
        """End the constructor.

        Args:
            walk: Walk. The weights that walk.
        """
        self._walk = walk
        self._swap = walk.swap
        self._stored = _serialization.StoredState(self)
        self._warnings = self._make_warnings()
        self._is_made = True

    def _make_warnings(self) -> Warnings:
        return Warnings(self)

    # ---- what users read and set --------------------------------------------------------------

    @property
    def outer_iterations(self) -> keras.Variable:
        """Number of outer updates so far."""
        return self.outer_optimizer.iterations

    @property
    def held(self) -> Where | None:
        """What the model's variables hold: "langevin", "anchor" or "mean"; None if these coincide.

        They coincide between two outer updates (phase 0), and are told apart eagerly only.
        """
        return self._swap.holds()

    @property
    def coupling(self) -> AnchorCoupling | None:
        """What acts on the anchor around the outer optimizer's step; replicas set it."""
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

    # ---- Keras' hooks -------------------------------------------------------------------------

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the slots: anchor, mean and velocity per weight, and the outer optimizer's."""
        if self.built:
            return
        variables = list(variables)
        self._outer.find_factors(variables)
        super().build(variables)
        self._outer.build(variables)
        decays = [_keras.uses_weight_decay(self, variable) for variable in variables]
        self._walk.build(variables, [self.weight_decay if decay else 0.0 for decay in decays])
        with tf.init_scope():
            self._stored.restore()

    def apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Take one step: one Langevin step, and in the last phase the outer update too."""
        if len(grads) == 0:
            return
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
        # minibatch. What does not wait for a gradient would be done all the same.
        with tf.control_dependencies([g for g in grads if g is not None][-1:]):
            self._apply(grads, trainable_variables)

    def _apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None
    ) -> None:
        # All this is read before the base class advances its counter of minibatches.
        evaluated: tf.Tensor | bool = True
        if self.gradient_accumulation_steps:
            k = self.gradient_accumulation_steps
            evaluated = tf.equal(tf.cast(_keras.counter_of(self), tf.int64) % k, k - 1)
        last = tf.constant(evaluated) if isinstance(evaluated, bool) else evaluated
        last = self._takes_outer_step(last)
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
        if self._walk.anchors:
            # After the constraints, which the base class applies last.
            _keras.outside_replicas(
                self, self._walk.probes.remember, None if evaluated is True else evaluated
            )

    def _takes_outer_step(self, evaluated: tf.Tensor) -> tf.Tensor:
        """Return whether a gradient evaluation ends with a step of the wrapped optimizer.

        Args:
            evaluated: bool scalar tensor. Whether this minibatch ends a gradient evaluation.
        """
        return evaluated

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
        """Take a step with all weights that have a gradient.

        Args:
            distribution: tf.distribute.Strategy. The strategy in force.
            grads_and_vars: sequence of pairs. The gradients, summed over the devices, with the
                weights.
            learning_rate: float scalar tensor. The step size of the wrapped optimizer.
        """
        gradients = {_keras.number_of(self, v): (g, v) for g, v in grads_and_vars}
        self._step_of_wrapped(distribution, gradients, learning_rate)

    def _step_of_wrapped(
        self,
        distribution: tf.distribute.Strategy,
        gradients: Mapping[int, tuple[Any, tf.Variable]],
        learning_rate: tf.Tensor,
    ) -> None:
        """Take the wrapped optimizer's step, given the minibatch gradient as it is."""
        dense = self.weight_decay > 0 or self.coupling is not None

        def step(i: int, variable: tf.Variable, gradient: Any, learning_rate: tf.Tensor) -> None:
            if dense:
                gradient = _kernels.with_l2(gradient, variable, self._walk.l2[i])
            self._outer.step(i, variable, gradient, learning_rate)

        for i, (gradient, variable) in gradients.items():
            on_devices(distribution, variable, step, i, gradient, learning_rate)()
        self._outer.count(distribution)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable alone; `apply` is the door for a whole model."""
        if len(self._walk.weights) > 1:
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
            # Of weights that have been frozen since, `var_list` would have none.
            super().finalize_variable_values(self._walk.weights)

    def save_own_variables(self, store: Any) -> None:
        """Save this optimizer's state; Keras visits the outer optimizer by itself."""
        self._warnings.saving()
        self._stored.save(store)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` saved, at once or when `build` has made the slots.

        A state that does not fit is left out with a warning.
        """
        self._stored.load(store)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._fixed and self.__dict__.get("_is_made"):
            raise AttributeError(
                f"`{name}` cannot be changed: a training step that is traced already would not see "
                f"it. Make a new optimizer; {self._settable} can be set."
            )
        super().__setattr__(name, value)


def _rate_of_the_wrapped_optimizer() -> float:
    """Stand in for a learning rate: the property asks the wrapped optimizer."""
    raise AssertionError("a wrapping optimizer has no learning rate of its own")


def on_devices(
    distribution: tf.distribute.Strategy,
    variable: tf.Variable,
    update: Callable[..., None],
    i: int,
    *arguments: Any,
) -> Callable[[], tf.Tensor]:
    """Return a function that updates weight i on every device, and returns what `tf.cond` wants."""

    def everywhere() -> tf.Tensor:
        distribution.extended.update(
            variable, lambda v, *given: update(i, v, *given), args=arguments, group=False
        )
        return tf.constant(0)

    return everywhere
