"""Lookahead: k fast steps forward, one slow step back.

    k times     w ← the inner optimizer's step at w with the minibatch's gradient
    then        φ ← φ + alpha (w - φ),    w ← φ

φ are the slow weights, which training returns. The inner optimizer keeps its state (its momentum)
from one round to the next. This is Entropy-SGD without what makes it descend the local entropy:
with scope, noise and inner momentum 0, the last x' in place of the mean, and alpha as the outer
step size, Entropy-SGD takes the same steps.

Source: Zhang et al., "Lookahead optimizer: k steps forward, 1 step back", NeurIPS 2019, Algorithm
1, and its released code (alpha 0.8, k 5, `pullback_momentum="none"`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import keras
import tensorflow as tf

from esgd_tf import _checks, _keras
from esgd_tf.baselines._rival import Rival
from esgd_tf.optimizers._options import KerasOptions
from esgd_tf.optimizers._variables import as_tf, scalar
from esgd_tf.optimizers._walk import Walk
from esgd_tf.optimizers._wrapping import on_devices

__all__ = ["Lookahead", "slow_weights"]


def slow_weights(slow: tf.Tensor, fast: tf.Tensor, alpha: float) -> tf.Tensor:
    """Return φ + alpha (w - φ); with alpha 1 w itself, to the bit.

    Args:
        slow: tf.Tensor. φ.
        fast: tf.Tensor of the same shape. w after the fast steps.
        alpha: float in (0, 1]. The slow step size.
    """
    if alpha == 1.0:
        return tf.identity(fast)
    return slow + tf.constant(alpha, slow.dtype) * (fast - slow)


class _FastWeights(Walk):
    """The fast weights, with the slow ones as their anchors."""

    def _make_slots(self) -> None:
        self.anchors = self._owner.add_optimizer_variables(self.weights, "slow")
        self.means = self.anchors


@keras.saving.register_keras_serializable(package="esgd_tf")
class Lookahead(Rival):
    """Lookahead: `steps` fast steps of any Keras optimizer forward, one slow step back.

        k times     w ← the inner optimizer's step at w
        then        φ ← φ + alpha (w - φ),    w ← φ

    Source: Zhang et al., "Lookahead optimizer: k steps forward, 1 step back", NeurIPS 2019,
    Algorithm 1.

    Examples:
        >>> model.compile(optimizer=esgd_tf.Lookahead(keras.optimizers.Adam(1e-3)), loss=loss)
        >>> model.fit(x, y, callbacks=[esgd_tf.AnchorCallback()])

    Note:
        * Between two slow steps the model's variables hold the fast weights w; what training
          returns are the slow ones. Use `esgd_tf.evaluate_at` or `esgd_tf.AnchorCallback`, for
          which they are the anchor. At the end of `fit` the model is left at them.
        * The inner optimizer keeps its state over the slow steps, and its learning rate schedule
          counts fast steps.
        * With `steps=1` and `alpha=1` it is the inner optimizer, bit for bit.

    Args:
        inner_optimizer: keras.optimizers.Optimizer that is not built yet, or str. What takes the
            fast steps, or its name.
        steps: int >= 1. k, fast steps for each slow one. Defaults to 5.
        alpha: float in (0, 1]. The slow step size. Defaults to 0.8.
        weight_decay: float >= 0. L2 coefficient, added to the gradient. None means 0. Defaults to
            0.0.
        skip_nonfinite: bool. Whether a minibatch whose gradient is not finite is left out. Defaults
            to False.
        learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on the step
            size of the weights in whose paths the expressions are found. Defaults to None, which
            means 1 everywhere.
        name: str. Name of the optimizer. Defaults to "lookahead".
        **kwargs: Arguments of every Keras optimizer; see `SAM`. `use_ema` averages the fast weights
            and is refused.

    Raises:
        ValueError: An argument is out of range, or the inner optimizer cannot be wrapped.
    """

    _fixed: ClassVar[set[str]] = Rival._fixed | {"alpha", "steps"}
    _anchor_words: ClassVar[str] = "the slow weights"

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        steps: int = 5,
        alpha: float = 0.8,
        weight_decay: float | None = 0.0,
        skip_nonfinite: bool = False,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        name: str = "lookahead",
        **kwargs: Unpack[KerasOptions],
    ) -> None:
        if kwargs.get("use_ema"):
            raise ValueError(
                "`use_ema` would average the fast weights, which Lookahead does not return: leave "
                "it out."
            )
        super().__init__(
            inner_optimizer,
            weight_decay=weight_decay,
            skip_nonfinite=skip_nonfinite,
            learning_rate_multipliers=learning_rate_multipliers,
            name=name,
            **kwargs,
        )
        self.steps = _checks.integer("steps", steps, at_least=1)
        self.alpha = _checks.real("alpha", alpha, above=0, at_most=1)
        self._complete(_FastWeights(self, scalar(self, "phase", "int64")))

    def _step(
        self,
        distribution: tf.distribute.Strategy,
        grads_and_vars: Sequence[tuple[Any, tf.Variable]],
        learning_rate: tf.Tensor,
    ) -> None:
        walk = self._walk
        gradients = {_keras.number_of(self, v): (g, v) for g, v in grads_and_vars}
        self._swap.back_to_langevin(distribution)
        walk.release_frozen(distribution)
        phase = tf.identity(tf.convert_to_tensor(walk.phase.value))
        members = walk.join(distribution, gradients, phase)
        self._step_of_wrapped(distribution, gradients, learning_rate)

        def look_back(i: int, variable: tf.Variable, joined: tf.Tensor) -> None:
            slow = slow_weights(walk.anchors[i].value, tf.convert_to_tensor(variable), self.alpha)
            variable.assign(tf.where(joined, slow, variable))

        def slow_step() -> tf.Tensor:
            for i, weight in enumerate(walk.weights):
                if walk.anchors[i] is not None:
                    joined = tf.cast(members[i], tf.bool)
                    on_devices(distribution, as_tf(weight), look_back, i, joined)()
            return self._set_phase(distribution, tf.zeros_like(phase))

        # A state that comes from an optimizer with more steps ends its round at once.
        tf.cond(
            phase >= self.steps - 1,
            slow_step,
            lambda: self._set_phase(distribution, phase + 1),
        )

    def _arguments(self) -> dict[str, Any]:
        return {"steps": self.steps, "alpha": self.alpha}
