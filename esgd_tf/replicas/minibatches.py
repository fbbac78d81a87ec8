"""Minibatches for replicas: each replica has its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from esgd_tf import _checks

__all__ = ["OwnMinibatches", "dealt", "make_minibatches", "shuffled"]


class OwnMinibatches:
    """A data set for every replica.

    Examples:
        >>> from esgd_tf import replicas
        >>> images = tf.data.Dataset.from_tensor_slices((x, y))
        >>> data = replicas.OwnMinibatches(lambda a: images.shuffle(50_000, seed=a).batch(32))
        >>> model = replicas.Replicas(build_model, 2, replicas.ElasticAveraging())
        >>> model.compile(keras.optimizers.SGD(0.1), loss)
        >>> model.fit(data, epochs=10)

    Args:
        make: callable. Called with the number a of a replica, returns its `tf.data.Dataset` of
            minibatches, (inputs, targets) or (inputs, targets, sample weights).
    """

    def __init__(self, make: Callable[[int], tf.data.Dataset]) -> None:
        self.make = make

    def zipped(self, replicas: Sequence[int]) -> tf.data.Dataset:
        """Return a data set whose elements are tuples of one minibatch per replica.

        Args:
            replicas: sequence of int. The numbers of the replicas.
        """
        return tf.data.Dataset.zip(tuple(self.make(a) for a in replicas))


def dealt(dataset: tf.data.Dataset, replicas: Sequence[int], count: int) -> tf.data.Dataset:
    """Distribute the minibatches of one data set: each replica gets every count-th.

    Args:
        dataset: tf.data.Dataset. The minibatches.
        replicas: sequence of int. The numbers of the replicas that receive minibatches.
        count: int >= 1. The number of all replicas.

    Returns:
        A data set whose elements are tuples of one minibatch per replica. The last minibatches are
        left out if there are too few for all replicas.
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


def checked_steps(steps_per_epoch: Any) -> int | None:
    """Return the checked number of steps of an epoch; None means one pass.

    Raises:
        ValueError: An epoch would have no steps, or never end.
    """
    if steps_per_epoch is None:
        return None
    return _checks.integer("steps_per_epoch", steps_per_epoch, at_least=1)


