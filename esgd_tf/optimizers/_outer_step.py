"""The outer optimizer's part: which optimizers can take it, their step, the anchor's average.

Keras' `apply` does more than `update_step`: it clips, decays weights, averages them and counts. The
outer optimizer's `apply` is never called, since it would reduce over the devices once more; what
must happen around its `update_step` happens here, one variable at a time.
"""

from __future__ import annotations

import weakref
from typing import Any

import keras
import tensorflow as tf

# What a subclass may override, and what its `update_step` alone would not do.
_NOT_CALLED = (
    "apply",
    "apply_gradients",
    "_backend_apply_gradients",
    "_distributed_tf_update_step",
)
# Outer optimizers that belong to a `LocalEntropy`.
_taken: weakref.WeakSet[Any] = weakref.WeakSet()


def checked(optimizer: Any, refused: tuple[type, ...]) -> keras.optimizers.Optimizer:
    """Return the outer optimizer, or raise a ValueError that says what to do instead.

    Args:
        optimizer: A Keras optimizer, or its name.
        refused: Optimizers that wrap others, and so cannot be an outer one.
    """
    optimizer = keras.optimizers.get(optimizer)
    kind = type(optimizer).__name__
    if isinstance(optimizer, refused) or hasattr(optimizer, "optimizers"):
        raise ValueError(
            f"The outer optimizer cannot be a {kind}, which wraps other optimizers: wrap "
            "LocalEntropy in it instead, or give the plain optimizer."
        )
    if optimizer.built:
        raise ValueError(
            f"The outer optimizer ({kind}) is built already, on other state: give a new one."
        )
    for hook in _NOT_CALLED:
        if getattr(type(optimizer), hook) is not getattr(keras.optimizers.Optimizer, hook):
            raise ValueError(
                f"{kind} has a `{hook}` of its own, which would not be called: an outer optimizer "
                "is asked for its `update_step`, one weight at a time."
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
    if optimizer in _taken:
        # Two that share one would share its counter and its state.
        optimizer = type(optimizer).from_config(optimizer.get_config())
    _taken.add(optimizer)
    return optimizer


def advance_scalars(
    outer: keras.optimizers.Optimizer, last: tf.Tensor
) -> list[tuple[keras.Variable, tf.Tensor]]:
    """Let optimizers that keep a running product (Nadam) advance it, per outer update.

    Args:
        outer: The outer optimizer.
        last: Whether this gradient evaluation ends an inner loop.

    Returns:
        What was advanced, with the values before.
    """
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


def take(
    outer: keras.optimizers.Optimizer,
    variable: tf.Variable,
    keras_variable: keras.Variable,
    gradient: Any,
    learning_rate: Any,
) -> None:
    """Do what Keras' `apply` does around `update_step`: clip, decay, step.

    Args:
        outer: The outer optimizer.
        variable: The weight on this device.
        keras_variable: The same weight as the model knows it.
        gradient: x - mean, or the minibatch gradient if there is no inner loop.
        learning_rate: The outer step size.
    """
    (gradient,) = outer._clip_gradients([gradient])
    weight_decay = outer.weight_decay
    if isinstance(outer, keras.optimizers.Muon) and outer._should_use_adamw(keras_variable):
        weight_decay = outer.adam_weight_decay
    if weight_decay is not None and outer._use_weight_decay(keras_variable):
        # The cast rounds a Python number through float32, as Keras does: L = 0 is exact.
        decay = tf.cast(weight_decay, variable.dtype)
        variable.assign_sub(variable * decay * tf.cast(learning_rate, variable.dtype))
    outer.update_step(gradient, variable, learning_rate)


def average(
    variable: tf.Variable,
    moving_average: tf.Variable,
    outer_iterations: Any,
    momentum: float,
    overwrite_every: int | None,
) -> None:
    """Average the anchor once per outer update, as Keras' `use_ema` does per step.

    Args:
        variable: The weight, at its new anchor.
        moving_average: The average to be brought up to date.
        outer_iterations: Number of outer updates before this one.
        momentum: Weight of the old average.
        overwrite_every: After how many outer updates the average becomes the anchor, if ever.
    """
    t = tf.cast(outer_iterations, tf.int64)
    # As in Keras, the first value is taken whole.
    momentum = tf.where(t > 0, tf.constant(momentum, variable.dtype), 0)
    moving_average.assign(momentum * moving_average + (1 - momentum) * variable)
    if overwrite_every:
        due = tf.equal((t + 1) % overwrite_every, 0)
        variable.assign(tf.where(due, moving_average, variable))
