"""Everything that this library uses of Keras and TensorFlow and that neither of them promises.

No other module uses a name with a leading underscore that is not ours (a test sees to it). Each
function below says what the private name does and why no public name does it. Where a release of
Keras lacks one, importing this module says so in one sentence.

Tried on Keras 3.12.4, 3.13.2, 3.14.1, 3.15.0 and 3.15.1 with TensorFlow 2.21, which wants 3.12
or later: training, resuming, replicas, mixed precision and the landscape tools work on all of them.
(Muon inside a `LocalEntropy` needs 3.13, as Muon alone does on TensorFlow.) Keras 3.16 rewrites two
of the paths below, so setup.cfg ends before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from esgd_tf._extras import require

require("esgd_tf", "tensorflow", "tensorflow", "keras")

import keras
import tensorflow as tf

__all__ = [
    "call_in_training",
    "clipped",
    "compiled_loss",
    "counter_of",
    "dataset_of_arrays",
    "decoupled_weight_decay",
    "given_learning_rate",
    "has_graph",
    "has_own",
    "initial_epoch",
    "is_in_multi_worker_mode",
    "layers_in",
    "loss_in_training",
    "loss_scale_of",
    "loss_tracker",
    "moving_averages",
    "new_seed",
    "number_of",
    "outside_replicas",
    "own_variables",
    "policy_of",
    "regularization_losses",
    "replace_symbolic_build",
    "require_compiled",
    "run_through_graph",
    "scalars_besides_counters",
    "see_loss",
    "set_policy",
    "strategy_of",
    "sublayers",
    "symbolic_build",
    "take_empty_step",
    "track",
    "trained_by",
    "uses_weight_decay",
]

# Methods that `keras.optimizers.Optimizer` must have: they are used here, or overridden as hooks
# by `LocalEntropy`.
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

# What `keras.Model` and `keras.Layer` must have.
_MODEL = (
    "_assert_compile_called",
    "_compute_loss",
    "_get_regularization_losses",
    "_symbolic_build",
)
_LAYER = ("_flatten_layers",)

_missing = [
    f"{kind.__name__}.{name}"
    for kind, names in (
        (keras.optimizers.Optimizer, _OPTIMIZER), (keras.Model, _MODEL), (keras.Layer, _LAYER)
    )
    for name in names
    if not hasattr(kind, name)
]  # fmt: skip
if _missing:
    raise ImportError(
        f"esgd_tf needs Keras 3.12 to 3.15 on the TensorFlow backend: Keras {keras.__version__} on "
        f"the {keras.backend.backend()!r} backend has no {_missing[0]}. Set "
        "KERAS_BACKEND=tensorflow, or install keras 3.15."
    )


# ---- optimizers ---------------------------------------------------------------------------------


def strategy_of(optimizer: keras.optimizers.Optimizer) -> tf.distribute.Strategy:
    """Return the strategy in whose scope an optimizer was made; Keras keeps it to itself."""
    return optimizer._distribution_strategy


def trained_by(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the weights that an optimizer was built on, in the order of its slots."""
    return optimizer._trainable_variables


def own_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the variables that an optimizer itself made, not those of a wrapped optimizer."""
    return optimizer._variables


def number_of(optimizer: keras.optimizers.Optimizer, variable: tf.Variable) -> int:
    """Return the number of a weight in `trained_by`; a device's copy has the same number."""
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


def given_learning_rate(optimizer: keras.optimizers.Optimizer) -> Any:
    """Return an optimizer's learning rate as it was given: `learning_rate` evaluates a schedule."""
    return optimizer._learning_rate


def loss_scale_of(optimizer: keras.optimizers.Optimizer) -> float | None:
    """Return the factor by which mixed_float16 scales the loss; None where it is not scaled."""
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or not optimizer.built:
        return None
    return float(keras.ops.convert_to_numpy(optimizer.dynamic_scale))


