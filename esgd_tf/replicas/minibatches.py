"""Minibatches for replicas: each sees its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.optimizers import _checks

__all__ = ["OwnMinibatches", "dealt", "make_minibatches", "shuffled"]


class OwnMinibatches:
    """A data set for every replica.

    Example:
        >>> data = OwnMinibatches(lambda a: dataset.shuffle(50_000, seed=a).batch(128))
        >>> replicas.fit(data, epochs=10)

    Args:
        make: Called with the number a of a replica, returns its `tf.data.Dataset` of minibatches,
            (inputs, targets) or (inputs, targets, sample weights).
    """

    def __init__(self, make: Callable[[int], tf.data.Dataset]) -> None:
        self.make = make

    def zipped(self, replicas: Sequence[int]) -> tf.data.Dataset:
        """Return a data set whose elements are tuples of one minibatch a replica.

        Args:
            replicas: Numbers of the replicas.
        """
        return tf.data.Dataset.zip(tuple(self.make(a) for a in replicas))


def dealt(dataset: tf.data.Dataset, replicas: Sequence[int], count: int) -> tf.data.Dataset:
    """Deal out the minibatches of one data set: every replica gets every count-th.

    Args:
        dataset: Of minibatches.
        replicas: Numbers of the replicas to deal to.
        count: Replicas in all.

    Returns:
        A data set whose elements are tuples of one minibatch a replica. Minibatches that do not
        go round are left out.
    """

    def hand(*windows: Any) -> tf.data.Dataset:
        structure = windows if len(windows) > 1 else windows[0]
        cards = tf.data.Dataset.zip(structure)
        return tf.data.Dataset.zip(tuple(cards.skip(a).take(1) for a in replicas))

    cardinality = dataset.cardinality()
    out = dataset.window(count, drop_remainder=True).flat_map(hand)
    if cardinality >= 0:
        out = out.apply(tf.data.experimental.assert_cardinality(cardinality // count))
    elif cardinality == tf.data.INFINITE_CARDINALITY:
        out = out.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    return out.prefetch(tf.data.AUTOTUNE)


def shuffled(
    arrays: Any, *, batch_size: int, seed: int, first_step: int, shuffle: bool
) -> tuple[tf.data.Dataset, int]:
    """Return endless minibatches of arrays, in an order of its own each epoch, and their number.

    Every batch is full: the last of an epoch is filled up from the start of its order. The order is
    a function of (seed, epoch), so that a run resumed at an epoch sees what it would have seen.

    Args:
        arrays: A structure of arrays of equal length.
        batch_size: Examples a minibatch.
        seed: Of the order.
        first_step: Where to start: minibatches since the start of the first pass.
        shuffle: Whether to shuffle at all.

    Returns:
        The data set and the minibatches of one epoch.
    """
    count = len(keras.tree.flatten(arrays)[0])
    batch_size = min(batch_size, count)
    steps = -(-count // batch_size)
    first_epoch, first_batch = divmod(first_step, steps)
    with tf.device("/CPU:0"):
        tensors = keras.tree.map_structure(tf.convert_to_tensor, arrays)

    def epoch_indices(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.range(count)
        if shuffle:
            key = tf.stack([tf.constant(seed, tf.int64), epoch])
            order = tf.random.experimental.stateless_shuffle(order, key)
        filled = tf.concat([order, order[: steps * batch_size - count]], axis=0)
        return tf.data.Dataset.from_tensor_slices(tf.reshape(filled, [steps, batch_size]))

    def batch(indices: tf.Tensor) -> Any:
        return keras.tree.map_structure(lambda t: tf.gather(t, indices), tensors)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    indices = epochs.flat_map(epoch_indices).skip(first_batch)
    dataset = indices.map(batch, num_parallel_calls=tf.data.AUTOTUNE)
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return dataset.apply(endless).prefetch(tf.data.AUTOTUNE), steps


def make_minibatches(
    x: Any,
    y: Any,
    sample_weight: Any,
    batch_size: int | None,
    *,
    local: Sequence[int],
    replicas: int,
    seed: int,
    first_epoch: int,
    steps_per_epoch: int | None,
    shuffle: bool,
) -> tuple[tf.data.Dataset, int | None]:
    """Make what `Replicas.fit` trains on out of what it is given.

    Args:
        x: Arrays, a data set, or `OwnMinibatches`.
        y: Targets, with arrays.
        sample_weight: With arrays.
        batch_size: With arrays; None for 32.
        local: Numbers of the replicas of this process.
        replicas: y, those of all.
        seed: Of the orders of arrays.
        first_epoch: Where to start.
        steps_per_epoch: Training steps of an epoch; None for one pass.
        shuffle: Whether to shuffle arrays.

    Returns:
        A data set of tuples of one minibatch a local replica, and the steps of an epoch, if known.

    Raises:
        ValueError: The data are of another kind, or of different lengths.
    """
    if isinstance(x, OwnMinibatches | tf.data.Dataset):
        if y is not None or sample_weight is not None or batch_size is not None:
            raise ValueError(
                "With a data set, targets, weights and the batch size are part of it: leave `y`, "
                "`sample_weight` and `batch_size` out."
            )
        if isinstance(x, OwnMinibatches):
            return x.zipped(local), None
        return dealt(x, local, replicas), None
    arrays = tuple(part for part in (x, y, sample_weight) if part is not None)
    flat = keras.tree.flatten(arrays)
    if not flat or not all(hasattr(part, "shape") and len(part.shape) for part in flat):
        raise ValueError(
            "`fit` takes arrays, a tf.data.Dataset of minibatches, or OwnMinibatches; got "
            f"{type(x).__name__}."
        )
    if len({len(part) for part in flat}) != 1 or not len(flat[0]):
        raise ValueError(
            f"The arrays must have the same length, above 0; got {[len(p) for p in flat]}."
        )
    size = _checks.integer("batch_size", 32 if batch_size is None else batch_size, at_least=1)
    steps = (
        -(-len(flat[0]) // min(size, len(flat[0]))) if steps_per_epoch is None else steps_per_epoch
    )
    made = [
        shuffled(
            arrays, batch_size=size, seed=seed + a, first_step=first_epoch * steps, shuffle=shuffle
        )
        for a in local
    ]
    return tf.data.Dataset.zip(tuple(dataset for dataset, _ in made)), steps
