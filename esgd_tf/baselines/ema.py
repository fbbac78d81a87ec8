"""EMA: the exponential moving average of the weights, as Keras keeps it.

After every step

    average ← momentum average + (1 - momentum) w,    the first w being taken whole

while the inner optimizer trains w as if there were no average. Keras' `use_ema` does all of this;
what it lacks is a way to evaluate at the average without rounding (its `SwapEMAWeights` swaps by
arithmetic) and to go on after `fit`, which it ends by overwriting w.

Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J.
Control and Optimization 30, 1992; Keras, `keras.optimizers.Optimizer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import keras
import tensorflow as tf

from esgd_tf import _checks, _keras
from esgd_tf.baselines._rival import Rival
from esgd_tf.optimizers._options import KerasOptions
from esgd_tf.optimizers._variables import scalar
from esgd_tf.optimizers._walk import Walk

__all__ = ["EMA"]


class _Averaged(Walk):
    """The weights that are averaged, with Keras' averages as anchors."""

    def _make_slots(self) -> None:
        self.anchors = list(_keras.moving_averages(self._owner))
        self.means = self.anchors


@keras.saving.register_keras_serializable(package="esgd_tf")
class EMA(Rival):
    """EMA: any Keras optimizer, and Keras' moving average of the weights, where it is evaluated.

        average ← momentum average + (1 - momentum) w    after every step

    Source: Polyak and Juditsky, SIAM J. Control and Optimization 30, 1992, for the idea.

    Examples:
        >>> model.compile(optimizer=esgd_tf.EMA(keras.optimizers.Adam(1e-3)), loss=loss)
        >>> model.fit(x, y, callbacks=[esgd_tf.AnchorCallback()])

    Note:
        * The model's variables hold the weights that are being trained; what training returns is
          their average. Use `esgd_tf.evaluate_at` or `esgd_tf.AnchorCallback`, for which it is the
          anchor. At the end of `fit` the model is left at it, and the next `fit` goes on from w
          (exactly so with `AnchorCallback`).
        * BatchNormalization needs statistics of its own at the average: give `AnchorCallback`
          training data, or call `esgd_tf.training.reestimate_batch_norm`.
        * With momentum 0 the average is w.

    Args:
        inner_optimizer: keras.optimizers.Optimizer that is not built yet, or str. What trains, or
            its name.
        momentum: float in [0, 1). The weight of the old average. Defaults to 0.999.
        weight_decay: float >= 0. L2 coefficient, added to the gradient. None means 0. Defaults to
            0.0.
        skip_nonfinite: bool. Whether a minibatch whose gradient is not finite is left out. Defaults
            to False.
        learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on the step
            size of the weights in whose paths the expressions are found. Defaults to None, which
            means 1 everywhere.
        name: str. Name of the optimizer. Defaults to "ema".
        **kwargs: Arguments of every Keras optimizer but those of its average: `clipnorm`,
            `clipvalue`, `global_clipnorm`, `loss_scale_factor`, `gradient_accumulation_steps`.

    Raises:
        ValueError: An argument is out of range, or the inner optimizer cannot be wrapped.
    """

    _anchor_words: ClassVar[str] = "their moving average"

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        momentum: float = 0.999,
        weight_decay: float | None = 0.0,
        skip_nonfinite: bool = False,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        name: str = "ema",
        **kwargs: Unpack[KerasOptions],
    ) -> None:
        own = sorted({"use_ema", "ema_momentum", "ema_overwrite_frequency"} & set(kwargs))
        if own:
            raise ValueError(f"`{own[0]}` is what EMA sets itself: give it `momentum` instead.")
        super().__init__(
            inner_optimizer,
            weight_decay=weight_decay,
            skip_nonfinite=skip_nonfinite,
            learning_rate_multipliers=learning_rate_multipliers,
            name=name,
            use_ema=True,
            ema_momentum=_checks.real("momentum", momentum, at_least=0, below=1),
            ema_overwrite_frequency=None,
            **kwargs,
        )
        self._complete(_Averaged(self, scalar(self, "phase", "int64")))

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
        self._step_of_wrapped(distribution, gradients, learning_rate)
        # Keras averages all weights, whether or not they have a gradient.
        walk.set_members(distribution, walk.trainable_mask())
        self._set_phase(distribution, tf.ones([], tf.int64))

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Leave the model at the average at the end of `fit`."""
        del var_list
        # Keras would overwrite the weights, from which the next `fit` goes on.
        self._swap.place("anchor")
        self.outer_optimizer.finalize_variable_values([])

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, serialised."""
        config = super().get_config()
        for name in ("use_ema", "ema_momentum", "ema_overwrite_frequency"):
            del config[name]
        return config

    def _arguments(self) -> dict[str, Any]:
        return {"momentum": self.ema_momentum}
