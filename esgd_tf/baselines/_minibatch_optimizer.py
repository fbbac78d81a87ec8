"""The base of the rivals that take gradients of a minibatch where they want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from esgd_tf.baselines._gradients import Gradients, Minibatch
from esgd_tf.baselines._rival import Rival

__all__ = ["MinibatchOptimizer"]


class MinibatchOptimizer(Rival):
    """An inner optimizer that is given a gradient from elsewhere than the model's weights.

    Subclasses have `minibatch_gradient`, which `enable_minibatch_gradients` calls in every step.
    """

    #: Set while a step is traced in which `minibatch_gradient` gave the gradient.
    has_minibatch = False

    def minibatch_gradient(self, minibatch: Minibatch) -> Gradients:
        """Return the gradient with which to take the step.

        Args:
            minibatch: Minibatch. The minibatch, with the model.
        """
        raise NotImplementedError

    def apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Take one step of the inner optimizer, with gradients from `minibatch_gradient`.

        Args:
            grads: sequence of tensors. The gradients.
            trainable_variables: sequence of keras.Variable. The weights. Defaults to None, which
                means those that the optimizer was built on.

        Raises:
            ValueError: The gradients are not from `minibatch_gradient`.
        """
        if not self.has_minibatch:
            kind = type(self).__name__
            raise ValueError(
                f"{kind} takes gradients where Keras' training step takes none: call "
                f"`esgd_tf.enable_minibatch_gradients(model)` after `compile` (and after loading a "
                "model), before `fit`."
            )
        super().apply(grads, trainable_variables)
