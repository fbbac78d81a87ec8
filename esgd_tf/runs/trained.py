"""The interface between a training run and what it trains: one network, or its replicas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import keras
from numpy.typing import NDArray

from esgd_tf import _keras
from esgd_tf.training import AnchorCallback
from esgd_tf.training.batch_norm import BatchNormAveraging
from esgd_tf.training.evaluation import local_entropy_optimizer

__all__ = ["Trained", "trained"]

#: Batches of training images, or a function that makes them.
TrainingData = Any


class Trained(Protocol):
    """The interface of a network, or of several replicas of it, to a training run."""

    @property
    def gradients_per_step(self) -> int:
        """Gradient evaluations of a step: one in every replica, two of SAM."""

    def network(self) -> keras.Model:
        """Return the trained network; for replicas, their center."""

    def weights(self) -> list[NDArray[Any]]:
        """Return the weights of the trained network, of replicas those of their center.

        They are in the order of `network().get_weights()`. All processes must call it.
        """

    def number_of_weights(self) -> int:
        """Return the number of trainable weights of one network."""

    def gradient_evaluations(self) -> int:
        """Return the number of gradients applied so far, without those that were skipped."""

    def loss_scale(self) -> float | None:
        """Return the smallest factor by which mixed_float16 scales a loss; None for no scaling."""

    def step_logs(self, batch: int) -> dict[str, float]:
        """Return the numbers of the algorithm for the progress bar.

        Args:
            batch: int >= 0. The number of the minibatch in its epoch.
        """

    def epoch_logs(self) -> dict[str, float]:
        """Return the numbers of the algorithm for history.csv, without gradient evaluations."""

    def prepare_to_save(self) -> None:
        """Collect the state of other processes before one of them saves; all must call it."""

    def evaluation(
        self, batch_norm_data: TrainingData
    ) -> tuple[list[keras.callbacks.Callback], dict[str, Any]]:
        """Return the callbacks and arguments with which `fit` evaluates at the right weights.

        Args:
            batch_norm_data: iterable of batches. Training images, or a callable that returns them:
                from them BatchNorm statistics are estimated anew. None keeps the moving averages.
        """

    def words(self, steps: int) -> str:
        """Return a description of the replicas, for the lines after the first.

        Args:
            steps: int >= 1. Minibatches of an epoch, of each replica.
        """


@runtime_checkable
class _Answers(Protocol):
    """A model that implements the interface itself, as `esgd_tf.replicas.Replicas` does."""

    as_trained: Callable[[], Trained]


def trained(model: keras.Model) -> Trained:
    """Return the interface of a model to a training run.

    Args:
        model: keras.Model. A compiled model, or one just loaded.
    """
    return model.as_trained() if isinstance(model, _Answers) else OneNetwork(model)


class OneNetwork:
    """A network that is trained alone, by any optimizer.

    Args:
        model: keras.Model. The network.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._scope: float | None = None
        self._average_batch_norm: BatchNormAveraging | None = None

    @property
    def gradients_per_step(self) -> int:
        """Gradient evaluations of a step: two of SAM, one of most."""
        optimizer = getattr(self._model, "optimizer", None)
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        return getattr(optimizer, "gradient_evaluations_per_step", 1)

    def network(self) -> keras.Model:
        """Return the network itself."""
        return self._model

    def weights(self) -> list[NDArray[Any]]:
        """Return the weights of the network."""
        return self._model.get_weights()

    def number_of_weights(self) -> int:
        """Return the number of trainable weights of the network."""
        return sum(math.prod(variable.shape) for variable in self._model.trainable_variables)

    def gradient_evaluations(self) -> int:
        """Return the gradients of the optimizer's steps, which skipped minibatches are not."""
        steps = int(keras.ops.convert_to_numpy(self._model.optimizer.iterations))
        return steps * self.gradients_per_step

    def loss_scale(self) -> float | None:
        """Return the factor by which mixed_float16 scales the loss; None for no scaling."""
        return _keras.loss_scale_of(self._model.optimizer)

    def step_logs(self, batch: int) -> dict[str, float]:
        """Return the scope, which is read once per outer update."""
        optimizer = local_entropy_optimizer(self._model)
        if optimizer is None or optimizer.langevin_steps == 0:
            return {}
        if self._scope is None or batch % optimizer.langevin_steps == 0:
            self._scope = float(optimizer.scope)
        return {"scope": self._scope}

    def epoch_logs(self) -> dict[str, float]:
        """Return outer updates, scope, and the statistics of the last outer update."""
        optimizer = local_entropy_optimizer(self._model)
        if optimizer is None or optimizer.langevin_steps == 0:
            return {}
        updates = int(keras.ops.convert_to_numpy(optimizer.outer_iterations))
        logs = {"outer_updates": updates, "scope": float(optimizer.scope)}
        # Before the first outer update there are no statistics yet.
        if optimizer.keeps_statistics and updates > 0:
            logs.update(optimizer.statistics()._asdict())
        return logs

    def prepare_to_save(self) -> None:
        """Average the moving statistics that each device has gathered by itself."""
        if self._average_batch_norm is None:
            self._average_batch_norm = BatchNormAveraging(self._model)
        self._average_batch_norm()

    def evaluation(
        self, batch_norm_data: TrainingData
    ) -> tuple[list[keras.callbacks.Callback], dict[str, Any]]:
        """Return the callback that goes to the anchor.

        Args:
            batch_norm_data: iterable of batches. Training images, or a callable that returns them:
                from them BatchNorm statistics are estimated anew. None keeps the moving averages.
        """
        return [AnchorCallback(batch_norm_data=batch_norm_data)], {}

    def words(self, steps: int) -> str:
        """Return an empty text, since there are no replicas.

        Args:
            steps: int >= 1. Minibatches of an epoch.
        """
        del steps
        return ""
