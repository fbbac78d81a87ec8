"""What is read off replicas: their center, each of them, their ensemble, their distances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from esgd_tf import _keras
from esgd_tf.replicas import ensemble as ensembles
from esgd_tf.replicas._arrival import Batches
from esgd_tf.replicas._building import copy_of, copy_state
from esgd_tf.replicas._exchange import Exchange, StrategyExchange
from esgd_tf.replicas._members import (
    mean_statistics,
    root_mean_square,
    state_of,
    statistics_of,
)
from esgd_tf.replicas.coupling import Coupling
from esgd_tf.training.batch_norm import BatchNormReestimation

__all__ = ["Reading"]

BATCH_NORM = keras.layers.BatchNormalization


class Reading:
    """The part of `Replicas` that reads.

    The model that stands for the center is brought up to date when it is asked for, not at every
    step: see `settle`.
    """

    # Of `Replicas` and `keras.Model`.
    build_model: Callable[..., keras.Model]
    compiled: bool
    coupling: Coupling
    local: list[int]
    members: list[keras.Model]
    optimizer: Any
    replicas: int
    _batch_norm_data: Any
    _center: keras.Model
    _exchange: Exchange

    @property
    def ensemble_kind(self) -> str | list[str]:
        """How the outputs of the replicas are averaged: `kind` of `ensemble_outputs`."""
        raise NotImplementedError

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # One for each replica, and one for the center: they are costly to trace.
        self._reestimations: dict[int, BatchNormReestimation] = {}

    def center(self) -> keras.Model:
        """Return the center: a plain Keras model, which later training does not change.

        Its weights are the mean of the replicas (of their anchors, for Entropy-SGD), or the center
        that the coupling keeps; of what is not trained, such as frozen weights and moving averages,
        it is the mean in any case. BatchNormalization statistics are estimated anew from training
        data after `fit`.
        """
        self.settle()
        return copy_of(self._center, self.build_model)

    def center_model(self) -> keras.Model:
        """Return the model that stands for the center, brought up to date: not a copy.

        The next training step leaves it behind, and the next call brings it up to date again. Of
        several processes, all must call this.
        """
        self.settle()
        return self._center

    def replica(self, a: int) -> keras.Model:
        """Return replica a, at its anchor: a plain Keras model that training does not change.

        Its BatchNormalization statistics are estimated anew from the data from which the center's
        are, so that both can be compared. Of several processes, all must call this.

        Args:
            a: int in [0, y). The number of the replica.

        Raises:
            IndexError: There is no such replica.
        """
        if not 0 <= a < self.replicas:
            raise IndexError(f"There are replicas 0 ... {self.replicas - 1}, not {a}.")
        self.gather()
        copy = copy_of(self.members[a], self.build_model)
        self.copy_replica(a, copy)
        return copy

    def copy_replica(self, a: int, model: keras.Model) -> None:
        """Give a model the weights of replica a, at its anchor, as `gather` left them.

        Moving statistics are estimated anew if those of the center are.

        Args:
            a: int in [0, y). The number of the replica.
            model: keras.Model. One that `replica` returned, or a copy of it.
        """
        copy_state(self.members[a], model)
        if not self.compiled:
            return
        anchors = self.optimizer.replicas[a].anchors()
        for variable, anchor in zip(model.trainable_variables, anchors, strict=True):
            variable.assign(anchor)
        self._reestimate(a, model)

    def ensemble(self) -> ensembles.Ensemble:
        """Return the replicas as one model that averages their outputs.

        Logits (a compiled loss with `from_logits`) are averaged as probabilities. Of several
        processes, all must call this.
        """
        members = [self.replica(a) for a in range(self.replicas)]
        return ensembles.Ensemble(members, self.ensemble_kind)

    def distances(self) -> np.ndarray:
        """Return sqrt(|w^a - c|^2 / N), [y]: root mean square distances to the center.

        Of several processes, all must call this.
        """
        self.settle()
        center = [v.numpy() for v in self._center.trainable_variables]
        return np.array([root_mean_square(w, center) for w in self._all_anchors()])

    def norms(self) -> np.ndarray:
        """Return sqrt(|w^a|^2 / N), [y]. Of several processes, all must call this."""
        return np.array([root_mean_square(w) for w in self._all_anchors()])

    @property
    def center_norm(self) -> float:
        """sqrt(|c|^2 / N)."""
        self.settle()
        return root_mean_square([v.numpy() for v in self._center.trainable_variables])

    def settle(self) -> None:
        """Bring the model that stands for the center up to date, with its BatchNorm statistics.

        Of several processes, all must call this. `fit` does at its end, and whatever looks at the
        center: see `_entrances.py`.
        """
        if not self.compiled or self.optimizer.is_settled:
            return
        self._exchange.store()
        if not self.coupling.keeps_center:
            self._assign_center(self._exchange.mean())
        self._settle_statistics()
        self.optimizer.is_settled = True

    def gather(self) -> None:
        """Bring this process' copies of the replicas of other processes up to date.

        All processes must call this: before one saves, for example.
        """
        self.settle()
        if len(self.local) == self.replicas or not isinstance(self._exchange, StrategyExchange):
            return
        state = [state_of(self.members[a]) for a in self.local]
        found = self._exchange.of_all([[v.numpy() for v in s] for s in state])
        for a, values in enumerate(found):
            if a not in self.local:
                for variable, value in zip(state_of(self.members[a]), values, strict=True):
                    variable.assign(value)

    def _assign_center(self, means: Sequence[tf.Tensor]) -> None:
        for variable, mean in zip(self._center.trainable_variables, means, strict=True):
            variable.assign(mean)

    def _all_anchors(self) -> list[list[np.ndarray]]:
        """Return the anchors of the replicas of all processes."""
        return self._exchange.of_all(
            [[w.numpy() for w in optimizer.anchors()] for optimizer in self._exchange.optimizers]
        )

    def _settle_statistics(self) -> None:
        """Average what is not trained, and estimate BatchNorm statistics from training data."""
        own = statistics_of(self._center)
        if not own:
            return
        of_all = self._exchange.of_all(
            [[v.numpy() for v in statistics_of(self.members[a])] for a in self.local]
        )
        self._assign_statistics(mean_statistics(of_all))
        if self._reestimate(-1, self._center):
            # Of several processes, each has other data: the first one's hold.
            of_all = self._exchange.of_all([[v.numpy() for v in own] for _ in self.local])
            self._assign_statistics(of_all[0])

    def _assign_statistics(self, values: Sequence[np.ndarray]) -> None:
        for variable, value in zip(statistics_of(self._center), values, strict=True):
            variable.assign(value)
        for layer in _keras.layers_in(self._center):
            if isinstance(layer, keras.layers.Normalization) and layer.built:
                layer.finalize_state()

    def _reestimate(self, number: int, model: keras.Model) -> bool:
        """Estimate the moving statistics of a model from training data, if there are any."""
        data = self._batch_norm_data
        if isinstance(data, Batches):
            data = data.recorded or None
        if data is None:
            return False
        known = self._reestimations.get(number)
        if known is None or known.model is not model:
            known = self._reestimations[number] = BatchNormReestimation(model)
        # The data go through in training mode, which moves other states too.
        norms = [layer for layer in _keras.layers_in(model) if isinstance(layer, BATCH_NORM)]
        estimated = {id(v) for layer in norms for v in layer.weights}
        others = [v for v in statistics_of(model) if id(v) not in estimated]
        before = [v.numpy() for v in others]
        known(data)
        for variable, value in zip(others, before, strict=True):
            variable.assign(value)
        return True
