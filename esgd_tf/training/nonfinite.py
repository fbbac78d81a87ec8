"""A minibatch that gives NaN or infinity, left out as if it had not been there.

The optimizer leaves its weights and slots alone (`LocalEntropy(skip_nonfinite=True)`, or Keras'
`LossScaleOptimizer`). But by then the forward pass has moved BatchNormalization's statistics, and
the loss has gone into the epoch's mean: one NaN there stays for good. So both are put back.
"""

from __future__ import annotations

import functools
from typing import Any

import keras
import tensorflow as tf

from esgd_tf import _keras

__all__ = ["skip_nonfinite"]


def skip_nonfinite(model: keras.Model) -> keras.Model:
    """Undo what a minibatch that its optimizer skips does to the rest of the model.

    Where the optimizer did not count the step, every variable that is not trained (moving
    statistics, random states) and every metric returns to its value before it. Whether it counted
    is decided by the gradient summed over all devices, so all of them do the same.

    Examples:
        >>> from esgd_tf import training
        >>> model = make_model()
        >>> model.compile(optimizer=esgd_tf.EntropySGD(skip_nonfinite=True), loss="mse")
        >>> training.skip_nonfinite(model).fit(dataset)

    Args:
        model: keras.Model. A compiled and built model, changed in place. Call this before
            `enable_multi_worker`, and again after another `compile`.

    Returns:
        The model.

    Raises:
        ValueError: The model is not compiled, or its optimizer accumulates gradients: then it is
            only known at the last of several minibatches whether their step is taken.
    """
    if getattr(model.optimizer, "gradient_accumulation_steps", None):
        raise ValueError(
            "What a skipped minibatch did cannot be undone with `gradient_accumulation_steps`: "
            "leave one of the two out."
        )
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            f"The model {model.name!r} has no optimizer that tells which minibatches it skips: "
            "compile it with one first."
        )
    plain_step = model.train_step
    if getattr(plain_step, "restores_skipped", False):
        return model

    @functools.wraps(plain_step)
    def train_step(data: Any) -> dict[str, Any]:
        # Metrics make their variables when first used; here they are wanted before.
        _keras.symbolic_build(model, data)
        optimizer = model.optimizer
        # `iterations` of the optimizer proper, which counts minibatches also where Keras'
        # property of that name counts accumulated gradients.
        counter = _keras.counter_of(getattr(optimizer, "inner_optimizer", optimizer)).value
        before = tf.identity(counter)
        variables = [*model.non_trainable_variables, *model.metrics_variables]
        state = list({id(variable): variable for variable in variables}.values())
        kept = [tf.identity(tf.convert_to_tensor(variable.value)) for variable in state]
        logs = plain_step(data)
        taken = tf.not_equal(before, counter)
        for variable, value in zip(state, kept, strict=True):
            variable.assign(tf.where(taken, variable.value, value))
        # The step's result is kept, except for the metrics, which have been reset.
        restored = model.get_metrics_result()
        return {name: restored.get(name, value) for name, value in logs.items()}

    train_step.restores_skipped = True  # type: ignore[attr-defined]
    model.train_step = train_step
    model.train_function = None
    return model
