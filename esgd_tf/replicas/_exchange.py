"""The mean of the replicas: how it is made, and where each replica finds it.

It is all that replicas know of each other. In one process without a strategy it is computed inside
the training graph. With one, the replicas are on devices of their own, perhaps of several machines,
and the mean crosses between them by one all-reduce of all weights in one vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.optimizers import LocalEntropy
from esgd_tf.replicas.coupling import Coupling, elastic_center, norm_mean

__all__ = ["Exchange", "StrategyExchange"]

Weights = Sequence[tf.Tensor]


class Exchange:
    """Replicas on one device.

    Args:
        coupling: The rule.
        center: The model that stands for the center; its weights are the center's.
    """

    def __init__(self, coupling: Coupling, center: keras.Model) -> None:
        self._coupling = coupling
        self._center = [v.value for v in center.trainable_variables]
        # A center with a state of its own needs the mean beside it.
        self._means = [tf.Variable(v) for v in self._center] if coupling.keeps_center else None
        self.optimizers: list[LocalEntropy] = []

    @property
    def in_graph(self) -> bool:
        """Whether `gather` belongs into the training graph, not between two of its runs."""
        return True

    def center_of(self, a: int) -> list[tf.Variable]:
        """Return the center's weights as the local replica number a sees them."""
        del a
        return self._center

    def begin(self) -> None:
        """Training goes on: bring copies of the center up to date."""

    def gather(self) -> tf.Tensor:
        """Take the mean of the replicas, which the coupling of this step needs."""
        self._take(self.mean())
        return tf.constant(0)

    def mean(self) -> list[tf.Tensor]:
        """Return the mean of the replicas' anchors, rescaled where the coupling says so."""
        anchors = [optimizer.anchors() for optimizer in self.optimizers]
        means = [tf.add_n(list(parts)) / len(parts) for parts in zip(*anchors, strict=True)]
        if self._coupling.rescales_center:
            norms = [tf.linalg.global_norm(parts) for parts in anchors]
            means = _rescaled(means, tf.add_n(norms) / len(norms))
        return means

    def move_center(self) -> tf.Tensor:
        """Let a center with a state of its own move, after the replicas were pulled to it."""
        assert self._means is not None
        _move(self._coupling, self._center, self._means)
        return tf.constant(0)

    def mean_numbers(self, numbers: Sequence[float]) -> float:
        """Return the mean over all replicas of one number each, given those of this process."""
        return float(np.mean(numbers))

    def all_anchors(self) -> list[list[np.ndarray]]:
        """Return the anchors of all replicas, in all processes."""
        return [[w.numpy() for w in optimizer.anchors()] for optimizer in self.optimizers]

    def _take(self, means: Weights) -> None:
        for variable, mean in zip(self._means or self._center, means, strict=True):
            variable.assign(mean)


