"""GSAM: SAM that also lowers the gap between the loss at w + e and the loss at w.

With g_0 = g(w), g_s = g(w + e) as in SAM, and ĝ_s = g_s / ‖g_s‖,

    v = g_0 - (g_0 · ĝ_s) ĝ_s           the part of g_0 at right angles to g_s
    w ← the inner optimizer's step at w with the gradient g_s - alpha v

Along v the loss at w + e does not change to first order, while the loss at w rises: the gap between
the two shrinks. The paper lets rho follow the learning rate,

    (rho - rho_min) / (rho_max - rho_min) = (lr - lr_min) / (lr_max - lr_min).

Source: Zhuang et al., "Surrogate gap minimization improves sharpness-aware training", ICLR 2022,
Algorithm 1, and its released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import keras
import tensorflow as tf

from esgd_tf import _checks
from esgd_tf.baselines._gradients import Gradients
from esgd_tf.baselines.sam import SharpnessAware, perturbation
from esgd_tf.optimizers._options import KerasOptions

__all__ = ["GSAM", "surrogate_gap_gradient"]


def surrogate_gap_gradient(first: Sequence[Any], second: Sequence[Any], alpha: float) -> Gradients:
    """Return g_s - alpha v for each weight.

    Args:
        first: sequence of tensors. g_0 = g(w), None where there is no gradient.
        second: sequence of tensors of the same shapes. g_s = g(w + e), None likewise.
        alpha: float. The weight of v.
    """
    both = [
        (tf.convert_to_tensor(a), tf.convert_to_tensor(b))
        for a, b in zip(first, second, strict=True)
        if a is not None and b is not None
    ]
    product = tf.add_n([tf.reduce_sum(_wide(a) * _wide(b)) for a, b in both])
    square = tf.add_n([tf.reduce_sum(_wide(b) ** 2) for _, b in both])
    # (g_0 · ĝ_s) ĝ_s = share g_s
    share = tf.math.divide_no_nan(product, square)

    def combined(a: Any, b: Any) -> Any:
        if a is None or b is None:
            return b
        a, b = tf.convert_to_tensor(a), tf.convert_to_tensor(b)
        orthogonal = a - tf.cast(share, b.dtype) * b
        return b - tf.constant(alpha, b.dtype) * orthogonal

    return [combined(a, b) for a, b in zip(first, second, strict=True)]


@keras.saving.register_keras_serializable(package="esgd_tf")
class GSAM(SharpnessAware):
    """GSAM: SAM that also lowers the gap between the loss at w + e and the loss at w.

        v = g_0 - (g_0 · ĝ_s) ĝ_s,    and the inner optimizer's step at w with g_s - alpha v

    with g_0 = g(w), g_s = g(w + e) and e = rho g_0 / ‖g_0‖.

    Source: Zhuang et al., "Surrogate gap minimization improves sharpness-aware training", ICLR
    2022, Algorithm 1, and its released code.

    Note:
        See `SAM` for what holds for both. With `rho_min` rho follows the learning rate down to it,
        as in the paper: rho belongs to `learning_rate_max`, rho_min to `learning_rate_min`. Under
        tf.distribute each device takes v from its own part of the minibatch.

    Args:
        inner_optimizer: keras.optimizers.Optimizer that is not built yet, or str. What takes the
            step, or its name.
        rho: float >= 0. The radius of the perturbation, at the largest learning rate. Defaults to
            0.05.
        alpha: float >= 0. The weight of v. With 0 it is SAM. Defaults to 0.4.
        rho_min: float >= 0. The radius at the smallest learning rate. Defaults to None, which keeps
            rho.
        learning_rate_max: float > 0. The learning rate to which rho belongs. Needed with `rho_min`.
            Defaults to None.
        learning_rate_min: float >= 0. The learning rate to which rho_min belongs. Defaults to 0.0.
        synchronized: bool. Whether all devices share e. Defaults to False.
        weight_decay: float >= 0. L2 coefficient, added to the gradient of the step. None means 0.
            Defaults to 0.0.
        skip_nonfinite: bool. Whether a minibatch whose gradient is not finite is left out. Defaults
            to False.
        learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on the step
            size of the weights in whose paths the expressions are found. Defaults to None, which
            means 1 everywhere.
        name: str. Name of the optimizer. Defaults to "gsam".
        **kwargs: Arguments of every Keras optimizer; see `SAM`.

    Raises:
        ValueError: An argument is out of range, or the inner optimizer cannot be wrapped.
    """

    _fixed: ClassVar[set[str]] = SharpnessAware._fixed | {
        "alpha", "learning_rate_max", "learning_rate_min", "rho_min",
    }  # fmt: skip

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        rho: float = 0.05,
        alpha: float = 0.4,
        rho_min: float | None = None,
        learning_rate_max: float | None = None,
        learning_rate_min: float = 0.0,
        synchronized: bool = False,
        weight_decay: float | None = 0.0,
        skip_nonfinite: bool = False,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        name: str = "gsam",
        **kwargs: Unpack[KerasOptions],
    ) -> None:
        super().__init__(
            inner_optimizer,
            rho=rho,
            synchronized=synchronized,
            weight_decay=weight_decay,
            skip_nonfinite=skip_nonfinite,
            learning_rate_multipliers=learning_rate_multipliers,
            name=name,
            **kwargs,
        )
        self.alpha = _checks.real("alpha", alpha, at_least=0)
        self.rho_min = None if rho_min is None else _checks.real("rho_min", rho_min, at_least=0)
        self.learning_rate_min = _checks.real("learning_rate_min", learning_rate_min, at_least=0)
        self.learning_rate_max = learning_rate_max
        if rho_min is not None:
            if learning_rate_max is None:
                raise ValueError(
                    "`rho_min` needs `learning_rate_max`, the learning rate to which `rho` belongs."
                )
            self.learning_rate_max = _checks.real(
                "learning_rate_max", learning_rate_max, above=self.learning_rate_min
            )
        self._complete_without_walk()

    def perturbation(self, weights: Sequence[tf.Tensor], gradients: Sequence[Any]) -> Gradients:
        """Return e for each weight.

        Args:
            weights: sequence of tensors. w.
            gradients: sequence of tensors of the same shapes. g(w), None where there is none.
        """
        del weights
        offsets = perturbation(gradients, self.rho)
        if self.rho_min is None or self.learning_rate_max is None or self.rho == 0:
            return offsets
        rate = tf.cast(tf.convert_to_tensor(self.learning_rate), tf.float64)
        place = (rate - self.learning_rate_min) / (self.learning_rate_max - self.learning_rate_min)
        rho = self.rho_min + (self.rho - self.rho_min) * tf.clip_by_value(place, 0.0, 1.0)
        factor = rho / self.rho
        return [e if e is None else tf.cast(factor, e.dtype) * e for e in offsets]

    def _combined(self, first: Gradients, second: Gradients) -> Gradients:
        return surrogate_gap_gradient(first, second, self.alpha) if self.alpha else second

    def _arguments(self) -> dict[str, Any]:
        return {
            **super()._arguments(),
            "alpha": self.alpha,
            "rho_min": self.rho_min,
            "learning_rate_max": self.learning_rate_max,
            "learning_rate_min": self.learning_rate_min,
        }


def _wide(tensor: tf.Tensor) -> tf.Tensor:
    """Return a tensor in float64, for sums over all weights."""
    return tf.cast(tensor, tf.float64)
