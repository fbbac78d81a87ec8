"""Moving statistics put into the weights, so that a network is a function of its weights alone.

In inference BatchNormalization computes

    y = g (x - m) / sqrt(v + ε) + b = a x + b',
    a = g / sqrt(v + ε),   b' = b - a m,

with moving statistics m and v of the training data, which are no weights. The same layer with the
scale a, the shift b', the mean 0 and the variance 1 - ε is the same function of x. A prior or a
posterior over (a, b') and all other weights is then one over the whole network, and nothing else in
the network depends on the data.
"""

from __future__ import annotations

import copy
import dataclasses

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf import _keras
from esgd_tf.landscape._objective import Objective
from esgd_tf.landscape._types import Vector

__all__ = ["absorb", "without_statistics"]


@dataclasses.dataclass(frozen=True)
class _Norm:
    """A layer: where its variables stand among the weights, and among the others."""

    gamma: int
    beta: int
    mean: int
    variance: int
    epsilon: float


def absorb(objective: Objective, vector: Vector, others: list[NDArray[np.float64]]) -> Vector:
    """Return weights [size] that give the same network with the moving statistics 0 and 1 - ε.

    Args:
        objective: Objective. The network, all of whose trainable weights are selected.
        vector: array of shape [size]. Its trainable weights.
        others: list of arrays. Its other variables.
    """
    shapes = [int(np.prod(shape)) for shape in objective.shapes]
    parts = np.split(vector, np.cumsum(shapes)[:-1])
    for norm in _norms(objective):
        variance = np.asarray(others[norm.variance], np.float64)
        parts[norm.gamma] = parts[norm.gamma] / np.sqrt(variance + norm.epsilon)
        mean = np.asarray(others[norm.mean], np.float64)
        parts[norm.beta] = parts[norm.beta] - parts[norm.gamma] * mean
    return np.concatenate(parts)


def without_statistics(objective: Objective) -> Objective:
    """Return an objective of the same network whose moving statistics are 0 and 1 - ε.

    Args:
        objective: Objective. The network.
    """
    weights = absorb(
        objective,
        objective.flatten(objective.start),
        [np.asarray(other) for other in objective.held[1]],
    )
    other = copy.copy(objective)
    other.start = objective.unflatten(weights)
    rest = list(objective.held[1])
    for norm in _norms(objective):
        mean, variance = rest[norm.mean], rest[norm.variance]
        rest[norm.mean] = tf.zeros_like(mean)
        rest[norm.variance] = tf.fill(variance.shape, tf.cast(1 - norm.epsilon, variance.dtype))
    other.held = (objective.held[0], rest)
    return other


def _norms(objective: Objective) -> list[_Norm]:
    """Return the layers that are trained. Those that are frozen do not depend on the data.

    Raises:
        ValueError: One has no scale or no shift to take its statistics up.
    """
    if objective.model is None:
        return []
    weights = {id(v): i for i, v in enumerate(objective.model.trainable_variables)}
    others = {id(v): i for i, v in enumerate(objective.model.non_trainable_variables)}
    found = []
    # By identity: a layer that is called twice has one scale.
    for layer in {id(layer): layer for layer in _keras.layers_in(objective.model)}.values():
        if not isinstance(layer, keras.layers.BatchNormalization) or not layer.trainable:
            continue
        if layer.gamma is None or layer.beta is None:
            raise ValueError(
                f"The layer {layer.name!r} has moving statistics of the training data and no scale "
                "or no shift (scale=False or center=False) that could take them up, so no prior "
                "over the weights is one over the network: there is no bound for it."
            )
        found.append(
            _Norm(
                weights[id(layer.gamma)],
                weights[id(layer.beta)],
                others[id(layer.moving_mean)],
                others[id(layer.moving_variance)],
                float(layer.epsilon),
            )
        )
    return found
