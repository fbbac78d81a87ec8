"""The outer update: the outer optimizer's step at the anchor, the coupling, and the average.

Keras' `apply` does more than `update_step`: it clips, decays weights, averages them and counts. The
outer optimizer's `apply` is never called, since it would reduce over the devices once more; what
must happen around its `update_step` happens here, one variable at a time.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Protocol

import keras
import tensorflow as tf

from esgd_tf import _keras
from esgd_tf.optimizers._multipliers import Multipliers

__all__ = ["AnchorCoupling", "OuterUpdate", "checked"]

# Methods that a subclass may override, but that are not called here: `update_step` alone is.
_NOT_CALLED = (
    "apply",
    "apply_gradients",
    "_backend_apply_gradients",
    "_distributed_tf_update_step",
)
# Outer optimizers that belong to a `LocalEntropy`.
_taken: weakref.WeakSet[keras.optimizers.Optimizer] = weakref.WeakSet()


def checked(
    optimizer: keras.optimizers.Optimizer | str,
    refused: tuple[type, ...],
    role: str = "outer optimizer",
    owner: str = "LocalEntropy",
) -> keras.optimizers.Optimizer:
    """Return the wrapped optimizer, or raise a ValueError that says what to do instead.

    Args:
        optimizer: keras.optimizers.Optimizer, or str. The optimizer to wrap, or its name.
        refused: tuple of types. Optimizers that wrap others, and so cannot be wrapped.
        role: str. What the wrapped optimizer is called. Defaults to "outer optimizer".
        owner: str. The class of the optimizer that wraps it. Defaults to "LocalEntropy".

    Raises:
        ValueError: The optimizer cannot be wrapped.
    """
    optimizer = keras.optimizers.get(optimizer)
    kind = type(optimizer).__name__
    if isinstance(optimizer, refused) or hasattr(optimizer, "optimizers"):
        raise ValueError(
            f"The {role} cannot be {_article(kind)} {kind}, which wraps other optimizers: wrap "
            f"{owner} in it instead, or give the plain optimizer."
        )
    if optimizer.built:
        raise ValueError(f"The {role} ({kind}) is built already, on other state: give a new one.")
    for hook in _NOT_CALLED:
        if _keras.has_own(optimizer, hook):
            raise ValueError(
                f"{kind} has a `{hook}` of its own, which would not be called: an {role} "
                "is asked for its `update_step`, one weight at a time."
            )
    for option in ("global_clipnorm", "gradient_accumulation_steps", "loss_scale_factor"):
        if getattr(optimizer, option):
            raise ValueError(
                f"`{option}` has no effect on an {role} ({kind}): set it on "
                f"{owner}, where it acts on the minibatch gradients."
            )
    if optimizer.use_ema:
        raise ValueError(
            f"`use_ema` has no effect on an {role} ({kind}): set it on {owner}, "
            "which averages the weights that it returns."
        )
    if optimizer in _taken:
        # Two that share one would share its counter and its state.
        optimizer = type(optimizer).from_config(optimizer.get_config())
    _taken.add(optimizer)
    return optimizer


def _article(word: str) -> str:
    return "an" if word[0] in "AEIOU" else "a"


class AnchorCoupling(Protocol):
    """Something that acts on the anchor around the outer step, such as replicas' attraction."""

    def before(self, i: int, variable: tf.Variable, gradient: tf.Tensor) -> tf.Tensor:
        """Act before the step; return the gradient to step with.

        Args:
            i: int. The number of the weight.
            variable: tf.Variable. The weight on this device, at its anchor.
            gradient: tf.Tensor of the weight's shape. The gradient without the coupling.
        """

    def after(self, i: int, variable: tf.Variable) -> None:
        """Act after the step.

        Args:
            i: int. The number of the weight.
            variable: tf.Variable. The weight on this device, after the step.
        """


