"""Read access to replicas: their number and devices, center, single replicas, ensemble."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from esgd_tf.replicas._as_trained import TrainedReplicas
from esgd_tf.replicas._keras_model import ReplicasModel
from esgd_tf.replicas._members import copied_metrics
from esgd_tf.replicas.coupling import Coupling
from esgd_tf.replicas.ensemble import Ensemble, kind_for

__all__ = ["ReadableReplicas"]


class ReadableReplicas(ReplicasModel):
    """The properties and methods by which users read a `Replicas` model."""

    # ---- the replicas -------------------------------------------------------------------------

    @property
    def replicas(self) -> int:
        """y, the number of replicas in all processes together."""
        return self._group.count

    @property
    def coupling(self) -> Coupling:
        """The rule by which replicas are attracted to their center."""
        return self._group.coupling

    @property
    def local(self) -> list[int]:
        """Numbers of the replicas that this process trains; the others are kept as copies."""
        return self._group.local

    @property
    def devices(self) -> list[str | None]:
        """The devices of the replicas that this process trains."""
        return self._group.devices

    @property
    def build_model(self) -> Callable[..., keras.Model]:
        """The function that made the replicas."""
        return self._group.build_model

    @property
    def coupling_period(self) -> int:
        """The number of training steps between couplings; known after `compile`."""
        return self._stepping.period

    # ---- results of training ------------------------------------------------------------------

    def center(self) -> keras.Model:
        """Return the center: a plain Keras model, which later training does not change.

        Its weights are the mean of the replicas (of their anchors, for Entropy-SGD), or the center
        that the coupling keeps; untrained state, such as frozen weights and moving averages, is
        always the mean. BatchNormalization statistics are estimated anew from training
        data after `fit`. With several processes, all must call this and the methods below.
        """
        return self._middle.copy()

    def center_model(self) -> keras.Model:
        """Return the model that holds the center, after updating it; it is not a copy.

        It is out of date after the next training step, until the next call.
        """
        self._middle.update()
        return self._group.center

    def update_center(self) -> None:
        """Update the model that holds the center; every method that reads the center does so."""
        self._middle.update()

    def gather(self) -> None:
        """Update this process' copies of the replicas that other processes train."""
        self._middle.gather()

    def replica(self, a: int) -> keras.Model:
        """Return replica a, at its anchor: a plain Keras model that training does not change.

        Its BatchNormalization statistics are estimated anew from the same data as the center's, so
        that both can be compared.

        Args:
            a: int in [0, y). The number of the replica.

        Raises:
            IndexError: There is no such replica.
        """
        if not 0 <= a < self.replicas:
            raise IndexError(f"There are replicas 0 ... {self.replicas - 1}, not {a}.")
        return self._middle.replica(a)

    def copy_replica(self, a: int, model: keras.Model) -> None:
        """Give a model the weights of replica a, at its anchor, as `gather` left them.

        Moving statistics are estimated anew if the center's statistics are.

        Args:
            a: int in [0, y). The number of the replica.
            model: keras.Model. A model from `replica`, or a copy of it.
        """
        self._middle.copy_replica(a, model)

    def ensemble(self) -> Ensemble:
        """Return the replicas as one model that averages their outputs.

        Logits (a compiled loss with `from_logits`) are averaged as probabilities.
        """
        members = [self.replica(a) for a in range(self.replicas)]
        return Ensemble(members, self.ensemble_kind)

    def distances(self) -> NDArray[np.float64]:
        """Return sqrt(|w^a - c|^2 / N), [y]: root mean square distances to the center."""
        return self._middle.distances()

    def norms(self) -> NDArray[np.float64]:
        """Return sqrt(|w^a|^2 / N), [y]."""
        return self._middle.norms()

    @property
    def center_norm(self) -> float:
        """sqrt(|c|^2 / N)."""
        return self._middle.norm()

    @property
    def compiled_metrics(self) -> Any:
        """The metrics given to `compile`."""
        return self._compile_arguments.get("metrics")

    def evaluation_arguments(self) -> dict[str, Any]:
        """Return the arguments of `compile` with which another model is evaluated like this one."""
        given = self._compile_arguments
        return {
            "loss": given.get("loss"),
            "loss_weights": given.get("loss_weights"),
            "metrics": copied_metrics(given.get("metrics")),
            "weighted_metrics": copied_metrics(given.get("weighted_metrics")),
            "run_eagerly": given.get("run_eagerly", False),
        }

    def as_trained(self) -> TrainedReplicas:
        """Return the interface through which `esgd_tf.runs` trains the replicas."""
        return TrainedReplicas(self)

    @property
    def ensemble_kind(self) -> str | list[str]:
        """The `kind` of `ensemble_outputs` by which the replicas' outputs are averaged."""
        names = getattr(self.members[0], "output_names", None)
        return kind_for(self._compile_arguments.get("loss"), names)
