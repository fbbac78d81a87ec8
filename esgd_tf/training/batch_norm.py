"""BatchNormalization statistics, estimated anew for the weights that the model holds now.

The moving statistics that training leaves behind were gathered along the Langevin weights x', and
with dropout on. At the anchor they are wrong. The authors' code feeds data through the network once
more, in training mode and without dropout, before it evaluates; its Lua version feeds the
EVALUATION set, which leaks. Here it is training data, and the result is the mean and the variance
over all of it, not a moving average of the last batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

__all__ = ["BatchNormAveraging", "BatchNormReestimation", "reestimate_batch_norm"]


def reestimate_batch_norm(model: keras.Model, data: Iterable[Any]) -> int:
    """Set the moving statistics of all BatchNormalization layers to those of `data`.

    For batches k of n_k examples with channel means m_k and (biased) variances s_k,

        mean = Σ n_k m_k / Σ n_k,    variance = Σ n_k (s_k + m_k^2) / Σ n_k - mean^2.

    As in training, every layer sees inputs that the layers before it have normalised with the
    statistics of the batch. Dropout and noise layers are off. Frozen layers are left alone.

    Args:
        model: A built Keras model.
        data: Batches of TRAINING data: (inputs, ...) tuples or inputs.

    Returns:
        The number of examples used: 0 if the model has no such layer.

    Raises:
        ValueError: `data` has no batches.
    """
    return BatchNormReestimation(model)(data)


class BatchNormReestimation:
    """`reestimate_batch_norm` for one model, keeping its traced function from call to call."""

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self._layers = _batch_norm_layers(model)
        self._forward = tf.function(self._batch_statistics, reduce_retracing=True)

    def __call__(self, data: Iterable[Any]) -> int:
        """Estimate from `data`; see `reestimate_batch_norm`."""
        if not self._layers:
            return 0
        examples = 0
        sums: list[np.ndarray] = []
        with self.model.distribute_strategy.scope():
            for batch in data:
                inputs = batch[0] if isinstance(batch, list | tuple) else batch
                count = int(keras.tree.flatten(inputs)[0].shape[0])
                moments = []
                for statistics in self._forward(inputs):
                    mean, variance = (s.numpy().astype(np.float64) for s in statistics)
                    moments += [mean, variance + mean**2]
                sums = (
                    [count * m for m in moments]
                    if not sums
                    else [s + count * m for s, m in zip(sums, moments, strict=True)]
                )
                examples += count
            if examples == 0:
                raise ValueError(
                    "There is no batch to estimate BatchNormalization statistics from."
                )
            for layer, first, second in zip(self._layers, sums[::2], sums[1::2], strict=True):
                mean = first / examples
                layer.moving_mean.assign(mean)
                layer.moving_variance.assign(np.maximum(second / examples - mean**2, 0.0))
        return examples

    def _batch_statistics(self, inputs: Any) -> list[tuple[tf.Tensor, tf.Tensor]]:
        # The attributes are read while this is traced, and only then.
        with self._deterministic_layers():
            self.model(inputs, training=True)
            return [
                (
                    tf.identity(tf.convert_to_tensor(layer.moving_mean.value)),
                    tf.identity(tf.convert_to_tensor(layer.moving_variance.value)),
                )
                for layer in self._layers
            ]

    @contextlib.contextmanager
    def _deterministic_layers(self) -> Iterator[None]:
        """Dropout off, and with momentum 0 the moving statistics are those of the batch."""
        changed = [(layer, "momentum", layer.momentum) for layer in self._layers]
        for layer in self.model._flatten_layers():
            for attribute in ("rate", "stddev"):
                if isinstance(layer, _STOCHASTIC) and hasattr(layer, attribute):
                    changed.append((layer, attribute, getattr(layer, attribute)))
        try:
            for layer, attribute, _ in changed:
                setattr(layer, attribute, 0.0)
            yield
        finally:
            for layer, attribute, value in changed:
                setattr(layer, attribute, value)


_STOCHASTIC = (
    keras.layers.Dropout,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)


class BatchNormAveraging:
    """Sets every replica's moving statistics to their mean over the replicas of one model.

    Under tf.distribute each replica moves statistics of its own, from its part of the batch, and
    what is saved is the first one's. The mean is a better estimate and the same everywhere. As the
    moving average is linear, how often this is done changes them by no more than rounding.
    """

    def __init__(self, model: keras.Model) -> None:
        self._strategy = model.distribute_strategy
        self._statistics = [
            variable
            for layer in _batch_norm_layers(model)
            if not layer.synchronized
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        self._average = tf.function(
            lambda: self._strategy.run(self._average_in_replica), autograph=False
        )

    def __call__(self) -> None:
        """Average, in all processes at the same point."""
        if self._strategy.num_replicas_in_sync > 1 and self._statistics:
            with self._strategy.scope():
                self._average()

    def _average_in_replica(self) -> None:
        local = []
        for variable in self._statistics:
            # Several processes reduce only tensors that carry their device.
            with tf.device(variable.value.device):
                local.append(tf.identity(variable.value))
        means = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, local)
        for variable, mean in zip(self._statistics, means, strict=True):
            variable.assign(mean)


def _batch_norm_layers(model: keras.Model) -> list[Any]:
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
