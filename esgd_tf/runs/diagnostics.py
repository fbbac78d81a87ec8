"""Adds numbers of the algorithm to the logs, for every later callback."""

from __future__ import annotations

from typing import Any

import keras

from esgd_tf.runs.recorder import Recorder
from esgd_tf.runs.trained import Trained, trained

__all__ = ["Diagnostics"]


class Diagnostics(keras.callbacks.Callback):
    """Adds numbers of the algorithm to Keras' logs, for every later callback.

    Each minibatch adds the scope, or the strength of the coupling of replicas. Each epoch adds its
    means, which include the part before an interruption, gradient evaluations, outer updates,
    learning rate, scope, and the statistics of the last outer update (see `LangevinStatistics`).

    Args:
        recorder: Recorder. It knows the part of the run before this process.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self._trained: Trained | None = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Show the scope in the progress bar."""
        if self._trained is None:
            self._trained = trained(self.model)
        if logs is not None:
            logs.update(self._trained.step_logs(batch))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the epoch's diagnostics to the logs."""
        if logs is not None:
            logs.update(self._recorder.running)
            logs.update(self._measure())

    def _measure(self) -> dict[str, float]:
        seen, recorder = trained(self.model), self._recorder
        evaluations = seen.gradient_evaluations()
        skipped = recorder.progress.batches * recorder.evaluations_a_step - evaluations
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        measured: dict[str, float] = {
            "gradient_evaluations": evaluations,
            "outer_updates": evaluations,
            "learning_rate": float(rate),
        }
        if skipped:
            measured["skipped"] = skipped
        return measured | seen.epoch_logs()
