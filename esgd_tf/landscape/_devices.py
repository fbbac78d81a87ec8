"""A batch divided over the devices of a `tf.distribute.Strategy`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from esgd_tf.landscape._data import cut_rows, rows_of

__all__ = ["on_all_devices"]


def on_all_devices(
    strategy: tf.distribute.Strategy, function: Callable[..., Any], *arguments: Any
) -> Any:
    """In a graph: run `function(*arguments)` on the parts of a batch, one on each device.

    Args:
        strategy: tf.distribute.Strategy. The strategy whose devices compute.
        function: callable. Returns tensors that are sums over the examples it is given.
        *arguments: Those that all devices get, then x, y and sample_weight.

    Returns:
        What it returns, summed over the devices.
    """
    devices = strategy.num_replicas_in_sync
    *fixed, x, y, sample_weight = arguments
    batch = (x, y, sample_weight)
    given = [t for t in tf.nest.flatten(batch) if t is not None]
    rows = rows_of(x)

    def of_a_device(context: Any) -> Any:
        index = context.replica_id_in_sync_group
        start, stop = rows * index // devices, rows * (index + 1) // devices
        # A device for which no row is left takes one all the same, which counts 0 times: the
        # mean of nothing is not a number.
        counts = tf.cast(stop > start, tf.float32)
        return counts, [cut_rows(t, start, tf.maximum(stop, start + 1)) for t in given]

    def on_a_device(counts: tf.Tensor, parts: list[Any]) -> Any:
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
