"""The interface between replicas and a training run: `Trained` of `esgd_tf/runs/trained.py`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras
from numpy.typing import NDArray

from esgd_tf import _keras

if TYPE_CHECKING:
    from esgd_tf.replicas.replicas import Replicas

__all__ = ["TrainedReplicas"]


class TrainedReplicas:
    """Implements `Trained` for a `Replicas` model.

    Args:
        model: Replicas. The model; compiled, or just loaded.

    Attributes:
        gradients_per_step: The number of replicas in all processes together.
    """

    def __init__(self, model: Replicas) -> None:
        self._model = model
        self.gradients_per_step: int = model.replicas

    def network(self) -> keras.Model:
        """Return the center, as a model of its own."""
        return self._model.center()

    def weights(self) -> list[NDArray[Any]]:
        """Return the weights of the center. All processes must call it."""
        return self._model.center_model().get_weights()

    def number_of_weights(self) -> int:
        """Return the number of trainable weights of one replica."""
        weights = self._model.members[0].trainable_variables
        return sum(math.prod(variable.shape) for variable in weights)

    def gradient_evaluations(self) -> int:
        """Return the number of gradients that were applied, over all replicas.

        Gradients that other processes skipped are not known here and count as applied.
        """
        steps = int(self._model.optimizer.iterations.numpy())
        own = [self._model.optimizer.replicas[a] for a in self._model.local]
        return steps * self.gradients_per_step - sum(steps - int(o.iterations.numpy()) for o in own)

    def loss_scale(self) -> float | None:
        """Return the smallest factor by which mixed_float16 scales a replica's loss, if any."""
        scales = [_keras.loss_scale_of(member.optimizer) for member in self._model.members]
        return min((scale for scale in scales if scale is not None), default=None)

    def step_logs(self, batch: int) -> dict[str, float]:
        """Return the strength of the coupling at the last step.

        Args:
            batch: int >= 0. The number of the minibatch in its epoch.
        """
        del batch
        return {"coupling": self._model.optimizer.last_gamma}

    def epoch_logs(self) -> dict[str, float]:
        """Return the outer updates of all replicas, and their scope, if they have an inner loop."""
        first = self._model.optimizer.replicas[0]
        if first.langevin_steps == 0:
            return {}
        updates = sum(int(o.outer_iterations.numpy()) for o in self._model.optimizer.replicas)
        return {"outer_updates": updates, "scope": float(first.scope)}

    def prepare_to_save(self) -> None:
        """Update this process' copies of the replicas that other processes train."""
        self._model.gather()

    def evaluation(
        self, batch_norm_data: Any
    ) -> tuple[list[keras.callbacks.Callback], dict[str, Any]]:
        """Return an argument of `fit`: replicas are evaluated and saved at their center.

        Args:
            batch_norm_data: iterable of batches. Training images, or a callable that returns them:
                from them BatchNorm statistics are estimated anew. None keeps the moving averages.
        """
        averaged = batch_norm_data is None
        return [], {"batch_norm_data": False if averaged else batch_norm_data}

    def words(self, steps: int) -> str:
        """Return a description: the number of replicas, their devices, and the coupling period.

        Args:
            steps: int >= 1. Minibatches of an epoch, of each replica.
        """
        where = "one a device" if len(set(self._model.devices)) > 1 else "on one device"
        return (
            f"\n{self.gradients_per_step} replicas, {where}: {steps} minibatches each an epoch, "
            f"coupled every {self._model.coupling_period}"
        )
