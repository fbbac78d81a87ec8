"""Keras' progress bar, in 80 columns with the scope in it."""

from __future__ import annotations

import sys
from typing import Any

import keras

__all__ = ["ProgressBar"]

_SHORT = {"accuracy": "acc"}
_SHOWN = ("accuracy", "loss", "scope", "coupling")


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Shows accuracy, loss and scope (or coupling) of each epoch, and then a line on the test set.

    Keras' own bar prints everything that is in the logs and needs more than 80 columns. If the
    output is not a terminal, there is one line per epoch.

    Args:
        diagnostics: bool. Whether to print the norms of the last outer update after each epoch.
            Defaults to False.
    """

    def __init__(self, *, diagnostics: bool = False) -> None:
        super().__init__()
        self.verbose: int = 1
        self._diagnostics = diagnostics

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin the epoch's bar."""
        if not sys.stdout.isatty() and self.verbose:
            self.verbose = 2
        super().on_epoch_begin(epoch, logs)
        self.progbar.width = 10

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Advance the bar."""
        super().on_train_batch_end(batch, self._shown(logs))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """End the bar and show the results of validation."""
        logs = logs or {}
        super().on_epoch_end(epoch, self._shown(logs))
        if self.verbose and "val_accuracy" in logs:
            print(f"  test: acc: {logs['val_accuracy']:.4f} - loss: {logs['val_loss']:.4f}")
        if self._diagnostics and "outer_gradient_norm" in logs:
            print(
                f"  |∇f| {logs['gradient_norm']:.3g}, |x - mean| {logs['outer_gradient_norm']:.3g},"
                f" cosine {logs['cosine']:.3f}, |x - x'| {logs['mean_distance']:.3g},"
                f" noise {logs['noise_norm']:.2g}"
            )

    @staticmethod
    def _shown(logs: dict[str, Any] | None) -> dict[str, Any]:
        logs = logs or {}
        return {_SHORT.get(name, name): logs[name] for name in _SHOWN if name in logs}
