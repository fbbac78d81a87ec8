"""Computes the mean of the replicas and stores the center where each replica reads it.

The mean is all that replicas exchange. In one process without a strategy it is computed inside
the training graph. With a strategy, each replica is on its own device, perhaps of several machines,
and the mean is computed by one all-reduce of all weights in one vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.optimizers import LocalEntropy
from esgd_tf.replicas.coupling import Coupling, elastic_center, norm_mean

__all__ = ["Exchange", "StrategyExchange", "mean_of"]

Weights = Sequence[tf.Tensor]
# A list of arrays for each of several replicas.
Arrays = list[list[np.ndarray]]


def mean_of(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return the mean of tensors, one for each replica, summed in a fixed order.

    `tf.add_n` starts with whichever input it can overwrite, which depends on their timing, so that
    the same sum may differ in its last bits from run to run. TensorFlow's graph optimizer also
    turns a chain of additions into an `add_n`, unless an operation stands between them that it does
    not simplify.
    """
    total = parts[0]
    for part in parts[1:]:
        total = tf.raw_ops.PlaceholderWithDefault(input=total + part, shape=part.shape)
    return total / len(parts)


class Exchange:
    """Replicas on one device.

    Args:
        coupling: Coupling. The rule.
        center: keras.Model. The model that stands for the center.

    Attributes:
        state: The center as training knows it: what the next coupling attracts to. If the
            center has a state of its own, these are the model's variables. Else they are separate,
            and the model is updated whenever it is read.
        optimizers: The optimizers of this process's replicas.
    """

    def __init__(self, coupling: Coupling, center: keras.Model) -> None:
        self._coupling = coupling
        weights = center.trainable_variables
        self._center = [v.value for v in weights]
        self.state: list[keras.Variable] = (
            list(weights)
            if coupling.keeps_center
            # Given a tf.Variable instead of an array, Keras would wrap the model's own variable.
            else [
                keras.Variable(v.numpy(), dtype=v.dtype, name=f"center_{v.name}") for v in weights
            ]
        )
        # A center with a state of its own needs the mean beside it.
        self._means = [tf.Variable(v) for v in self._center] if coupling.keeps_center else None
        self.optimizers: list[LocalEntropy] = []

    def use(self, optimizers: Sequence[LocalEntropy]) -> None:
        """Set the optimizers of the replicas of this process."""
        self.optimizers = list(optimizers)

    @property
    def in_graph(self) -> bool:
        """Return whether `gather` runs inside the training graph, not between two of its runs."""
        return True

    def center_of(self, a: int) -> list[tf.Variable]:
        """Return the center's weights on the device of the local replica number a."""
        del a
        return [v.value for v in self.state]

    def begin(self) -> None:
        """Update the copies on the devices before training continues."""

    def store(self) -> None:
        """Update `state` before the center is read."""

    def gather(self) -> tf.Tensor:
        """Compute the mean of the replicas for the coupling of this step."""
        targets = self._means or self.center_of(0)
        for variable, mean in zip(targets, self.mean(), strict=True):
            variable.assign(mean)
        return tf.constant(0)

    def mean(self) -> list[tf.Tensor]:
        """Return the mean of the replicas' anchors, rescaled if the coupling asks for it."""
        anchors = [optimizer.anchors() for optimizer in self.optimizers]
        means = [mean_of(parts) for parts in zip(*anchors, strict=True)]
        if self._coupling.rescales_center:
            means = _rescaled(means, mean_of([tf.linalg.global_norm(parts) for parts in anchors]))
        return means

    def move_center(self) -> tf.Tensor:
        """Move a center that has a state of its own, after the replicas were attracted to it."""
        assert self._means is not None
        _move(self._coupling, self.center_of(0), self._means)
        return tf.constant(0)

    def mean_numbers(self, numbers: Sequence[float]) -> float:
        """Return the mean of one number per replica, given the numbers of this process."""
        return float(np.mean(numbers))

    def of_all(self, own: Arrays) -> Arrays:
        """Return the arrays of all replicas, given the arrays of this process."""
        return own


