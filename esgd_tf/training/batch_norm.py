"""BatchNormalization statistics, estimated anew for the weights that the model holds now.

The moving statistics that training leaves behind were gathered along the Langevin weights x', and
with dropout on. At the anchor they are wrong. The authors' code feeds data through the network once
more, in training mode and without dropout, before it evaluates; its Lua version feeds the
EVALUATION set, which leaks. Here it is training data, and the result is the mean and the variance
over all of it, not a moving average of the last batches.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from esgd_tf import _keras
from esgd_tf._warn import warn
from esgd_tf.training.batch_inputs import input_batches
from esgd_tf.training.batch_norm_sums import add_statistics

__all__ = ["BatchNormAveraging", "BatchNormReestimation", "reestimate_batch_norm"]


def reestimate_batch_norm(model: keras.Model, data: Iterable[Any]) -> int:
    """Estimate the moving statistics of all BatchNormalization layers from `data`.

    A layer is called once or several times for a batch (in a siamese network, in TimeDistributed,
    in a recurrent cell), and each call sees some number of positions: examples, times pixels or
    time steps. For calls k with n_k positions, channel means m_k and (biased) variances s_k,

        mean = Σ n_k m_k / Σ n_k,    variance = Σ n_k (s_k + m_k^2) / Σ n_k - mean^2,

    the mean and the biased variance over all positions of all calls. The sums are float64; m_k and
    s_k are in two passes, in the precision of the activations but no less than float32. Positions
    that a mask leaves out do not count. Renormalising layers (`renorm=True`) get the
    `moving_stddev` that belongs to it too.

    As in training, every layer sees inputs that the layers before it have normalised with the
    statistics of the call. All else is in inference mode: dropout, noise and random augmentation
    are off wherever they are, spectral normalisation leaves its kernel, and no other variable of
    Keras changes. Frozen layers are left alone and act as in inference, as in training; so are
    calls that the network itself makes with `training=False`.

    Under a strategy every batch is run whole, on one device, and is normalised whole, whether or
    not the layer is `synchronized`. With several processes, each uses the data that it is given.

    Args:
        model: keras.Model. A built model, whose moving statistics are set.
        data: Batches of TRAINING data: (inputs, targets, weights) tuples, of which only the inputs
            are used, or inputs; see `input_batches`. Whole arrays are refused.

    Returns:
        The number of examples used: 0 if the model has no such layer.

    Raises:
        TypeError: `data` is nothing to iterate over.
        ValueError: `data` has no batches, or is not batches; the model is not built; the
            statistics are not finite; or a layer is of a class that does more than Keras' layer.
            The statistics are then as before, as after any other error.
    """
    return BatchNormReestimation(model).estimate(data)


class BatchNormReestimation:
    """`reestimate_batch_norm` for one model, keeping its traced function from call to call.

    It is for callbacks: where the statistics are not finite, for training diverged, they are left
    as they are, with a warning, so that training ends in the way that its user has chosen.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self._layers: list[Any] = []
        self._sums: list[tf.Variable] = []
        self._forward: Callable[[Any], None]
        self._has_warned = False

    def __call__(self, data: Iterable[Any]) -> int:
        """Estimate from `data`, and return 0 if what comes is not finite; see `estimate`."""
        try:
            return self.estimate(data)
        except _NotFiniteError as error:
            if not self._has_warned:
                warn(str(error))
            self._has_warned = True
            return 0

    def estimate(self, data: Iterable[Any]) -> int:
        """Estimate from `data`; see `reestimate_batch_norm`."""
        if not self.model.built:
            raise ValueError(
                f"Model {self.model.name!r} has no weights yet: call it on a batch, or train it, "
                "before its BatchNormalization statistics are estimated."
            )
        layers = _batch_norm_layers(self.model)
        if not layers:
            return 0
        examples = 0
        with self.model.distribute_strategy.scope():
            self._prepare(layers)
            for count, inputs in input_batches(data):
                self._forward(inputs)
                examples += count
            if examples == 0:
                once = " (an iterator gives its batches only once)" if iter(data) is data else ""
                raise ValueError(
                    f"There is no batch to estimate BatchNormalization statistics from{once}."
                )
            # All are computed before the first is changed.
            found = [
                statistic
                for layer, sums in zip(layers, self._sums, strict=True)
                for statistic in _statistics(layer, sums.numpy())
            ]
            for variable, value in found:
                variable.assign(value)
        return examples

    def _prepare(self, layers: list[Any]) -> None:
        """Start the sums at zero, and trace anew if a layer was frozen or released meanwhile."""
        if [id(layer) for layer in layers] != [id(layer) for layer in self._layers]:
            for layer in layers:
                _refuse_what_is_not_understood(layer)
            self._layers = layers
            self._sums = [
                tf.Variable(tf.zeros([3, *layer.moving_mean.shape], tf.float64), trainable=False)
                for layer in layers
            ]
            known_length = any(
                isinstance(layer, keras.layers.TimeDistributed)
                for layer in _keras.layers_in(self.model)
            )
            self._forward = tf.function(
                functools.partial(add_statistics, self.model, layers, self._sums),
                reduce_retracing=not known_length,
            )
        else:
            for sums in self._sums:
                sums.assign(tf.zeros_like(sums))


