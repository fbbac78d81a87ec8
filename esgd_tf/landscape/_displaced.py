"""The loss and its gradient at several displaced weights at once, for chains."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf.landscape._batch_loss import BatchLoss
from esgd_tf.landscape._objective import Objective

__all__ = ["Displaced"]

Array = NDArray[np.float64]


class Displaced:
    """f and ∇f at several displacements d = x' - x at once, [chains, n]."""

    def __init__(self, objective: Objective, chains: int) -> None:
        self._objective, self._chains = objective, chains
        self._start = objective.flatten(objective.start)
        self._graph = objective.graph("chains", _values_and_slopes)

    def __call__(self, displacements: Array) -> tuple[Array, Array]:
        objective = self._objective
        lists = [objective.unflatten(self._start + d) for d in displacements]
        sums = objective.sum_over_batches(self._graph, lists)
        values = np.array([float(s) for s in sums[: self._chains]])
        width = len(objective.shapes)
        slopes = [
            objective.flatten(sums[self._chains + c * width : self._chains + (c + 1) * width])
            for c in range(self._chains)
        ]
        return values / objective.count, np.stack(slopes) / objective.count

    def target(self, beta: float, gamma: float) -> Any:
        """Return U = β (f + γ/2 ‖d‖²) and its gradient, as `Chains` wants them."""

        def energies(displacements: Array) -> tuple[Array, Array]:
            values, slopes = self(displacements)
            proximal = 0.5 * gamma * (displacements**2).sum(axis=1)
            return beta * (values + proximal), beta * (slopes + gamma * displacements)

        return energies


def _values_and_slopes(f: BatchLoss, lists: Any, held: Any, *batch: Any) -> Any:
    """In a graph: return the losses of several lists of weights, and then all their gradients."""

    def on_a_device(lists: Any, held: Any, *batch: Any) -> Any:
        values, slopes = [], []
        for weights in lists:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                value = f.loss_sum(weights, held, *batch)
            values.append(value)
            found = tape.gradient(value, weights, unconnected_gradients="zero")
            slopes += [tf.convert_to_tensor(slope) for slope in found]
        return values + slopes

    return f.run(on_a_device, lists, held, *batch)