class StrategyExchange(Exchange):
    """Replicas of which each device of a strategy has one, in one process or several.

    Args:
        coupling: Coupling. The rule.
        center: keras.Model. The model that stands for the center.
        strategy: tf.distribute.Strategy. The strategy; each of its devices has one of our replicas.
        devices: sequence of str. The devices of this process, one per replica.
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
        several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self._first = strategy.cluster_resolver.task_id * len(self._devices) if several else 0
        # Between the CPUs of one process TensorFlow reduces by `add_n`: see `mean_of`.
        self._is_plain = not several and all("CPU" in str(device).upper() for device in devices)
        self._sum = tf.function(self._summed, autograph=False)

    def use(self, optimizers: Sequence[LocalEntropy]) -> None:
        """Set the optimizers, and drop graphs that were traced with earlier ones."""
        super().use(optimizers)
        self._gather = tf.function(
            self._gather_plainly
            if self._is_plain
            else lambda: self._strategy.run(self._gather_in_replica),
            autograph=False,
        )
        self._mean = tf.function(
            super().mean if self._is_plain else self._mean_by_strategy, autograph=False
        )

    @property
    def in_graph(self) -> bool:
        """Return False, since collectives run between two steps."""
        return False

    def center_of(self, a: int) -> list[tf.Variable]:
        """Return the center on the device of the local replica number a."""
        return self._centers[a]

    def begin(self) -> None:
        """Bring the copies of the center on all devices up to date."""
        for center in self._centers:
            for variable, value in zip(center, self.state, strict=True):
                variable.assign(value.value)

    def store(self) -> None:
        """Copy the center from the first device."""
        for variable, value in zip(self.state, self._centers[0], strict=True):
            variable.assign(value)

    def gather(self) -> tf.Tensor:
        """Compute the mean of the replicas: the only transfer of weights between devices."""
        self._gather()
        return tf.constant(0)

    def mean(self) -> list[tf.Tensor]:
        """Return the mean of the replicas' anchors, in all processes."""
        return self._mean()

    def move_center(self) -> tf.Tensor:
        """Move the copies of the center, each on its device."""
        for device, center, means in zip(self._devices, self._centers, self._means_on, strict=True):
            with tf.device(device):
                _move(self._coupling, center, means)
        return tf.constant(0)

    def mean_numbers(self, numbers: Sequence[float]) -> float:
        """Return the mean over the replicas of all processes."""
        return float(np.mean([found[0] for found in self.of_all([[np.array(n)] for n in numbers])]))

    def of_all(self, own: Arrays) -> Arrays:
        """Return lists of arrays of the replicas of all processes."""
        if len(own) == self._strategy.num_replicas_in_sync:
            return own
        # All arrays go into one vector: a trace and a collective for each array would be slow.
        flat = np.array([np.concatenate([p.ravel() for p in parts]) for parts in own], np.float64)
        everyone = np.zeros((self._strategy.num_replicas_in_sync, flat.shape[1]))
        everyone[self._first : self._first + len(own)] = flat
        ends = np.cumsum([part.size for part in own[0]])[:-1]
        return [
            [
                piece.reshape(part.shape).astype(part.dtype)
                for piece, part in zip(np.split(row, ends), own[0], strict=True)
            ]
            for row in self._sum(tf.constant(everyone)).numpy()
        ]

    # ---- inside the strategy ------------------------------------------------------------------

    def _mean_by_strategy(self) -> list[tf.Tensor]:
        means = self._strategy.run(self._mean_in_replica)
        return self._strategy.experimental_local_results(means)[0]

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

    def _gather_plainly(self) -> None:
        means = super().mean()
        for a in range(len(self._devices)):
            self._take(a, means)

    def _gather_in_replica(self) -> None:
        a = self._local()
        self._take(a, self._mean_in_replica())

    def _take(self, a: int, means: Weights) -> None:
        targets = self._means_on[a] if self._means_on else self._centers[a]
        for variable, mean in zip(targets, means, strict=True):
            variable.assign(mean)

    def _summed(self, array: tf.Tensor) -> tf.Tensor:
        """Sum an array over the processes; only the first replica of each adds it."""

        def in_replica() -> tf.Tensor:
            a = self._local()
            with tf.device(self._devices[a]):
                own = tf.identity(array) if a == 0 else tf.zeros_like(array)
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own)

        return self._strategy.experimental_local_results(self._strategy.run(in_replica))[0]


def _rescaled(means: Weights, mean_norm: tf.Tensor) -> list[tf.Tensor]:
    norm = tf.linalg.global_norm(means)
    # A mean of zeros cannot be rescaled.
    norm = tf.where(norm > 0, norm, tf.ones_like(norm))
    return [norm_mean(m, tf.cast(norm, m.dtype), tf.cast(mean_norm, m.dtype)) for m in means]


def _move(coupling: Coupling, center: Sequence[tf.Variable], means: Sequence[tf.Variable]) -> None:
    for variable, mean in zip(center, means, strict=True):
        rate = tf.cast(coupling.center_step, variable.dtype)
        variable.assign(elastic_center(variable, mean, rate))
