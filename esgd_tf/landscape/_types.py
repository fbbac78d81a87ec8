"""The types that several modules of this room name in their signatures.

Keras and TensorFlow ship no types, so that a type checker takes their classes for anything; the
names say all the same what is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Batch", "Data", "Held", "Loss", "LossWeights", "Metric", "Nested", "Network",
    "Tensors", "Vector", "Weights",
]  # fmt: skip

#: A vector of all weights, or what is computed of one, in float64.
Vector: TypeAlias = NDArray[np.float64]
Tensors: TypeAlias = list[tf.Tensor]
#: A tensor, or lists, tuples and dictionaries of tensors; None where there is none.
Nested: TypeAlias = tf.Tensor | Sequence["Nested"] | Mapping[str, "Nested"] | None
#: (x, y, sample_weight): inputs, targets and weights of a batch of examples.
Batch: TypeAlias = tuple[Nested, Nested, Nested]
#: What the loss is not a function of: the weights that are held fixed, and other variables, such as
#: the statistics of BatchNormalization.
Held: TypeAlias = tuple[Tensors, Tensors]

#: Weights as they may be given, one array for each.
Weights: TypeAlias = Sequence[ArrayLike | tf.Tensor | keras.Variable]
#: What is measured: a Keras model, or weights that belong to none.
Network: TypeAlias = keras.Model | Weights
#: What Keras' `compile` takes as a loss; or a function of (weights, x, y), or of (weights).
Loss: TypeAlias = (
    str
    | keras.losses.Loss
    | Callable[..., tf.Tensor]
    | Sequence["Loss"]
    | Mapping[str, "Loss"]
    | None
)
#: What `compile` takes as `loss_weights`.
LossWeights: TypeAlias = float | Sequence["LossWeights"] | Mapping[str, "LossWeights"] | None
#: "error" or "loss", a Keras loss or metric, or a function of (y_true, y_pred).
Metric: TypeAlias = str | keras.losses.Loss | keras.metrics.Metric | Callable[..., tf.Tensor]
#: Arrays, or what gives batches when it is iterated.
Data: TypeAlias = (
    ArrayLike
    | tf.data.Dataset
    | keras.utils.PyDataset
    | Iterable[object]
    | Mapping[str, object]
    | None
)
