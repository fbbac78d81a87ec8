"""Ends a run whose numbers are not finite, before they are written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras

from esgd_tf.runs.errors import NotFiniteError
from esgd_tf.runs.trained import trained

if TYPE_CHECKING:
    from esgd_tf.runs.recorder import Recorder

__all__ = ["NotFiniteGuard"]

# This many skipped minibatches in a row end a run: they are no accident.
_HOPELESS = 100


class NotFiniteGuard(keras.callbacks.Callback):
    """Stops a run whose numbers are not finite. It must stand before a `Recorder`.

    With mixed_float16, Keras' loss scaling skips minibatches regularly: each time it
    halves the scale, until the scaled gradient fits. Such a skip is no reason to stop while the
    scale is above 1. With a smaller scale the gradient itself does not fit.

    Args:
        on_nan: "stop" at the first minibatch that was skipped because its gradient was not finite,
            or "skip": go on. Either way the run ends where a hundred in a row were skipped, or all
            of an epoch, and where the loss on the test set is not finite.
        recorder: Recorder. It knows how many minibatches there were before, and saves none at which
            this stops the run.
    """

    def __init__(self, on_nan: str, recorder: Recorder) -> None:
        super().__init__()
        self._on_nan, self._recorder = on_nan, recorder
        self._counted = self._at_start = 0
        self._in_a_row = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Read the number of gradients applied so far."""
        self._counted = trained(self.model).gradient_evaluations()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remember that number at the start of the epoch."""
        self._at_start = self._counted

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Raise if a gradient or the loss is not finite.

        Raises:
            NotFiniteError: A gradient was not finite, or the mean loss of this epoch is not.
        """
        before, self._counted = self._counted, trained(self.model).gradient_evaluations()
        # With several replicas, one that skips is enough.
        skipped = self._counted - before < self._recorder.evaluations_a_step
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        # The recorder has not counted this minibatch yet.
        at = self._where(self._recorder.progress.batches)
        if skipped and self._on_nan == "stop":
            scale = trained(self.model).loss_scale()
            if scale is None:
                raise NotFiniteError(f"The gradient was not finite at {at}")
            if scale < 1:
                raise NotFiniteError(
                    f"The gradient was not finite at {at}, even with the loss scaled by {scale:g}"
                )
        if self._in_a_row >= _HOPELESS:
            raise NotFiniteError(
                f"No gradient was finite in the last {_HOPELESS} minibatches, up to {at}"
            )
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise NotFiniteError(f"The training loss became {loss} at {at}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Raise if every minibatch of the epoch was skipped, or the test loss is not finite.

        Raises:
            NotFiniteError: No gradient of the epoch was finite, or the loss on the test set is not.
        """
        at = self._where(self._recorder.progress.batches - 1)
        if self._counted == self._at_start:
            raise NotFiniteError(f"No gradient was finite from the epoch's first minibatch to {at}")
        for name in ("val_loss", "val_accuracy"):
            value = (logs or {}).get(name, 0.0)
            if not math.isfinite(value):
                what = name.replace("val_", "test ")
                raise NotFiniteError(f"The {what} is {value} after {at}")

    def _where(self, before: int) -> str:
        """Name the minibatch that has so many before it."""
        epoch, number = divmod(before, self._recorder.steps_per_epoch)
        return f"minibatch {number + 1} of epoch {epoch + 1}"
