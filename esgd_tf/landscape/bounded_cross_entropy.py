"""A cross entropy that no example can make large, as privacy demands of a loss.

    ℓ = -ln ψ(p_y),   ψ(p) = e^{-L} + (1 - 2 e^{-L}) p

with p_y the probability that the network gives to the right class. ψ keeps away from 0 and 1, so
that ℓ lies between -ln(1 - e^{-L}) and L.

Source: Dziugaite and Roy, "Entropy-SGD optimizes the prior of a PAC-Bayes bound", ICML 2018,
appendix B.2.1 (there L_max = 4).
"""

from __future__ import annotations

import math
from typing import Any

import keras

from esgd_tf import _checks

__all__ = ["BoundedCrossEntropy"]


@keras.saving.register_keras_serializable("esgd_tf")
class BoundedCrossEntropy(keras.losses.Loss):
    """The bounded cross entropy of classes, for `compile` and for `private_prior_bound`.

    Args:
        limit: float > 0.7. L, above ln 2. The loss lies between -ln(1 - e^{-L}) and L. Defaults to
            4.0.
        from_logits: bool. Whether the network's outputs are logits, not probabilities. Defaults to
            True.
        name: str. A name for the loss. Defaults to "bounded_cross_entropy".
        **kwargs: `reduction` and `dtype`, for `keras.losses.Loss`.
    """

    def __init__(
        self,
        limit: float = 4.0,
        from_logits: bool = True,
        name: str = "bounded_cross_entropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.limit = _checks.real("limit", limit, above=math.log(2))
        self.from_logits = _checks.boolean("from_logits", from_logits)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each example.

        Args:
            y_true: tensor of integers of shape [n] or [n, 1]. The classes.
            y_pred: tensor of shape [n, classes]. The network's outputs.
        """
        ops = keras.ops
        p = ops.softmax(y_pred) if self.from_logits else y_pred
        y = ops.cast(ops.reshape(y_true, ops.shape(y_pred)[:-1]), "int32")
        right = ops.sum(p * ops.one_hot(y, y_pred.shape[-1], dtype=p.dtype), axis=-1)
        least = math.exp(-self.limit)
        return -ops.log(least + (1 - 2 * least) * right)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this loss again."""
        return {**super().get_config(), "limit": self.limit, "from_logits": self.from_logits}
