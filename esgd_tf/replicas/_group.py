"""The replicas of one model and their coupling, shared by the parts of `Replicas`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras

from esgd_tf.replicas._exchange import Exchange
from esgd_tf.replicas._optimizer import ReplicasOptimizer
from esgd_tf.replicas.coupling import Coupling

__all__ = ["Group"]


@dataclasses.dataclass
class Group:
    """The replicas, their center and their coupling.

    Args:
        build_model: callable. Returns a new, built model; see `Replicas`.
        count: int >= 1. y, the number of replicas in all processes together.
        coupling: Coupling. The rule.
        members: list of keras.Model. All replicas; those that other processes train are copies.
        local: list of int. The numbers of the replicas that this process trains.
        devices: list of str. The device of each of those; None leaves it to TensorFlow.
        center: keras.Model. The model that holds the center.
        exchange: Exchange. Computes means over the replicas.
        optimizer: ReplicasOptimizer. The optimizers of all replicas. Defaults to None, which holds
            before `compile`.
    """

    build_model: Callable[..., keras.Model]
    count: int
    coupling: Coupling
    members: list[keras.Model]
    local: list[int]
    devices: list[str | None]
    center: keras.Model
    exchange: Exchange
    optimizer: ReplicasOptimizer | None = None

    @property
    def is_compiled(self) -> bool:
        """Return whether there are optimizers."""
        return self.optimizer is not None

    @property
    def optimizers(self) -> ReplicasOptimizer:
        """The optimizers of all replicas, after `compile`."""
        assert self.optimizer is not None
        return self.optimizer

    @property
    def is_whole(self) -> bool:
        """Return whether this process trains all replicas."""
        return len(self.local) == self.count

    @property
    def own(self) -> list[keras.Model]:
        """The replicas that this process trains."""
        return [self.members[a] for a in self.local]