class StrategyExchange(Exchange):
    """One replica a device of a strategy, in one process or several.

    Args:
        coupling: The rule.
        center: The model that stands for the center.
        strategy: Of whose replicas each has one of ours.
        devices: Those of this process, one a replica.
    """

    def __init__(
        self,
        coupling: Coupling,
        center: keras.Model,
        strategy: tf.distribute.Strategy,
        devices: Sequence[str | None],
    ) -> None:
        super().__init__(coupling, center)
        self._strategy = strategy
        self._devices = list(devices)
        self._centers: list[list[tf.Variable]] = []
        self._means_on: list[list[tf.Variable]] = []
        for device in devices:
            with tf.device(device):
                self._centers.append([tf.Variable(v) for v in self._center])
                if coupling.keeps_center:
                    self._means_on.append([tf.Variable(v) for v in self._center])
        self._first = strategy.cluster_resolver.task_id if _several_processes(strategy) else 0
        self._first *= len(self._devices)
        self._gather = tf.function(lambda: self._run(self._gather_in_replica), autograph=False)
        self._mean = tf.function(lambda: self._run(self._mean_in_replica), autograph=False)
        self._sum = tf.function(self._sum_numbers, autograph=False)

    @property
    def in_graph(self) -> bool:
        """Never: collectives stand between two steps."""
        return False

    def center_of(self, a: int) -> list[tf.Variable]:
        """Return the center's weights on the device of the local replica number a."""
        return self._centers[a]

    def begin(self) -> None:
        """Bring the copies of the center on all devices up to date."""
        for center in self._centers:
            for variable, value in zip(center, self._center, strict=True):
                variable.assign(value)

    def gather(self) -> tf.Tensor:
        """Take the mean of the replicas: the one time that weights cross between devices."""
        self._gather()
        return tf.constant(0)

    def mean(self) -> list[tf.Tensor]:
        """Return the mean of the replicas' anchors, in all processes."""
        return self._strategy.experimental_local_results(self._mean())[0]

    def move_center(self) -> tf.Tensor:
        """Let the copies of the center move, each on its device."""
        for device, center, means in zip(self._devices, self._centers, self._means_on, strict=True):
            with tf.device(device):
                _move(self._coupling, center, means)
        for variable, value in zip(self._center, self._centers[0], strict=True):
            variable.assign(value)
        return tf.constant(0)

    def mean_numbers(self, numbers: Sequence[float]) -> float:
        """Return the mean over the replicas of all processes."""
        total = self._sum(tf.constant(numbers, tf.float64))
        return float(total) / self._strategy.num_replicas_in_sync

    def all_anchors(self) -> list[list[np.ndarray]]:
        """Return the anchors of the replicas of all processes."""
        own = [[w.numpy() for w in optimizer.anchors()] for optimizer in self.optimizers]
        return self.gathered(own)

    def gathered(self, own: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
        """Return lists of arrays of all replicas, given those of this process, in all processes."""
        if not _several_processes(self._strategy):
            return own
        count = self._strategy.num_replicas_in_sync
        found: list[list[np.ndarray]] = [[] for _ in range(count)]
        for parts in zip(*own, strict=True):
            dtype = parts[0].dtype
            whole = np.zeros((count, *parts[0].shape), np.float64)
            for a, part in enumerate(parts):
                whole[self._first + a] = part
            summed = self._sum_arrays(tf.constant(whole)).numpy()
            for a in range(count):
                found[a].append(summed[a].astype(dtype))
        return found

    # ---- inside the strategy ------------------------------------------------------------------

    def _run(self, function: Any) -> Any:
        return self._strategy.run(function)

    def _local(self) -> int:
        """Return which of this process' replicas is being traced."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return int(tf.get_static_value(replica)) - self._first

    def _mean_in_replica(self) -> list[tf.Tensor]:
        a = self._local()
        anchors = self.optimizers[a].anchors()
        flat = tf.concat([tf.reshape(w, [-1]) for w in anchors], axis=0)
        if self._coupling.rescales_center:
            flat = tf.concat([flat, [tf.linalg.global_norm(anchors)]], axis=0)
        # Several processes reduce only tensors that carry their device.
        with tf.device(self._devices[a]):
            flat = tf.identity(flat)
        context = tf.distribute.get_replica_context()
        flat = context.all_reduce(tf.distribute.ReduceOp.MEAN, flat)
        sizes = [int(np.prod(w.shape)) for w in anchors]
        parts = tf.split(flat[: sum(sizes)], sizes)
        means = [tf.reshape(p, w.shape) for p, w in zip(parts, anchors, strict=True)]
        return _rescaled(means, flat[-1]) if self._coupling.rescales_center else means

    def _gather_in_replica(self) -> None:
        a = self._local()
        means = self._mean_in_replica()
        targets = self._means_on[a] if self._means_on else self._centers[a]
        for variable, mean in zip(targets, means, strict=True):
            variable.assign(mean)

    def _sum_numbers(self, numbers: tf.Tensor) -> tf.Tensor:
        def in_replica() -> tf.Tensor:
            a = self._local()
            with tf.device(self._devices[a]):
                own = tf.identity(numbers[a])
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own)

        return self._strategy.experimental_local_results(self._strategy.run(in_replica))[0]

    def _sum_arrays(self, array: tf.Tensor) -> tf.Tensor:
        """Sum an array over the processes."""

        @tf.function(autograph=False)
        def total() -> tf.Tensor:
            def in_replica() -> tf.Tensor:
                a = self._local()
                with tf.device(self._devices[a]):
                    own = tf.identity(array) if a == 0 else tf.zeros_like(array)
                context = tf.distribute.get_replica_context()
                return context.all_reduce(tf.distribute.ReduceOp.SUM, own)

            return self._strategy.experimental_local_results(self._strategy.run(in_replica))[0]

        return total()


def _several_processes(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _rescaled(means: Weights, mean_norm: tf.Tensor) -> list[tf.Tensor]:
    norm = tf.linalg.global_norm(means)
    # A mean of zeros has no direction to be rescaled along.
    norm = tf.where(norm > 0, norm, tf.ones_like(norm))
    return [norm_mean(m, tf.cast(norm, m.dtype), tf.cast(mean_norm, m.dtype)) for m in means]


def _move(coupling: Coupling, center: Sequence[tf.Variable], means: Sequence[tf.Variable]) -> None:
    rate = getattr(coupling, "center_rate", None) or 0.0
    for variable, mean in zip(center, means, strict=True):
        variable.assign(elastic_center(variable, mean, tf.constant(rate, variable.dtype)))
