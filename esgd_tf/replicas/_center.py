"""The center of replicas, which is computed on demand, and its BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf import _keras
from esgd_tf.replicas._arrival import Batches
from esgd_tf.replicas._building import copy_of, copy_state
from esgd_tf.replicas._exchange import StrategyExchange
from esgd_tf.replicas._group import Group
from esgd_tf.replicas._members import (
    mean_statistics,
    root_mean_square,
    state_of,
    statistics_of,
)
from esgd_tf.training.batch_norm import BatchNormReestimation

__all__ = ["Center"]

_BATCH_NORM = keras.layers.BatchNormalization

Weights = list[NDArray[Any]]


class Center:
    """Keeps the model that holds the center up to date.

    The model is updated when it is used, not at every step: see `update`.

    Args:
        group: Group. The replicas and their coupling.

    Attributes:
        batch_norm_data: Training data from which BatchNormalization statistics are estimated anew:
            an iterable of batches, or the `Batches` of `fit`, which records some. None averages the
            replicas' own statistics.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self.batch_norm_data: Iterable[Any] | Batches | None = None
        # There is one for each replica and one for the center (-1), kept because tracing is costly.
        self._reestimations: dict[int, BatchNormReestimation] = {}

    @property
    def has_batch_norm(self) -> bool:
        """Return whether the network has BatchNormalization layers."""
        layers = _keras.layers_in(self._group.center)
        return any(isinstance(layer, _BATCH_NORM) for layer in layers)

    def update(self) -> None:
        """Update the model that holds the center, with its BatchNorm statistics.

        With several processes, all must call this. `fit` calls it at its end, and so does every
        method that reads the center.
        """
        group = self._group
        if not group.is_compiled or group.optimizers.center_is_current:
            return
        group.exchange.store()
        if not group.coupling.keeps_center:
            self.assign(group.exchange.mean())
        self._update_statistics()
        group.optimizers.center_is_current = True

    def gather(self) -> None:
        """Update this process' copies of the replicas that other processes train.

        All processes must call this, for example before one of them saves.
        """
        self.update()
        group = self._group
        if group.is_whole or not isinstance(group.exchange, StrategyExchange):
            return
        found = group.exchange.of_all(
            [[v.numpy() for v in state_of(member)] for member in group.own]
        )
        for a, values in enumerate(found):
            if a not in group.local:
                for variable, value in zip(state_of(group.members[a]), values, strict=True):
                    variable.assign(value)

    def assign(self, means: Sequence[tf.Tensor]) -> None:
        """Set the trainable weights of the model that holds the center.

        Args:
            means: sequence of tensors. The new weights.
        """
        for variable, mean in zip(self._group.center.trainable_variables, means, strict=True):
            variable.assign(mean)

    def copy(self) -> keras.Model:
        """Return the center as a model of its own."""
        self.update()
        return copy_of(self._group.center, self._group.build_model)

    def replica(self, a: int) -> keras.Model:
        """Return replica a, at its anchor, as a model of its own.

        Args:
            a: int in [0, y). The number of the replica.
        """
        self.gather()
        copy = copy_of(self._group.members[a], self._group.build_model)
        self.copy_replica(a, copy)
        return copy

    def copy_replica(self, a: int, model: keras.Model) -> None:
        """Give a model the weights of replica a, at its anchor, as `gather` left them.

        Args:
            a: int in [0, y). The number of the replica.
            model: keras.Model. A model from `replica`, or a copy of it.
        """
        copy_state(self._group.members[a], model)
        if not self._group.is_compiled:
            return
        anchors = self._group.optimizers.replicas[a].anchors()
        for variable, anchor in zip(model.trainable_variables, anchors, strict=True):
            variable.assign(anchor)
        self._reestimate(a, model)

    def distances(self) -> NDArray[np.float64]:
        """Return sqrt(|w^a - c|^2 / N) for each replica, of shape [y]."""
        self.update()
        center = [v.numpy() for v in self._group.center.trainable_variables]
        return np.array([root_mean_square(w, center) for w in self._anchors()])

    def norms(self) -> NDArray[np.float64]:
        """Return sqrt(|w^a|^2 / N) for each replica, of shape [y]."""
        return np.array([root_mean_square(w) for w in self._anchors()])

    def norm(self) -> float:
        """Return sqrt(|c|^2 / N)."""
        self.update()
        return root_mean_square([v.numpy() for v in self._group.center.trainable_variables])

    def _anchors(self) -> list[Weights]:
        """Return the anchors of the replicas of all processes."""
        exchange = self._group.exchange
        return exchange.of_all(
            [[w.numpy() for w in optimizer.anchors()] for optimizer in exchange.optimizers]
        )

    # ---- state that is not trained ------------------------------------------------------------

    def _update_statistics(self) -> None:
        """Average the untrained state, and estimate BatchNorm statistics from training data."""
        group = self._group
        own = statistics_of(group.center)
        if not own:
            return
        of_all = group.exchange.of_all(
            [[v.numpy() for v in statistics_of(member)] for member in group.own]
        )
        self._assign_statistics(mean_statistics(of_all))
        if self._reestimate(-1, group.center):
            # Each process has other data, so the first process's statistics are used.
            of_all = group.exchange.of_all([[v.numpy() for v in own] for _ in group.local])
            self._assign_statistics(of_all[0])

    def _assign_statistics(self, values: Sequence[NDArray[Any]]) -> None:
        center = self._group.center
        for variable, value in zip(statistics_of(center), values, strict=True):
            variable.assign(value)
        for layer in _keras.layers_in(center):
            if isinstance(layer, keras.layers.Normalization) and layer.built:
                layer.finalize_state()

    def _reestimate(self, number: int, model: keras.Model) -> bool:
        """Estimate the moving statistics of a model from training data, if there are any."""
        data = self.batch_norm_data
        if isinstance(data, Batches):
            data = data.recorded or None
        if data is None:
            return False
        known = self._reestimations.get(number)
        if known is None or known.model is not model:
            known = self._reestimations[number] = BatchNormReestimation(model)
        # Training mode changes other states as well.
        norms = [layer for layer in _keras.layers_in(model) if isinstance(layer, _BATCH_NORM)]
        estimated = {id(v) for layer in norms for v in layer.weights}
        others = [v for v in statistics_of(model) if id(v) not in estimated]
        before = [v.numpy() for v in others]
        known(data)
        for variable, value in zip(others, before, strict=True):
            variable.assign(value)
        return True