def track(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> None:
    """Let an optimizer save a variable that was made elsewhere: `add_variable` makes new ones."""
    optimizer._track_variable(variable)


# ---- layers and models --------------------------------------------------------------------------


def layers_in(layer: keras.Layer) -> list[keras.Layer]:
    """Return a layer and all layers in it, at any depth; `Model.layers` has one level only."""
    return list(layer._flatten_layers())


def sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """Return the layers that a layer keeps as its attributes, one level deep."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def has_graph(model: keras.Model) -> bool:
    """Return whether a model is functional, so that `run_through_graph` goes through its layers."""
    return hasattr(model, "_run_through_graph")


def run_through_graph(model: keras.Model, inputs: Any, call: Callable[..., Any]) -> Any:
    """Call the layers of a functional model one after the other, each as `call(layer, ...)`.

    `keras.models.clone_model` offers the same, but compiles the copy, with a copy of the optimizer.

    Args:
        model: keras.Model. A functional model.
        inputs: nested structure of tensors. Its inputs.
        call: callable. Given a layer (or another operation) and its arguments, returns its outputs.

    Returns:
        The outputs, in the structure of the model's.
    """
    return model._run_through_graph(inputs, call_fn=call)


def policy_of(layer: keras.Layer) -> keras.DTypePolicy:
    """Return the dtype policy object of a layer: `dtype_policy` makes a copy of a quantized one."""
    return layer._dtype_policy


def set_policy(layer: keras.Layer, policy: keras.DTypePolicy) -> None:
    """Give a layer another dtype policy, which the public setter refuses for a layer in use."""
    layer._dtype_policy = policy


def regularization_losses(model: keras.Model) -> list[tf.Tensor]:
    """Return the terms of the loss that the weights' regularizers give; `losses` has others too."""
    return model._get_regularization_losses()


def compiled_loss(model: keras.Model) -> tuple[Any, Any]:
    """Return the loss and the loss weights that `compile` was given; None for each that was not.

    Keras keeps the weights of losses nowhere else.
    """
    compiled = getattr(model, "_compile_loss", None)
    return getattr(compiled, "_user_loss", None), getattr(compiled, "_user_loss_weights", None)


def loss_tracker(model: keras.Model) -> keras.metrics.Metric | None:
    """Return the metric that averages the loss; each `compile` makes a new one."""
    return getattr(model, "_loss_tracker", None)


def call_in_training(model: keras.Model, x: Any) -> Any:
    """Return a model's outputs in training mode, as Keras' training step calls it.

    Args:
        model: keras.Model. The model; its `call` need not have an argument `training`.
        x: nested structure of tensors. The inputs.
    """
    return model(x, training=True) if model._call_has_training_arg else model(x)


def loss_in_training(
    model: keras.Model, x: Any, y: Any, outputs: Any, sample_weight: Any
) -> tf.Tensor:
    """Return the loss as Keras' training step computes it.

    The public `compute_loss` may be overridden without the argument `training`.

    Args:
        model: keras.Model. The compiled model.
        x: nested structure of tensors. The inputs.
        y: nested structure of tensors. The targets.
        outputs: nested structure of tensors. What the model returned.
        sample_weight: nested structure of tensors. Weights of the examples; None for none.
    """
    return model._compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True)


def see_loss(model: keras.Model, loss: tf.Tensor, examples: tf.Tensor) -> None:
    """Let the metric that averages the loss see one more minibatch.

    Under tf.distribute a loss is a device's part of the sum over all: the mean wants it whole.

    Args:
        model: keras.Model. The compiled model.
        loss: float scalar tensor. What `loss_in_training` returned.
        examples: int scalar tensor. The examples of the minibatch, on this device.
    """
    devices = tf.distribute.get_strategy().num_replicas_in_sync
    if devices > 1:
        loss = loss * tf.cast(devices, loss.dtype)
    tracker = loss_tracker(model)
    if tracker is not None:
        tracker.update_state(loss, sample_weight=examples)


def require_compiled(model: keras.Model, method: str) -> None:
    """Raise Keras' own error if a model is not compiled.

    Args:
        model: keras.Model. The model.
        method: str. The name of the method that needs it, for the message.
    """
    model._assert_compile_called(method)


def initial_epoch(model: keras.Model) -> int | None:
    """Return the epoch at which `BackupAndRestore` lets a `fit` begin that is under way."""
    return model._initial_epoch


def symbolic_build(model: keras.Model, data: Any) -> None:
    """Build the model's weights and its metrics for a minibatch, without computing anything.

    Args:
        model: keras.Model. The model.
        data: nested structure of tensors. A minibatch, as `train_step` takes it.
    """
    model._symbolic_build(data_batch=data)


def replace_symbolic_build(model: keras.Model, build: Callable[..., None]) -> None:
    """Let `fit` call `build(iterator=..., data_batch=...)` where it would build the model.

    Keras' own fails for the values of several processes (keras issue 20585).
    """
    model._maybe_symbolic_build = build


# ---- data and strategies ------------------------------------------------------------------------


def dataset_of_arrays(arrays: Sequence[Any], batch_size: int) -> tf.data.Dataset:
    """Return arrays as the batches that `fit` and `evaluate` would cut them into, in order.

    Args:
        arrays: sequence of arrays or nested structures of arrays. What `fit` takes as x, y and
            sample_weight.
        batch_size: int >= 1. Examples of a batch.
    """
    adapter = keras.src.trainers.data_adapters.array_data_adapter.ArrayDataAdapter
    return adapter(*arrays, batch_size=batch_size).get_tf_dataset()


def is_in_multi_worker_mode(strategy: tf.distribute.Strategy) -> bool:
    """Return whether a MultiWorkerMirroredStrategy joins more than this one process."""
    return bool(strategy.extended._in_multi_worker_mode())
