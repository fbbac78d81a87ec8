"""Which of our optimizers train a model, wherever it keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import keras

if TYPE_CHECKING:
    from esgd_tf.optimizers._wrapping import WrappingOptimizer

__all__ = ["has_replicas", "of_model", "of_optimizer"]


def of_optimizer(optimizer: keras.optimizers.Optimizer | None) -> list[WrappingOptimizer]:
    """Return the `LocalEntropy`s and rivals in an optimizer: itself, or those that it wraps."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return of_optimizer(optimizer.inner_optimizer)
    if hasattr(type(optimizer), "gradient_evaluations_per_step"):
        return [cast("WrappingOptimizer", optimizer)]
    # Those of Keras' MultiOptimizer.
    inner = getattr(optimizer, "optimizers", None)
    return [] if inner is None else [found for one in inner for found in of_optimizer(one)]


def of_model(model: keras.Model) -> list[WrappingOptimizer]:
    """Return those of a model: in `model.optimizer`, and in its attributes."""
    candidates = [getattr(model, "optimizer", None)]
    if not has_replicas(model):
        for name, value in vars(model).items():
            if not name.startswith("_compile"):
                candidates += _flat(value)
    found = [optimizer for one in candidates for optimizer in of_optimizer(one)]
    return list({id(optimizer): optimizer for optimizer in found}.values())


def has_replicas(model: keras.Model) -> bool:
    """Return whether this is a model of replicas: they look after their own optimizers."""
    return hasattr(getattr(model, "optimizer", None), "replicas")


def _flat(value: Any) -> list[keras.optimizers.Optimizer]:
    if isinstance(value, Mapping):
        value = list(value.values())
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, keras.optimizers.Optimizer)]
