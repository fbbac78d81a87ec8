"""What a run asks of what it trains, be it one network or several replicas of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import keras

from esgd_tf import _keras
from esgd_tf.training import AnchorCallback
from esgd_tf.training.batch_norm import BatchNormAveraging
from esgd_tf.training.evaluation import local_entropy_optimizer

__all__ = ["Trained", "trained"]

#: Batches of training images, or a function that makes them.
TrainingData = Any


class Trained(Protocol):
    """One network or several replicas of it, seen by a run.

    Attributes:
        replicas: How many networks take a step with every minibatch of the run's clock.
    """

    replicas: int

    def network(self) -> keras.Model:
        """Return the network to use: of replicas, their center."""

    def number_of_weights(self) -> int:
        """Return how many trainable numbers one network has."""

    def gradient_evaluations(self) -> int:
        """Return how many gradients were stepped with so far; those left out do not count."""

    def loss_scale(self) -> float | None:
        """Return the smallest factor by which mixed_float16 scales a loss; None for no scaling."""

    def step_logs(self, batch: int) -> dict[str, float]:
        """Return what the progress bar shows of the algorithm.

        Args:
            batch: int >= 0. The number of the minibatch in its epoch.
        """

    def epoch_logs(self) -> dict[str, float]:
        """Return what history.csv shows of the algorithm, beside the gradient evaluations."""

    def prepare_to_save(self) -> None:
        """Bring together what a saving process needs of the others; all must call it."""

    def evaluation(
        self, batch_norm_data: TrainingData
    ) -> tuple[list[keras.callbacks.Callback], dict[str, Any]]:
        """Return the callbacks and the arguments of `fit` that make it evaluate where it should.

        Args:
            batch_norm_data: iterable of batches. Training images, or a callable that returns them:
                from them BatchNorm statistics are estimated anew. None keeps the moving averages.
        """

    def words(self, steps: int) -> str:
        """Return what there is to say of the replicas, from the second line on.

        Args:
            steps: int >= 1. Minibatches of an epoch, of each replica.
        """


@runtime_checkable
class _Answers(Protocol):
    """A model that knows how to be seen by a run, as `esgd_tf.replicas.Replicas` does."""

    as_trained: Callable[[], Trained]


def trained(model: keras.Model) -> Trained:
    """Return a model as a run sees it.

    Args:
        model: keras.Model. A compiled model, or one just loaded.
    """
    return model.as_trained() if isinstance(model, _Answers) else OneNetwork(model)


class OneNetwork:
    """A network that is trained alone, by any optimizer.

    Args:
        model: keras.Model. The network.
    """

    replicas = 1

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._scope: float | None = None
        self._average_batch_norm: BatchNormAveraging | None = None

    def network(self) -> keras.Model:
        """Return the network itself."""
        return self._model

    def number_of_weights(self) -> int:
        """Return how many trainable numbers the network has."""
        return sum(math.prod(variable.shape) for variable in self._model.trainable_variables)

    def gradient_evaluations(self) -> int:
        """Return the optimizer's counter, which stands still where a minibatch is left out."""
        return int(keras.ops.convert_to_numpy(self._model.optimizer.iterations))

    def loss_scale(self) -> float | None:
        """Return the factor by which mixed_float16 scales the loss; None for no scaling."""
        return _keras.loss_scale_of(self._model.optimizer)

    def step_logs(self, batch: int) -> dict[str, float]:
        """Return the scope, which is looked at once per outer update."""
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
        """Return nothing: there are no replicas to speak of.

        Args:
            steps: int >= 1. Minibatches of an epoch.
        """
        del steps
        return ""
