"""What all rivals share: an inner optimizer and its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import keras
import tensorflow as tf

from esgd_tf.optimizers._variables import scalar
from esgd_tf.optimizers._walk import Walk
from esgd_tf.optimizers._wrapping import WrappingOptimizer

__all__ = ["Rival"]


class Rival(WrappingOptimizer):
    """A rival of local entropy: an optimizer around an inner one, which takes every step.

    Subclasses end their constructor with `_complete` or `_complete_without_walk`, and give their
    own arguments in `_arguments`.

    Args:
        inner_optimizer: keras.optimizers.Optimizer that is not built yet, or str. The inner
            optimizer, or its name.
        weight_decay: float >= 0. L2 coefficient, added to the gradient. None means 0. Defaults to
            0.0.
        skip_nonfinite: bool. Whether a minibatch whose gradient is not finite is left out. Defaults
            to False.
        learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on the step
            size of the weights in whose paths the expressions are found. Defaults to None, which
            means 1 everywhere.
        name: str. Name of the optimizer. Defaults to "rival".
        **kwargs: Arguments of every Keras optimizer but `learning_rate`.

    Raises:
        ValueError: An argument is out of range, or the inner optimizer cannot be wrapped.
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        *,
        weight_decay: float | None = 0.0,
        skip_nonfinite: bool = False,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        name: str = "rival",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            inner_optimizer,
            role="inner optimizer",
            weight_decay=weight_decay,
            skip_nonfinite=skip_nonfinite,
            learning_rate_multipliers=learning_rate_multipliers,
            name=name,
            **kwargs,
        )
        self._add_skip_counter()

    def _complete_without_walk(self) -> None:
        """End the constructor of a rival that evaluates where it trains."""
        self._complete(Walk(self, scalar(self, "phase", "int64")))

    def _set_phase(self, distribution: tf.distribute.Strategy, phase: tf.Tensor) -> tf.Tensor:
        """Set the phase of the walk, on every device; return what `tf.cond` wants.

        Args:
            distribution: tf.distribute.Strategy. The strategy in force.
            phase: int64 scalar tensor. The new phase.
        """
        distribution.extended.update(
            self._walk.phase.value, lambda v, new: v.assign(new), args=(phase,), group=False
        )
        return tf.constant(0)

    def _arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments that a subclass adds, serialised."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, serialised."""
        config = super().get_config()
        del config["learning_rate"]
        config.update(
            inner_optimizer=keras.saving.serialize_keras_object(self.outer_optimizer),
            weight_decay=self.weight_decay,
            skip_nonfinite=self.skip_nonfinite,
            learning_rate_multipliers=self._outer.multipliers(),
            ema_overwrite_frequency=self._ema_overwrite_every,
            **self._arguments(),
        )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Rebuild the optimizer from `get_config`."""
        config = dict(config)
        inner = config.get("inner_optimizer")
        if isinstance(inner, dict):
            config["inner_optimizer"] = keras.saving.deserialize_keras_object(
                inner, custom_objects=custom_objects
            )
        return super().from_config(config, custom_objects=custom_objects)
