"""What a step of `LocalEntropy` does to the weights, by its phase; see `local_entropy.py`.

Each branch is one `tf.cond` for all weights, outside any replica: inside one, a conditional that
updates variables fails under tf.distribute (merge_call).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from esgd_tf.optimizers import _inner_step, _outer_step
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
        return

    taking_part = {optimizer._get_variable_index(variable) for _, variable in grads_and_vars}
    absent = [
        variable
        for i, variable in enumerate(optimizer._trainable_variables)
        if i not in taking_part and optimizer._anchors[i] is not None
    ]

    def start() -> tf.Tensor:
        variables = [v for _, v in grads_and_vars] + [_tf_variable(v) for v in absent]
        for variable in variables:
            distribution.extended.update(variable, weights.start_inner_loop, group=False)
        return tf.constant(0)

    def finish() -> tf.Tensor:
        for _, variable in grads_and_vars:
            distribution.extended.update(
                variable,
                lambda v, rate: weights.outer_update(v, seen[id(v)], rate, scope),
                args=(learning_rate,),
                group=False,
            )
        if statistics is not None:
            statistics.finish_outer_update(distribution, optimizer.outer_iterations)
        return tf.constant(0)

    def nothing() -> tf.Tensor:
        return tf.constant(0)

    statistics = optimizer._statistics
    phase, scope = optimizer.langevin_phase, optimizer.scope
    constants = weights.rule.constants(
        scope, optimizer._seed.value, optimizer.iterations, {v.dtype for _, v in grads_and_vars}
    )
    optimizer._swap.back_to_langevin(distribution)
    tf.cond(tf.equal(phase, 0), start, nothing)
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
    tf.cond(tf.equal(phase, optimizer.langevin_steps - 1), finish, nothing)


class _Weights:
    """The updates of one weight on one device; made anew for every trace."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.rule = _inner_step.InnerStep(
            learning_rate=optimizer.langevin_learning_rate,
            momentum=optimizer.momentum,
            nesterov=optimizer.nesterov,
            noise=optimizer.noise,
            averaging=optimizer.averaging,
            pulls=optimizer._pulls,
            statistics=optimizer._statistics,
        )

    def start_inner_loop(self, variable: tf.Variable) -> None:
        """Set x' = mean = x and v = 0."""
        _inner_step.start(variable, self._slots(variable))

    def langevin_update(
        self, variable: tf.Variable, gradient: Any, constants: dict[str, Any]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Take one Langevin step; return its gradient and its N(0, I)."""
        i = self._optimizer._get_variable_index(variable)
        gradient = self._decayed(gradient, variable)
        return gradient, self.rule.take(variable, gradient, self._slots(variable), i, constants)

    def outer_update(
        self,
        variable: tf.Variable,
        seen: tuple[tf.Tensor, tf.Tensor],
        learning_rate: Any,
        scope: tf.Tensor,
    ) -> None:
        """Put the variable back to the anchor and let the outer optimizer step with x - mean."""
        optimizer = self._optimizer
        anchor, mean, _ = self._slots(variable)
        difference = tf.subtract(anchor, mean)
        if optimizer._statistics is not None:
            optimizer._statistics.see_outer_update(
                *seen, difference, tf.subtract(variable, anchor), self.rule.displacement_scale
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

    def _slots(self, variable: tf.Variable) -> _inner_step.Slots:
        optimizer = self._optimizer
        i = optimizer._get_variable_index(variable)
        velocity = optimizer._velocities[i].value if optimizer._velocities else None
        return _inner_step.Slots(optimizer._anchors[i].value, optimizer._means[i].value, velocity)

    def _decayed(self, gradient: Any, variable: tf.Variable) -> tf.Tensor:
        """Return q = gradient + weight_decay x', dense and in the variable's dtype."""
        optimizer = self._optimizer
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        keras_variable = optimizer._trainable_variables[optimizer._get_variable_index(variable)]
        if optimizer.weight_decay > 0 and optimizer._use_weight_decay(keras_variable):
            gradient += tf.constant(optimizer.weight_decay, variable.dtype) * variable
        return gradient

    def _step_and_average(self, variable: tf.Variable, gradient: Any, learning_rate: Any) -> None:
        """Let the outer optimizer step, and average the anchors it comes to."""
        optimizer = self._optimizer
        i = optimizer._get_variable_index(variable)
        if optimizer.coupling is not None:
            gradient = optimizer.coupling.before(i, variable, gradient)
        _outer_step.take(
            optimizer.outer_optimizer,
            variable,
            optimizer._trainable_variables[i],
            gradient,
            learning_rate,
        )
        if optimizer.coupling is not None:
            optimizer.coupling.after(i, variable)
        if optimizer.use_ema:
            _outer_step.average(
                variable,
                optimizer._model_variables_moving_average[i].value,
                optimizer.outer_iterations,
                optimizer.ema_momentum,
                optimizer._ema_overwrite_every,
            )


def _tf_variable(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable
