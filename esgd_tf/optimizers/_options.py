"""The arguments that every Keras optimizer has, so that type checkers and editors know them."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["KerasOptions"]


class KerasOptions(TypedDict, total=False):
    """Arguments of every Keras optimizer, with the meaning that Keras gives them.

    Attributes:
        clipnorm: The largest norm of the gradient of a weight.
        clipvalue: The largest absolute value in a gradient.
        global_clipnorm: The largest norm of all gradients together.
        use_ema: Whether an exponential moving average of the weights is kept.
        ema_momentum: The weight of the old average.
        ema_overwrite_frequency: Steps after which the weights become the average.
        loss_scale_factor: A factor on the loss, which the gradients are divided by again.
        gradient_accumulation_steps: Minibatches whose gradients make one step.
    """

    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
