"""Losses that note how they treat a batch: by each example, or as a whole.

Whether a loss compares the examples of a batch is known only when it is called: from the shape of
its values, from masks, and from its reduction. The losses that `compile` would take are replaced
here by ones of the same value that tell the `ModelLoss` they belong to.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from esgd_tf.landscape._types import Loss, Nested

if TYPE_CHECKING:
    from esgd_tf.landscape._model_loss import ModelLoss

__all__ = ["watched_losses"]

# Names for which Keras chooses one of several losses by the shapes.
_BY_SHAPE = ("crossentropy", "ce")
# Keras' losses that compare examples with each other, though they give a value for each.
_ACROSS_A_BATCH = (keras.losses.Circle, keras.losses.circle)


def watched_losses(losses: Loss, owner: ModelLoss) -> Loss:
    """Return losses as ones that note, when they are called, how they treat a batch.

    Args:
        losses: nested structure of losses. All that `compile` takes as a loss.
        owner: ModelLoss. What is told about the losses, through its `saw` and its attributes.

    Raises:
        ValueError: One of them is no loss.
    """
    return keras.tree.map_structure(lambda loss: _watched(loss, owner), losses)


def _watched(loss: Loss, owner: ModelLoss) -> Loss:
    if loss is None or (isinstance(loss, str) and loss.lower() in _BY_SHAPE):
        return loss
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            raise ValueError(f"Keras knows no loss named {loss!r}.") from None
    if inspect.isclass(loss) and issubclass(loss, keras.losses.Loss):
        loss = loss()
    kind = type(loss) if isinstance(loss, keras.losses.Loss) else loss
    owner.has_unknown_parts |= not str(getattr(kind, "__module__", "")).startswith("keras.")
    if kind in _ACROSS_A_BATCH:
        owner.depends_on_batches, owner.sees_examples = True, False
    if isinstance(loss, keras.losses.Loss):
        return _WatchedLoss(loss, owner)
    if not callable(loss):
        raise ValueError(
            "`loss` must be a Keras loss, its name, or a function of (y_true, y_pred), or a "
            f"list or dictionary of these, one for each output; got {loss!r}."
        )

    @functools.wraps(loss)
    def watched(y_true: Nested, y_pred: Nested) -> tf.Tensor:
        values = loss(y_true, y_pred)
        owner.saw(values)
        return values

    return watched


class _WatchedLoss(keras.losses.Loss):
    """A Keras loss with the value of another, which notes how that one treats a batch."""

    def __init__(self, inner: keras.losses.Loss, owner: ModelLoss) -> None:
        super().__init__(inner.name, inner.reduction, inner.dtype)
        self._inner, self._owner = inner, owner
        self._has_own_reduction = type(inner).__call__ is not keras.losses.Loss.__call__
        if self._has_own_reduction:
            owner.depends_on_batches, owner.sees_examples = True, False
        elif inner.reduction not in ("sum_over_batch_size", "mean"):
            owner.depends_on_batches = True

    def __call__(self, y_true: Nested, y_pred: Nested, sample_weight: Nested = None) -> tf.Tensor:
        if self._has_own_reduction:
            return self._inner(y_true, y_pred, sample_weight)
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Nested, y_pred: Nested) -> tf.Tensor:
        values = self._inner.call(y_true, y_pred)
        self._owner.saw(values)
        return values