def shuffled(
    arrays: Any,
    *,
    batch_size: int,
    seed: int,
    first_step: int | Callable[[], int],
    shuffle: bool,
) -> tuple[tf.data.Dataset, int]:
    """Return endless minibatches of arrays, reshuffled in each epoch, and their number.

    Every batch is full: the last of an epoch is filled up from the start of its order. The order is
    a function of (seed, epoch), so that a run resumed at an epoch sees what it would have seen.

    Args:
        arrays: nested structure of arrays of equal length. The examples.
        batch_size: int >= 1. Examples of a minibatch.
        seed: int >= 0. The seed of the order.
        first_step: int >= 0, or a callable that returns it. The minibatch to start with, counted
            from the start of the first pass. A callable is asked when the first one is needed.
        shuffle: bool. Whether to shuffle at all.

    Returns:
        The data set and the minibatches of one epoch.
    """
    count = len(keras.tree.flatten(arrays)[0])
    batch_size = min(batch_size, count)
    steps = -(-count // batch_size)
    # A list would become one tensor, and a tuple does not.
    arrays = keras.tree.lists_to_tuples(arrays)
    with tf.device("/CPU:0"):
        tensors = keras.tree.map_structure(tf.convert_to_tensor, arrays)

    def epoch_indices(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.range(count)
        if shuffle:
            key = tf.stack([tf.constant(seed, tf.int64), epoch])
            order = tf.random.experimental.stateless_shuffle(order, key)
        filled = tf.concat([order, order[: steps * batch_size - count]], axis=0)
        return tf.data.Dataset.from_tensor_slices(tf.reshape(filled, [steps, batch_size]))

    def all_indices(_: tf.Tensor) -> tf.data.Dataset:
        if callable(first_step):
            first = tf.numpy_function(lambda: np.int64(first_step()), [], tf.int64)
            first = tf.ensure_shape(first, ())
        else:
            first = tf.constant(first_step, tf.int64)
        epochs = tf.data.Dataset.range(first // steps, np.iinfo(np.int64).max)
        return epochs.flat_map(epoch_indices).skip(first % steps)

    def batch(indices: tf.Tensor) -> Any:
        return keras.tree.map_structure(lambda t: tf.gather(t, indices), tensors)

    indices = tf.data.Dataset.from_tensors(0).flat_map(all_indices)
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
    first_epoch: int | Callable[[], int],
    steps_per_epoch: int | None,
    shuffle: bool,
) -> tuple[tf.data.Dataset, int | None]:
    """Make the training data set of `Replicas.fit` from its arguments.

    Args:
        x: nested structure of arrays, tf.data.Dataset, or OwnMinibatches. The inputs, or the
            minibatches.
        y: nested structure of arrays. The targets, with arrays.
        sample_weight: nested structure of arrays. The weights of the examples, with arrays.
        batch_size: int >= 1. Examples of a minibatch, with arrays; None for 32.
        local: sequence of int. The numbers of the replicas of this process.
        replicas: int >= 1. y, the number of replicas in all processes together.
        seed: int >= 0. The seed of the orders of arrays.
        first_epoch: int >= 0, or a callable that returns it. The first epoch. A callable is called
            when the first minibatch is needed.
        steps_per_epoch: int >= 1. Training steps of an epoch; None for one pass.
        shuffle: bool. Whether to shuffle arrays.

    Returns:
        A data set of tuples of one minibatch per local replica, and an epoch's steps, if known.

    Raises:
        ValueError: The data are of another kind, or of different lengths, or too few.
    """
    if isinstance(x, OwnMinibatches | tf.data.Dataset):
        if y is not None or sample_weight is not None or batch_size is not None:
            raise ValueError(
                "With a data set, targets, weights and the batch size are part of it: leave `y`, "
                "`sample_weight` and `batch_size` out."
            )
        if isinstance(x, OwnMinibatches):
            return x.zipped(local), None
        if 0 <= x.cardinality() < replicas:
            raise ValueError(
                f"The data set has {int(x.cardinality())} minibatches, fewer minibatches than the "
                f"{replicas} replicas that they are dealt to: none would get one. Use smaller "
                "minibatches, or repeat the data set."
            )
        return dealt(x, local, replicas), None
    arrays = tuple(part for part in (x, y, sample_weight) if part is not None)
    flat = keras.tree.flatten(arrays)
    if not flat or not all(hasattr(part, "shape") and len(part.shape) for part in flat):
        raise ValueError(
            "`fit` takes arrays, a tf.data.Dataset of minibatches, or OwnMinibatches; got "
            f"{_what_is_wrong(x, y, sample_weight)}."
        )
    if len({len(part) for part in flat}) != 1 or not len(flat[0]):
        raise ValueError(
            f"The arrays must have the same length, above 0; got {[len(p) for p in flat]}."
        )
    size = _checks.integer("batch_size", 32 if batch_size is None else batch_size, at_least=1)
    steps = (
        -(-len(flat[0]) // min(size, len(flat[0]))) if steps_per_epoch is None else steps_per_epoch
    )
    # The arrays are converted once for all replicas.
    with tf.device("/CPU:0"):
        arrays = keras.tree.map_structure(tf.convert_to_tensor, keras.tree.lists_to_tuples(arrays))

    def first_step() -> int:
        return (first_epoch() if callable(first_epoch) else first_epoch) * steps

    made = [
        shuffled(arrays, batch_size=size, seed=seed + a, first_step=first_step, shuffle=shuffle)
        for a in local
    ]
    return tf.data.Dataset.zip(tuple(dataset for dataset, _ in made)), steps


def _what_is_wrong(x: Any, y: Any, sample_weight: Any) -> str:
    """Return which of the arguments of `fit` is not an array."""
    for name, part in (("x", x), ("y", y), ("sample_weight", sample_weight)):
        for entry in keras.tree.flatten(part):
            if not hasattr(entry, "shape") or not len(entry.shape):
                if entry is part:
                    return f"{type(part).__name__} for `{name}`"
                return (
                    f"{type(part).__name__} for `{name}`, an entry of which is a "
                    f"{type(entry).__name__}: make an array of it"
                )
    return type(x).__name__
