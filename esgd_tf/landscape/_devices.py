"""A batch divided over the devices of a `tf.distribute.Strategy`."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from esgd_tf.landscape._batch import cut_rows, rows_of
from esgd_tf.landscape._types import Nested, Tensors

__all__ = ["on_all_devices", "strategy_of"]


def strategy_of(model: keras.Model | None) -> tf.distribute.Strategy | None:
    """Return the strategy under which a model was made if it has several devices, else None."""
    strategy = getattr(model, "distribute_strategy", None)
    return strategy if strategy is not None and strategy.num_replicas_in_sync > 1 else None


def on_all_devices(
    strategy: tf.distribute.Strategy, function: Callable[..., Tensors], *arguments: Nested
) -> Tensors:
    """In a graph: run `function(*arguments)` on the parts of a batch, one on each device.

    Args:
        strategy: tf.distribute.Strategy. The strategy whose devices compute.
        function: callable. Returns tensors that are sums over the examples it is given.
        *arguments: The arguments that all devices get, then x, y and sample_weight.

    Returns:
        The tensors of the function, summed over the devices.
    """
    devices = strategy.num_replicas_in_sync
    *fixed, x, y, sample_weight = arguments
    batch = (x, y, sample_weight)
    given = [t for t in tf.nest.flatten(batch) if t is not None]
    rows = rows_of(x)

    def of_a_device(context: tf.distribute.ReplicaContext) -> tuple[tf.Tensor, Tensors]:
        index = context.replica_id_in_sync_group
        start, stop = rows * index // devices, rows * (index + 1) // devices
        # A device for which no row is left takes one all the same, which counts 0 times, because
        # the mean over no rows would be NaN.
        counts = tf.cast(stop > start, tf.float32)
        return counts, [cut_rows(t, start, tf.maximum(stop, start + 1)) for t in given]

    def on_a_device(counts: tf.Tensor, parts: Tensors) -> Tensors:
        rest = iter(parts)
        mine = tf.nest.map_structure(lambda t: None if t is None else next(rest), batch)
        return tf.nest.map_structure(
            lambda r: r * tf.cast(counts, r.dtype), function(*fixed, *mine)
        )

    parts = strategy.experimental_distribute_values_from_function(of_a_device)
    results = strategy.run(on_a_device, args=parts)
    return tf.nest.map_structure(
        lambda r: strategy.reduce(tf.distribute.ReduceOp.SUM, r, axis=None), results
    )
