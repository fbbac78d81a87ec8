"""What a step of `LocalEntropy` does to the weights, by its phase; see `local_entropy.py`.

Each branch is one `tf.cond` for all weights, outside any replica: inside one, a conditional that
updates variables fails under tf.distribute (merge_call).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from esgd_tf.optimizers import _inner_step, _outer_step
from esgd_tf.optimizers._inner_loop import is_frozen, tf_variable
from esgd_tf.optimizers.scoping import AutoScope


def step(
    optimizer: Any,
    distribution: Any,
    grads_and_vars: Sequence[tuple[Any, Any]],
    learning_rate: Any,
) -> None:
    """Take the step of this phase, for all weights.

    Args:
        optimizer: The `LocalEntropy` whose weights and slots they are.
        distribution: The strategy in force.
        grads_and_vars: Gradients, summed over the devices, and the weights that have one.
        learning_rate: The outer step size.
    """
    weights = _Weights(optimizer)
    if optimizer.langevin_steps == 0:
        for gradient, variable in grads_and_vars:
            distribution.extended.update(
                variable, weights.outer_step_alone, args=(gradient, learning_rate), group=False
            )
        _advance(distribution, optimizer.outer_optimizer._iterations)
        return

    loop, statistics = optimizer._loop, optimizer._statistics
    present = {optimizer._get_variable_index(variable) for _, variable in grads_and_vars}
    variables = {
        optimizer._get_variable_index(variable): variable for _, variable in grads_and_vars
    }
    optimizer._swap.back_to_langevin(distribution)
    optimizer._swap.let_go_of_frozen(distribution)
    phase = tf.identity(tf.convert_to_tensor(loop.phase.value))
    scope, acting = optimizer._scope_now(), optimizer.scope
    constants = weights.rule.constants(
        scope,
        optimizer._seed.value,
        optimizer.iterations,
        {(v.dtype, optimizer._steps.inner(i)) for i, v in variables.items()},
    )

    replaced = loop.is_replaced(distribution)
    joining, members = loop.joining(present, replaced), loop.members_after(present, replaced)
    # A weight that was changed in mid-loop by a callback keeps its velocity, as in Keras' SGD.
    keep_velocity = replaced & tf.cast(loop.members.value, tf.bool) & (phase > 0)

    def start_all() -> tf.Tensor:
        for variable in variables.values():
            distribution.extended.update(variable, weights.start_inner_loop, group=False)
        return tf.constant(0)

    def start_some() -> tf.Tensor:
        for i, variable in variables.items():
            distribution.extended.update(
                variable,
                weights.start_inner_loop_if,
                args=(joining[i], keep_velocity[i]),
                group=False,
            )
        return tf.constant(0)

    def nothing() -> tf.Tensor:
        return tf.constant(0)

    tf.cond(
        tf.equal(phase, 0),
        start_all,
        lambda: tf.cond(tf.reduce_any(joining), start_some, nothing),
    )
    distribution.extended.update(
        loop.members.value, lambda v, now: v.assign(now), args=(members,), group=False
    )

    # What the statistics of an outer update need of this step, by the variable on each device.
    seen: dict[int, tuple[tf.Tensor, tf.Tensor]] = {}
    for gradient, variable in grads_and_vars:
        distribution.extended.update(
            variable,
            lambda v, g: seen.update({id(v): weights.langevin_update(v, g, constants)}),
            args=(gradient,),
            group=False,
        )
    if statistics is not None:
        statistics.finish_step(distribution)

    def finish() -> tf.Tensor:
        for i, weight in enumerate(optimizer._trainable_variables):
            if optimizer._anchors[i] is None:
                continue
            if i in present:
                distribution.extended.update(
                    variables[i],
                    lambda v, rate: weights.outer_update(v, seen[id(v)], rate, acting),
                    args=(learning_rate,),
                    group=False,
                )
                continue
            # It has no gradient at this step, but may have had one in this inner loop.
            absent = tf_variable(weight)

            def move(absent: Any = absent) -> tf.Tensor:
                distribution.extended.update(
                    absent,
                    lambda v, rate: weights.outer_update(v, None, rate, acting),
                    args=(learning_rate,),
                    group=False,
                )
                return tf.constant(0)

            def stay(absent: Any = absent) -> tf.Tensor:
                distribution.extended.update(absent, weights.average_alone, group=False)
                return tf.constant(0)

            if is_frozen(weight):
                stay()
            else:
                tf.cond(members[i] > 0, move, stay)
        if statistics is not None:
            statistics.finish_outer_update(distribution, optimizer.outer_iterations)
        _advance(distribution, optimizer.outer_optimizer._iterations)
        distribution.extended.update(
            loop.phase.value, lambda v: v.assign(tf.zeros_like(v)), group=False
        )
        return tf.constant(0)

    def go_on() -> tf.Tensor:
        _advance(distribution, loop.phase)
        return tf.constant(0)

    # A state that comes from an optimizer with more steps ends its inner loop at once.
    tf.cond(phase >= optimizer.langevin_steps - 1, finish, go_on)


def _advance(distribution: Any, counter: Any) -> None:
    distribution.extended.update(
        counter.value, lambda v: v.assign_add(tf.ones_like(v)), group=False
    )


class _Weights:
    """The updates of one weight on one device; made anew for every trace."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.rule = _inner_step.InnerStep(
            learning_rate=optimizer._steps.rate_now(),
            momentum=optimizer._steps.momentum_now(),
            nesterov=optimizer.nesterov,
            noise=optimizer.noise,
            averaging=optimizer.averaging,
            pulls=optimizer._pulls,
            statistics=optimizer._statistics,
        )

    def start_inner_loop(self, variable: tf.Variable) -> None:
        """Set x' = mean = x and v = 0."""
        _inner_step.start(variable, self._slots(variable))

    def start_inner_loop_if(
        self, variable: tf.Variable, joins: tf.Tensor, keep_velocity: tf.Tensor
    ) -> None:
        """Set x' = mean = x and, unless it is to be kept, v = 0, for a weight that joins."""
        slots = self._slots(variable)
        for slot in (slots.anchor, slots.mean):
            slot.assign(tf.where(joins, variable, slot))
        if slots.velocity is not None:
            stays = keep_velocity | ~joins
            slots.velocity.assign(tf.where(stays, slots.velocity, tf.zeros_like(variable)))

    def langevin_update(
        self, variable: tf.Variable, gradient: Any, constants: dict[str, Any]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Take one Langevin step; return its gradient and its N(0, I)."""
        i = self._optimizer._get_variable_index(variable)
        gradient = self._decayed(gradient, variable)
        return gradient, self.rule.take(
            variable,
            gradient,
            self._slots(variable),
            i,
            constants,
            self._optimizer._steps.inner(i),
        )

    def outer_update(
        self,
        variable: tf.Variable,
        seen: tuple[tf.Tensor, tf.Tensor] | None,
        learning_rate: Any,
        scope: tf.Tensor,
    ) -> None:
        """Put the variable back to the anchor and let the outer optimizer step with x - mean."""
        optimizer = self._optimizer
        i = optimizer._get_variable_index(variable)
        anchor, mean, _ = self._slots(variable)
        difference = tf.subtract(anchor, mean)
        if optimizer._statistics is not None:
            none = tf.zeros_like(difference)
            optimizer._statistics.see_outer_update(
                *(seen or (none, none)),
                difference,
                tf.subtract(variable, anchor),
                self.rule.displacement_scale(optimizer._steps.inner(i)),
            )
        if optimizer.gamma_in_outer_step:
            if isinstance(optimizer._schedule, AutoScope):
                # gamma is 0 until it is measured; a factor of 0 would keep the distance, and with
                # it the measurement, at 0 for good.
                scope = tf.where(scope > 0, scope, tf.ones_like(scope))
            difference = tf.cast(scope, difference.dtype) * difference
        variable.assign(anchor)
        self._step_and_average(variable, difference, learning_rate)

    def outer_step_alone(self, variable: tf.Variable, gradient: Any, learning_rate: Any) -> None:
        """L = 0: the outer optimizer, given the minibatch gradient as it is."""
        if self._optimizer.weight_decay > 0 or self._optimizer.coupling is not None:
            gradient = self._decayed(gradient, variable)
        self._step_and_average(variable, gradient, learning_rate)

    def average_alone(self, variable: tf.Variable) -> None:
        """Average a weight that the outer update leaves where it is, as Keras averages all."""
        if self._optimizer.averages_in_step:
            self._average(variable)

    def _slots(self, variable: tf.Variable) -> _inner_step.Slots:
        optimizer = self._optimizer
        i = optimizer._get_variable_index(variable)
        velocity = optimizer._velocities[i].value if optimizer._velocities else None
        return _inner_step.Slots(optimizer._anchors[i].value, optimizer._means[i].value, velocity)

    def _decayed(self, gradient: Any, variable: tf.Variable) -> tf.Tensor:
        """Return q = gradient + weight_decay x', dense and in the variable's dtype."""
        optimizer = self._optimizer
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        weight = optimizer._trainable_variables[optimizer._get_variable_index(variable)]
        if optimizer.weight_decay > 0 and optimizer._use_weight_decay(weight):
            gradient += tf.constant(optimizer.weight_decay, variable.dtype) * variable
        return gradient

    def _step_and_average(self, variable: tf.Variable, gradient: Any, learning_rate: Any) -> None:
        """Let the outer optimizer step, and average the anchors it comes to."""
        optimizer = self._optimizer
        i = optimizer._get_variable_index(variable)
        if optimizer.coupling is not None:
            gradient = optimizer.coupling.before(i, variable, gradient)
        multiplier = optimizer._steps.outer(i)
        if multiplier != 1.0:
            learning_rate = learning_rate * multiplier
        _outer_step.take(
            optimizer.outer_optimizer,
            variable,
            optimizer._trainable_variables[i],
            gradient,
            learning_rate,
        )
        if optimizer.coupling is not None:
            optimizer.coupling.after(i, variable)
        if optimizer.averages_in_step:
            self._average(variable)

    def _average(self, variable: tf.Variable) -> None:
        optimizer = self._optimizer
        i = optimizer._get_variable_index(variable)
        _outer_step.average(
            variable,
            optimizer._model_variables_moving_average[i].value,
            optimizer.outer_iterations,
            optimizer.ema_momentum,
            optimizer._ema_overwrite_every,
        )
