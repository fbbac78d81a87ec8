"""Measurements of replicas at the end of each epoch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from esgd_tf.replicas._arrival import after_arrival
from esgd_tf.replicas._building import copy_of, copy_state
from esgd_tf.replicas.ensemble import Ensemble

__all__ = ["ReplicaMonitor"]


class ReplicaMonitor(keras.callbacks.Callback):
    """Adds to the logs of each epoch, for every later callback and the history:

        coupling                         gamma, alpha or rho at the last step
        distance, distance_A             sqrt(mean_a |w^a - c|^2 / N), and for each replica A
        norm, norm_A, norm_center        sqrt(|w|^2 / N): mean over the replicas, each, the center
        SPLIT_WHO_loss, SPLIT_WHO_...    loss and metrics, SPLIT being train or test, and WHO
                                         center, ensemble or replicaA

    The code of Pittorino et al., arXiv 2006.07897, has the same measures. Replicas are measured at
    their anchors. Put it first in the list of callbacks.

    Args:
        train: iterable of batches. Training data to measure on. Defaults to None, which leaves
            these numbers out.
        test: iterable of batches. Test data to measure on. Defaults to None, which leaves these
            numbers out.
    """  # noqa: D415 - the table is the summary

    model: Any

    def __init__(self, train: Any = None, test: Any = None) -> None:
        super().__init__()
        self._data = {name: data for name, data in (("train", train), ("test", test)) if data}
        # Replicas are measured on copies: a model that takes their weights in turn, an ensemble.
        self._copies: list[keras.Model] = []
        self._ensemble: Ensemble | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure the replicas, and add the numbers to the logs."""
        measured = self.measure()
        if logs is not None:
            logs.update(measured)

    def measure(self) -> dict[str, float]:
        """Return the numbers. With several processes, all must call this."""
        model = self.model
        model.gather()
        distances, norms = model.distances(), model.norms()
        found = {
            "coupling": model.optimizer.last_gamma,
            "distance": float(np.sqrt(np.mean(distances**2))),
            "norm": float(np.mean(norms)),
            "norm_center": model.center_norm,
        }
        for a in range(model.replicas):
            found[f"distance_{a}"], found[f"norm_{a}"] = float(distances[a]), float(norms[a])
        if not self._data:
            return found
        if self._ensemble is None:
            self._make_copies()
        found |= self._evaluated("center", model)
        first, *_ = self._copies
        for a in reversed(range(model.replicas)):
            model.copy_replica(a, self._copies[a])
            if a > 0:
                copy_state(self._copies[a], first)
            found |= self._evaluated(f"replica{a}", first)
        return found | self._evaluated("ensemble", self._ensemble)

    def _evaluated(self, who: str, model: Any) -> dict[str, float]:
        return {
            f"{split}_{who}_{name}": float(value)
            for split, data in self._data.items()
            for name, value in model.evaluate(data, verbose=0, return_dict=True).items()
        }

    def _make_copies(self) -> None:
        model = self.model
        self._copies = [copy_of(member, model.build_model) for member in model.members]
        self._ensemble = Ensemble(self._copies, model.ensemble_kind)
        first = self._copies[0]
        step = first.test_step
        first.test_step = lambda data: after_arrival(step, data)
        for viewer in (first, self._ensemble):
            viewer.compile(optimizer=None, jit_compile=False, **model.evaluation_arguments())