class OuterUpdate:
    """The outer optimizer of one `LocalEntropy`, and what happens around its step.

    Args:
        owner: keras.optimizers.Optimizer. The `LocalEntropy`, which keeps Keras' moving averages.
        optimizer: keras.optimizers.Optimizer. The outer optimizer, from `checked`.
        multipliers: dict of floats >= 0 by regular expression. Factors on the outer step size for
            the weights in whose paths the expressions are found; None for 1 everywhere.
        averages: bool. Whether the anchor is averaged here, once per outer update.
        overwrite_every: int >= 1. After how many outer updates the average becomes the anchor; None
            for never.

    Attributes:
        coupling: AnchorCoupling. Acts on the anchor around the step; None for nothing.
        iterations: keras.Variable, an integer scalar. Outer updates so far.
    """

    def __init__(
        self,
        owner: keras.optimizers.Optimizer,
        optimizer: keras.optimizers.Optimizer,
        multipliers: Mapping[str, float] | None,
        *,
        averages: bool,
        overwrite_every: int | None,
    ) -> None:
        self._owner = owner
        self._optimizer = optimizer
        self._multipliers = Multipliers("learning_rate_multipliers", multipliers)
        self._averages = averages
        self._overwrite_every = overwrite_every
        self._weights: list[keras.Variable] = []
        self.coupling: AnchorCoupling | None = None
        self.iterations: keras.Variable = optimizer.iterations

    def find_factors(self, weights: Sequence[keras.Variable]) -> None:
        """Find the factor of every weight, before anything is built.

        Args:
            weights: list of keras.Variable. The weights that are to be trained.

        Raises:
            ValueError: The multipliers do not fit the weights.
        """
        self._multipliers.build(weights)

    def build(self, weights: Sequence[keras.Variable]) -> None:
        """Create the outer optimizer's slots.

        Args:
            weights: list of keras.Variable. The weights that are trained.
        """
        self._weights = list(weights)
        # Some optimizers copy the weights into a slot here. Outside init_scope the copy would be
        # lost with the trace that `fit` builds optimizers in.
        with tf.init_scope():
            self._optimizer.build(self._weights)

    def step(
        self, i: int, variable: tf.Variable, gradient: tf.Tensor, learning_rate: tf.Tensor
    ) -> None:
        """Take the outer step at the anchor, with the coupling around it, then average the anchor.

        Args:
            i: int. The number of the weight.
            variable: tf.Variable. The weight on this device, at its anchor.
            gradient: tf.Tensor of the weight's shape. x - mean; for L = 0 the minibatch gradient.
            learning_rate: float scalar tensor. The outer step size.
        """
        if self.coupling is not None:
            gradient = self.coupling.before(i, variable, gradient)
        factor = self._multipliers.of(i)
        if factor != 1.0:
            learning_rate = learning_rate * factor
        self._take(i, variable, gradient, learning_rate)
        if self.coupling is not None:
            self.coupling.after(i, variable)
        self.average(i, variable)

    def _take(
        self, i: int, variable: tf.Variable, gradient: tf.Tensor, learning_rate: tf.Tensor
    ) -> None:
        """Do what Keras' `apply` does around `update_step`: clip, decay, step."""
        outer, weight = self._optimizer, self._weights[i]
        (gradient,) = _keras.clipped(outer, [gradient])
        weight_decay = _keras.decoupled_weight_decay(outer, weight)
        if weight_decay is not None:
            # The cast rounds a Python number through float32, as Keras does: L = 0 is exact.
            decay = tf.cast(weight_decay, variable.dtype)
            variable.assign_sub(variable * decay * tf.cast(learning_rate, variable.dtype))
        outer.update_step(gradient, variable, learning_rate)

    def average(self, i: int, variable: tf.Variable) -> None:
        """Average the anchor once per outer update, as Keras' `use_ema` does per step.

        Args:
            i: int. The number of the weight.
            variable: tf.Variable. The weight on this device, at its new anchor.
        """
        if not self._averages:
            return
        average = _keras.moving_averages(self._owner)[i].value
        t = tf.cast(self.iterations, tf.int64)
        # As in Keras, the first value is taken whole.
        momentum = tf.where(t > 0, tf.constant(self._owner.ema_momentum, variable.dtype), 0)
        average.assign(momentum * average + (1 - momentum) * variable)
        if self._overwrite_every:
            due = tf.equal((t + 1) % self._overwrite_every, 0)
            variable.assign(tf.where(due, average, variable))

    def count(self, distribution: tf.distribute.Strategy) -> None:
        """Count one more outer update.

        Args:
            distribution: tf.distribute.Strategy. The strategy in force.
        """
        counter = _keras.counter_of(self._optimizer).value
        distribution.extended.update(counter, lambda v: v.assign_add(tf.ones_like(v)), group=False)

    def advance_scalars(self, last: tf.Tensor) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Let optimizers that keep a running product (Nadam) advance it, per outer update.

        Args:
            last: bool scalar tensor. Whether this gradient evaluation ends an inner loop.

        Returns:
            The scalars that may have been advanced, with their values before.
        """
        if not _keras.has_own(self._optimizer, "_backend_update_step"):
            return []
        scalars = _keras.scalars_besides_counters(self._optimizer)
        before = [tf.identity(tf.convert_to_tensor(v.value)) for v in scalars]
        _keras.take_empty_step(self._optimizer)
        for variable, old in zip(scalars, before, strict=True):
            variable.assign(tf.where(last, variable.value, old))
        return list(zip(scalars, before, strict=True))

    def multipliers(self) -> dict[str, float] | None:
        """Return the constructor's argument of this name."""
        return self._multipliers.config()
