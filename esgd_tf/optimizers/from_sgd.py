"""An Entropy-SGD made from an SGD and its schedule, by the recipe of the papers.

With the SGD's learning rate lr(k) at gradient evaluation k, its momentum m and its (decoupled)
weight decay λ, the Entropy-SGD has, at outer update t,

    langevin_learning_rate = lr(0)                     the inner loop steps as the SGD does
    learning_rate(t)       = rate lr(L t) / lr(0)      the outer step size follows the schedule
    momentum, nesterov     = as in the SGD             in the inner loop
    weight_decay           = λ (1 - m)                 an L2 term

An L2 term goes through the momentum and so acts 1 / (1 - m) times as much, a decoupled decay does
not. The paper's recipes for All-CNN are related in this way, but for the places of the drops: SGD
has 0.1, a fifth of it after every 60 epochs; Entropy-SGD has 0.1 inside, constant, and outside 1, a
fifth of it after every 80 effective epochs.

Source: Chaudhari et al., ICLR 2017, arXiv 1611.01838, the section on experiments.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from esgd_tf import _checks, _keras
from esgd_tf.optimizers.entropy_sgd import EntropySGD

__all__ = ["OuterSchedule", "from_sgd"]


@keras.saving.register_keras_serializable(package="esgd_tf")
class OuterSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule over gradient evaluations, read at outer updates and scaled.

    At outer update t it returns scale schedule(langevin_steps t).

    Args:
        schedule: keras.optimizers.schedules.LearningRateSchedule. Counts gradient evaluations.
        langevin_steps: int >= 1. L, the gradient evaluations per outer update.
        scale: float > 0. The factor.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        schedule: keras.optimizers.schedules.LearningRateSchedule,
        langevin_steps: int,
        scale: float,
    ) -> None:
        self.schedule = schedule
        self.langevin_steps = _checks.integer("langevin_steps", langevin_steps, at_least=1)
        self.scale = _checks.real("scale", scale, above=0)

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        """Return the outer step size.

        Args:
            step: int, or a scalar tensor. t, the number of outer updates so far.
        """
        return self.scale * self.schedule(step * self.langevin_steps)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "schedule": keras.optimizers.schedules.serialize(self.schedule),
            "langevin_steps": self.langevin_steps,
            "scale": self.scale,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OuterSchedule:
        """Rebuild the schedule from `get_config`."""
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(schedule, config["langevin_steps"], config["scale"])


def from_sgd(
    optimizer: keras.optimizers.SGD,
    langevin_steps: int = 20,
    *,
    learning_rate: float = 1.0,
    **options: Any,
) -> EntropySGD:
    """Make an Entropy-SGD from an SGD and its schedule, for the same number of epochs.

    The top of this module has the equations. The other options that both optimizers have (clipping,
    averaging of weights, gradient accumulation, loss scaling) are carried over.

    Examples:
        >>> sgd = keras.optimizers.SGD(
        ...     keras.optimizers.schedules.PiecewiseConstantDecay([3000, 6000], [0.1, 0.02, 0.004]),
        ...     momentum=0.9,
        ...     nesterov=True,
        ... )
        >>> model.compile(optimizer=esgd_tf.from_sgd(sgd, 20, gamma=0.03), loss=loss)

    Args:
        optimizer: keras.optimizers.SGD that is not built yet. The SGD.
        langevin_steps: int >= 0. L, gradient evaluations per outer update. With 0 the result is the
            SGD itself, with its weight decay as an L2 term. Defaults to 20.
        learning_rate: float > 0. The outer step size at the start. Defaults to 1.0.
        **options: Arguments of `EntropySGD`, such as `gamma` and `scoping`. They replace the values
            made from the SGD.

    Returns:
        The optimizer, which is not built.

    Raises:
        ValueError: The optimizer is no SGD, is built already, or its learning rate starts at 0.
    """
    langevin_steps = _checks.integer("langevin_steps", langevin_steps, at_least=0)
    rate = _checks.real("learning_rate", learning_rate, above=0)
    if type(optimizer) is not keras.optimizers.SGD:
        raise ValueError(
            f"`optimizer` must be a keras.optimizers.SGD; got {type(optimizer).__name__}. For "
            "other optimizers use LocalEntropy(optimizer, ...)."
        )
    if optimizer.built:
        raise ValueError("`optimizer` is built already: give one that no model was trained with.")
    config = optimizer.get_config()
    given = _keras.given_learning_rate(optimizer)
    start = float(given(0)) if callable(given) else float(given)
    if start <= 0:
        raise ValueError(
            "The learning rate of the SGD starts at 0, as of a warm-up, which has no counterpart "
            "in the inner loop: give `optimizer` the schedule after it."
        )
    momentum = config["momentum"]
    carried = {name: config[name] for name in _CARRIED}
    carried["weight_decay"] = (config["weight_decay"] or 0.0) * (1 - momentum)
    if langevin_steps == 0:
        carried.update(
            learning_rate=given if callable(given) else start,
            outer_momentum=momentum,
            outer_nesterov=config["nesterov"],
        )
    else:
        carried.update(
            learning_rate=OuterSchedule(given, langevin_steps, rate / start)
            if callable(given)
            else rate,
            langevin_learning_rate=start,
            momentum=momentum,
            nesterov=config["nesterov"],
        )
    return EntropySGD(langevin_steps=langevin_steps, **{**carried, **options})


# Options that every Keras optimizer has.
_CARRIED = (
    "clipnorm",
    "global_clipnorm",
    "clipvalue",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)
