"""What there is to see of replicas while they train, measured at the end of each epoch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from esgd_tf.replicas._members import copied_metrics, copy_of
from esgd_tf.replicas.ensemble import Ensemble, kind_for

__all__ = ["ReplicaMonitor"]


class ReplicaMonitor(keras.callbacks.Callback):
    """Adds to the logs of each epoch, for every later callback and the history:

        coupling                         strength of the coupling (gamma, alpha or rho) in force
        distance, distance_A             sqrt(mean_a |w^a - c|^2 / N), and that of each replica A
        norm, norm_A, norm_center        sqrt(|w|^2 / N): mean over the replicas, each, the center
        SPLIT_WHO_loss, SPLIT_WHO_...    loss and metrics, SPLIT being train or test, and WHO
                                         center, ensemble or replicaA

    As in the code of Pittorino et al., arXiv 2006.07897. Replicas are measured at their anchors.
    Put it first in the list of callbacks.

    Args:
        train: Batches of training data, or None to leave those out.
        test: Batches of test data, or None.
    """  # noqa: D415 - the table is the summary

    model: Any

    def __init__(self, train: Any = None, test: Any = None) -> None:
        super().__init__()
        self._data = {name: data for name, data in (("train", train), ("test", test)) if data}
        self._viewers: dict[str, keras.Model] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure."""
        measured = self.measure()
        if logs is not None:
            logs.update(measured)

    def measure(self) -> dict[str, float]:
        """Return the numbers. Of several processes, all must call this."""
        model = self.model
        model.gather()
        distances, norms = model.distances(), model.norms()
        found = {
            "coupling": float(model.optimizer.gamma),
            "distance": float(np.sqrt(np.mean(distances**2))),
            "norm": float(np.mean(norms)),
            "norm_center": model.center_norm,
        }
        for a in range(model.replicas):
            found[f"distance_{a}"], found[f"norm_{a}"] = float(distances[a]), float(norms[a])
        if not self._data:
            return found
        if not self._viewers:
            self._viewers = self._make_viewers()
        for a in range(model.replicas):
            model.copy_replica(a, self._viewers[f"replica{a}"])
        for split, data in self._data.items():
            results = {"center": model.evaluate(data, verbose=0, return_dict=True)}
            for who, viewer in self._viewers.items():
                results[who] = viewer.evaluate(data, verbose=0, return_dict=True)
            for who, result in results.items():
                found |= {f"{split}_{who}_{name}": float(v) for name, v in result.items()}
        return found

    def _make_viewers(self) -> dict[str, keras.Model]:
        """Return models to put the replicas into, and their ensemble, each traced only once."""
        model = self.model
        viewers = [copy_of(member, model.build_model) for member in model.members]
        loss = model.loss
        named = {f"replica{a}": viewer for a, viewer in enumerate(viewers)}
        named["ensemble"] = Ensemble(viewers, kind_for(loss))
        for viewer in named.values():
            viewer.compile(
                optimizer=None,
                loss=loss,
                metrics=copied_metrics(model.compiled_metrics),
                jit_compile=False,
            )
        return named