class _NotFiniteError(ValueError):
    """The statistics of a layer are NaN or infinite."""


def _statistics(layer: Any, sums: np.ndarray) -> list[tuple[keras.Variable, tf.Tensor]]:
    """Return the new values of a layer's moving statistics: none if it was never called.

    Args:
        layer: keras.layers.BatchNormalization. The layer.
        sums: NumPy array of shape [3, channels]. The count, the sum and the sum of squares.

    Raises:
        _NotFiniteError: They are not finite.
    """
    count, first, second = sums
    seen = count > 0  # a mask over channels may leave out some of them
    count = np.where(seen, count, 1.0)
    mean = first / count
    variance = np.maximum(second / count - mean**2, 0.0)
    values = [(layer.moving_mean, mean), (layer.moving_variance, variance)]
    if getattr(layer, "renorm", False):  # the next training step makes the variance of it
        values.append((layer.moving_stddev, np.sqrt(variance + layer.epsilon)))
    result = []
    for variable, value in values:
        old = keras.ops.convert_to_numpy(variable).astype(np.float64)
        new = tf.cast(np.where(seen, value, old), variable.dtype)
        if not np.isfinite(tf.cast(new, tf.float64).numpy()[seen]).all():
            raise _NotFiniteError(
                f"The mean or variance of the inputs of BatchNormalization layer {layer.path!r} is "
                "not finite, so no statistic was changed: look for NaN, infinity or huge numbers "
                "in the data and in the weights."
            )
        result.append((variable, new))
    return result


def _refuse_what_is_not_understood(layer: Any) -> None:
    """Raise for a subclass of which Keras' formula may not say what it does.

    Raises:
        ValueError: Its `call` is its own and takes no `training`, or it has further variables.
    """
    known = [v for v in (layer.gamma, layer.beta, *_moving(layer)) if v is not None]
    why = None
    if "training" not in inspect.signature(layer.call).parameters:
        why = "whose `call` has no argument `training`"
    elif len(layer.variables) > len(known):
        why = "which has variables that Keras' layer has not"
    if why is not None:
        raise ValueError(
            f"Layer {layer.path!r} is a {type(layer).__name__}, {why}: its statistics cannot be "
            "estimated; set its `trainable` to False to leave them as they are."
        )


class BatchNormAveraging:
    """Sets every replica's moving statistics to their mean over the replicas of one model.

    Under tf.distribute each replica moves statistics of its own, from its part of the batch, and
    what is saved is the first one's. The mean is a better estimate and the same everywhere. As the
    moving average is linear, how often this is done changes them by no more than rounding (but
    where `renorm=True` reads them in training). Frozen layers are left alone.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._strategy = model.distribute_strategy
        self._statistics: list[keras.Variable] = []
        self._average: Callable[[], None]

    def __call__(self) -> None:
        """Average, in all processes at the same point."""
        if self._strategy.num_replicas_in_sync == 1:
            return
        statistics = [
            variable
            for layer in _batch_norm_layers(self._model)
            if not layer.synchronized
            for variable in _moving(layer)
        ]
        if [id(v) for v in statistics] != [id(v) for v in self._statistics]:
            self._statistics = statistics
            self._average = tf.function(
                lambda: self._strategy.run(self._average_in_replica), autograph=False
            )
        if statistics:
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


def _moving(layer: Any) -> list[keras.Variable]:
    """Return all that a layer moves in training."""
    names = ["moving_mean", "moving_variance"]
    if getattr(layer, "renorm", False):
        names += ["moving_stddev", "renorm_mean", "renorm_stddev"]
    return [getattr(layer, name) for name in names]


def _batch_norm_layers(model: keras.Model) -> list[Any]:
    return [
        layer
        for layer in _keras.layers_in(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable and layer.built
    ]
