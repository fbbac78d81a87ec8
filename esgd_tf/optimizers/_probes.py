"""Find out whether someone else has changed the weights between two steps.

Between two steps anyone may put other weights into the model: `set_weights`, a callback that clips
or prunes, a checkpoint. The old anchor would then undo that at the next outer update. So sixteen
numbers of every weight are remembered after each step, and compared before the next: a weight that
was changed from outside starts its inner loop anew from where it is. Differences of the size of
rounding do not count, because Keras' `SwapEMAWeights` swaps by arithmetic. A change of a few single
numbers of a large weight can go unseen; it then counts as a part of the Langevin walk.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf.optimizers._variables import as_tf, rounding

__all__ = ["Probes"]

# Numbers of each weight that are remembered.
_PROBES = 16
# Weights of no more numbers than this are joined to be probed.
_JOINED = 2**17


class Probes:
    """Sixteen numbers of every weight, as the last step left them.

    Args:
        owner: keras.optimizers.Optimizer. The optimizer that saves the numbers as its state.
        weights: list of keras.Variable. The weights that are watched.
    """

    def __init__(
        self, owner: keras.optimizers.Optimizer, weights: Sequence[keras.Variable]
    ) -> None:
        self._weights = list(weights)
        self._seen = owner.add_variable(
            shape=(len(self._weights), _PROBES),
            initializer="zeros",
            dtype="float64",
            aggregation="only_first_replica",
            name="probes",
        )

    def is_replaced(self, distribution: tf.distribute.Strategy) -> tf.Tensor:
        """Return, for each weight, whether it differs from what the last step left.

        This must be called outside any replica.

        Args:
            distribution: tf.distribute.Strategy. The strategy in force.

        Returns:
            A bool tensor of shape [number of weights].
        """
        seen = tf.convert_to_tensor(self._seen.value)
        now = self._now(distribution)
        epsilon = [rounding(weight.dtype) for weight in self._weights]
        largest = tf.reduce_max(tf.maximum(tf.abs(seen), tf.abs(now)), axis=1)
        tolerance = 4.0 * tf.constant(epsilon, tf.float64) * largest
        # A NaN that was a NaN before counts as unchanged.
        same = tf.abs(now - seen) <= tolerance[:, tf.newaxis]
        same |= tf.math.is_nan(now) & tf.math.is_nan(seen)
        same |= tf.equal(now, seen)  # infinities
        return ~tf.reduce_all(same, axis=1)

    def remember(
        self, distribution: tf.distribute.Strategy, taken: tf.Tensor | None = None
    ) -> None:
        """Remember the weights as a step has left them; this must be called outside any replica.

        Args:
            distribution: tf.distribute.Strategy. The strategy in force.
            taken: bool scalar tensor. Whether a step was taken; the same in all replicas. Defaults
                to None, which means that one was.
        """
        now = self._now(distribution)
        if taken is not None:
            taken = distribution.experimental_local_results(taken)[0]
            now = tf.where(taken, now, tf.convert_to_tensor(self._seen.value))
        distribution.extended.update(
            self._seen.value, lambda v, probes: v.assign(probes), args=(now,), group=False
        )

    def _now(self, distribution: tf.distribute.Strategy) -> tf.Tensor:
        """Return 16 numbers of every weight: float64 [number of weights, 16]."""
        weights = [as_tf(weight) for weight in self._weights]
        # The fused kernels copy a weight first while a tensor that was read from it lives: these
        # are gone by then, since whatever changes the weights waits for what the probes say.
        values = [
            tf.reshape(tf.convert_to_tensor(distribution.experimental_local_results(w)[0]), [-1])
            for w in weights
        ]
        # For small networks the number of operations counts: their weights are joined, and one
        # operation picks from all of a dtype. Large weights are too large to be copied for that.
        groups: dict[tf.DType | int, list[int]] = {}
        for i, value in enumerate(values):
            together = value.dtype if value.shape[0] <= _JOINED else i
            groups.setdefault(together, []).append(i)
        rows = [_probe([values[i] for i in numbers]) for numbers in groups.values()]
        if len(rows) == 1:
            return rows[0]
        order = np.argsort([i for numbers in groups.values() for i in numbers])
        return tf.gather(tf.concat(rows, axis=0), order)


def _probe(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return 16 numbers of each flat tensor, all of one dtype: float64 [number, 16]."""
    places, start = [], 0
    for value in values:
        places.append(start + _places(value.shape[0]))
        start += value.shape[0]
    if start == 0:
        return tf.zeros([len(values), _PROBES], tf.float64)
    joined = values[0] if len(values) == 1 else tf.concat(values, axis=0)
    # An empty weight has no numbers of its own; any will do that does not change.
    at = np.minimum(np.stack(places), start - 1)
    return tf.cast(tf.gather(joined, tf.constant(at, tf.int64)), tf.float64)


def _places(size: int) -> NDArray[np.int64]:
    """Return 16 places of a flat weight, spread at unequal steps; of a short weight, all places."""
    if size <= _PROBES:
        return np.arange(_PROBES) % max(size, 1)
    return np.sort(np.random.default_rng(size).choice(size, _PROBES, replace=False))
