"""The error rate: which predictions are wrong, where the loss says how to read them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.landscape._types import Loss, Nested

__all__ = ["error_of"]

# Names of Keras' losses in small letters without underscores, so that classes, functions and
# strings are the same.
_ONE_OF_MANY = {
    "categoricalcrossentropy", "categoricalfocalcrossentropy", "categoricalgeneralizedcrossentropy",
    "categoricalhinge", "sparsecategoricalcrossentropy", "kldivergence", "kld",
}  # fmt: skip
_YES_OR_NO = {"binarycrossentropy", "bce", "binaryfocalcrossentropy", "dice", "tversky"}
_SIGN = {"hinge", "squaredhinge"}
_BY_SHAPE = {"crossentropy", "ce"}
_NO_CLASSES = {
    "meansquarederror", "mse", "meanabsoluteerror", "mae", "meanabsolutepercentageerror", "mape",
    "meansquaredlogarithmicerror", "msle", "huber", "logcosh", "cosinesimilarity", "poisson",
    "circle", "ctc",
}  # fmt: skip


def error_of(loss: Loss) -> Callable[[Nested, Nested], tf.Tensor]:
    """Return the error rate of a network that is trained by a loss.

    A function of (y_true, y_pred) that gives 1 where a prediction is wrong, else 0, and NaN where
    it is NaN (`argmax` would take that for class 0):

        cross entropies of classes     the class of the largest output, against a class or one-hot
        binary ones                    outputs above 0.5, or above 0 if they are logits
        hinge                          outputs above 0; labels are -1 and 1, or 0 and 1
        others, or no loss             the class of the largest output, of two or more

    Args:
        loss: nested structure of losses. What the model was compiled with.

    Raises:
        ValueError: The loss is one of regression, or the model has several.
    """
    if keras.tree.is_nested(loss):
        parts = [part for part in keras.tree.flatten(loss) if part is not None]
        if len(parts) != 1:
            raise ValueError(
                f"The model has {len(parts)} losses, one for each of several outputs, and no error "
                "rate: give a metric of your own."
            )
        (loss,) = parts
    name = _name_of(loss)
    if name in _NO_CLASSES:
        raise ValueError(
            f"The loss {_shown(loss)} knows no classes, so there is no error rate: measure 'loss', "
            "or give a metric of your own."
        )
    if name in _YES_OR_NO:
        rule = _Rule(threshold=0.0 if getattr(loss, "from_logits", False) else 0.5, middle=0.5)
    elif name in _SIGN:
        rule = _Rule(threshold=0.0, middle=0.0)
    elif name in _BY_SHAPE:  # binary if there is one output
        rule = _Rule(threshold=0.5, middle=0.5, independent=False)
    else:
        rule = _Rule(threshold=None, independent=False)
    return lambda y, predictions: error(y, predictions, rule)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """How an output is read as a yes or no.

    Attributes:
        threshold: Outputs above this are a yes; None if the loss does not tell.
        middle: Labels above this are a yes: 0.5 between 0 and 1, 0 between -1 (or 0) and 1.
        independent: Whether each of several outputs is a yes or no of its own.
    """

    threshold: float | None
    middle: float = 0.5
    independent: bool = True


def error(y: tf.Tensor, predictions: Nested, rule: _Rule) -> tf.Tensor:
    """Return 1 for each prediction that is wrong, else 0; NaN where it is NaN.

    Args:
        y: tensor of classes of shape [n, ...] or [n, ..., 1], or one-hot of shape [n, ...,
            classes]. The targets.
        predictions: tensor of shape [n, ..., classes], or [n, ..., 1] or [n] for yes or no. The
            network's outputs.
        rule: _Rule. How single outputs are read.

    Raises:
        ValueError: There is no telling which predictions are wrong.
    """
    if keras.tree.is_nested(predictions):
        raise ValueError(
            "The model has several outputs and no single error rate: give a metric of your own."
        )
    outputs: tf.Tensor = tf.convert_to_tensor(predictions)
    single = outputs.shape.rank == 1 or outputs.shape[-1] == 1
    if single and rule.threshold is None:
        raise ValueError(
            "The model has one output for each example, and its loss does not tell from which "
            "value on it stands for a yes: give a metric of your own."
        )
    if single or rule.independent:
        wanted = tf.reshape(tf.cast(y, tf.float32), tf.shape(outputs)) > rule.middle
        wrong = tf.cast(tf.not_equal(outputs > rule.threshold, wanted), tf.float32)
        wrong = tf.where(tf.math.is_nan(outputs), np.nan, wrong)
        return wrong if outputs.shape.rank == 1 or not single else tf.squeeze(wrong, -1)
    predicted = tf.argmax(outputs, axis=-1)
    y = tf.convert_to_tensor(y)
    one_hot = y.shape.rank == outputs.shape.rank and y.shape[-1] == outputs.shape[-1]
    wanted = tf.argmax(y, axis=-1) if one_hot else tf.reshape(y, tf.shape(predicted))
    wrong = tf.cast(tf.not_equal(predicted, tf.cast(wanted, tf.int64)), tf.float32)
    nothing = tf.reduce_any(tf.math.is_nan(outputs), axis=-1)
    return tf.where(nothing, np.nan, wrong)


def _name_of(loss: Loss) -> str:
    if loss is None:
        return ""
    if isinstance(loss, str):
        name = loss
    elif inspect.isclass(loss):
        name = loss.__name__
    elif isinstance(loss, keras.losses.Loss):
        # Only Keras' own: a class of the user's may be called like one of them.
        name = type(loss).__name__ if type(loss).__module__.startswith("keras.") else ""
        if name == "LossFunctionWrapper":
            name = loss.name
    else:
        module = getattr(loss, "__module__", "") or ""
        name = getattr(loss, "__name__", "") if module.startswith("keras.") else ""
    return name.replace("_", "").lower()


def _shown(loss: Loss) -> str:
    if isinstance(loss, str):
        return repr(loss)
    return getattr(loss, "__name__", type(loss).__name__)
