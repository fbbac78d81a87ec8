"""Everything that this library uses of Keras and TensorFlow and that neither of them promises.

No other module uses a name with a leading underscore that is not ours (a test sees to it). Each
function below says what the private name does and why no public name does it. Where a release of
Keras lacks one, importing this module says so in one sentence.

Tried on Keras 3.15.1 with TensorFlow 2.21.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

__all__ = [
    "clipped",
    "counter_of",
    "decoupled_weight_decay",
    "has_own",
    "moving_averages",
    "new_seed",
    "number_of",
    "outside_replicas",
    "own_variables",
    "scalars_besides_counters",
    "strategy_of",
    "take_empty_step",
    "trained_by",
    "uses_weight_decay",
]

# What `keras.optimizers.Optimizer` must have, here or as a hook that `LocalEntropy` overrides.
#
# `_distributed_tf_update_step` is the one hook: Keras reduces the gradients over the devices, then
# calls it once, outside any replica. The phases of the inner loop branch there; around the public
# `apply` a conditional fails under tf.distribute (merge_call), and the public `update_step` is
# called inside the replicas, one variable at a time.
_OPTIMIZER = (
    "_apply_weight_decay",
    "_backend_apply_gradients",
    "_backend_update_step",
    "_clip_gradients",
    "_distributed_tf_update_step",
    "_get_variable_index",
    "_update_model_variables_moving_average",
    "_use_weight_decay",
)

_missing = [name for name in _OPTIMIZER if not hasattr(keras.optimizers.Optimizer, name)]
if _missing:
    raise ImportError(
        f"esgd_tf needs Keras 3.15 or a release like it on the TensorFlow backend: Keras "
        f"{keras.__version__} on the {keras.backend.backend()!r} backend has no "
        f"Optimizer.{_missing[0]}. Set KERAS_BACKEND=tensorflow, or install keras 3.15."
    )


# ---- optimizers ---------------------------------------------------------------------------------


def strategy_of(optimizer: keras.optimizers.Optimizer) -> tf.distribute.Strategy:
    """Return the strategy in whose scope an optimizer was made; Keras keeps it to itself."""
    return optimizer._distribution_strategy


def trained_by(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the weights that an optimizer was built on, in the order of its slots."""
    return optimizer._trainable_variables


def own_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the variables that an optimizer itself made, without those of one that it wraps."""
    return optimizer._variables


def number_of(optimizer: keras.optimizers.Optimizer, variable: tf.Variable) -> int:
    """Return the number of a weight among those of `trained_by`; a device's part counts as it."""
    return optimizer._get_variable_index(variable)


def counter_of(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """Return the counter of minibatches; `iterations` is divided by the accumulation steps."""
    return optimizer._iterations


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the averages that `use_ema` keeps, one for each weight of `trained_by`."""
    return optimizer._model_variables_moving_average


def uses_weight_decay(optimizer: keras.optimizers.Optimizer, weight: keras.Variable) -> bool:
    """Return whether `exclude_from_weight_decay` has left a weight in."""
    return optimizer._use_weight_decay(weight)


def decoupled_weight_decay(
    optimizer: keras.optimizers.Optimizer, weight: keras.Variable
) -> float | None:
    """Return the decoupled weight decay that `apply` would give a weight; None for none.

    Muon decays the weights that it leaves to Adam by another coefficient.
    """
    weight_decay = optimizer.weight_decay
    if isinstance(optimizer, keras.optimizers.Muon) and optimizer._should_use_adamw(weight):
        weight_decay = optimizer.adam_weight_decay
    if weight_decay is None or not optimizer._use_weight_decay(weight):
        return None
    return weight_decay


def clipped(optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any]) -> list[Any]:
    """Return gradients clipped by an optimizer's own options, as its `apply` does."""
    return optimizer._clip_gradients(gradients)


def has_own(optimizer: keras.optimizers.Optimizer, hook: str) -> bool:
    """Return whether an optimizer's class overrides a method of the base class."""
    return getattr(type(optimizer), hook) is not getattr(keras.optimizers.Optimizer, hook)


def scalars_besides_counters(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the scalars of an optimizer that are neither its counter nor its learning rate."""
    own = (optimizer._iterations, optimizer._learning_rate)
    return [
        v for v in optimizer.variables if len(v.shape) == 0 and not any(v is one for one in own)
    ]


def take_empty_step(optimizer: keras.optimizers.Optimizer) -> None:
    """Take a step of an optimizer with no weights: what it keeps besides them moves on."""
    optimizer._backend_update_step([], [], optimizer.learning_rate)


def outside_replicas(
    optimizer: keras.optimizers.Optimizer, function: Callable[..., None], *arguments: Any
) -> None:
    """Call `function(strategy, *arguments)` once for all replicas, as Keras' own `apply` does."""
    tf.__internal__.distribute.interim.maybe_merge_call(
        function, strategy_of(optimizer), *arguments
    )


def new_seed() -> int:
    """Return a seed from Keras' global generator, which `keras.utils.set_random_seed` sets."""
    return keras.src.random.seed_generator.make_default_seed()
