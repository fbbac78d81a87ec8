"""The state of the inner loop: how far it has come, which weights take part, whether they are its.

*Phase.* How many Langevin steps have been taken since the last outer update. It is state of its
own: `iterations` may be assigned, and a file may come from an optimizer with another L.

*Membership.* A weight joins the inner loop with its first gradient in it: then anchor = mean = x'
= x and v = 0. The outer update moves those that have joined and no others. So weights that get
their gradients in turn (two losses, a frozen part) are never dragged by a loop they are not in.

*Probes.* Between two steps anyone may put other weights into the model: `set_weights`, a callback
that clips or prunes, a checkpoint. The old anchor would then undo that at the next outer update. So
sixteen numbers of every weight are remembered after each step, and compared before the next: a
weight that was changed from outside starts its inner loop anew from where it is. Differences of the
size of rounding do not count: Keras' `SwapEMAWeights` swaps by arithmetic. What a probe cannot see
is a change of a few single numbers of a large weight, which then counts as a part of the walk.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Numbers of each weight that are remembered.
_PROBES = 16
# Weights of no more numbers than this are joined to be probed.
_JOINED = 2**17


class InnerLoop:
    """The variables of the inner loop of one `LocalEntropy` that do not belong to a single weight.

    Attributes:
        phase: int64 scalar variable in [0, L).
        members: int32 [number of weights] variable, 1 for weights that have joined.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.phase = self._variable((), "int64", "langevin_phase")
        self.members: Any = None
        self._seen: Any = None

    def build(self, number: int) -> None:
        """Create what depends on the number of weights."""
        self.members = self._variable((number,), "int32", "members")
        self._seen = self._variable((number, _PROBES), "float64", "probes")

    def _variable(self, shape: tuple[int, ...], dtype: str, name: str) -> Any:
        return self._optimizer.add_variable(
            shape=shape,
            initializer="zeros",
            dtype=dtype,
            aggregation="only_first_replica",
            name=name,
        )

    def is_replaced(self, distribution: Any) -> tf.Tensor:
        """Whether each weight is another than the last step left: bool [number of weights].

        Args:
            distribution: The strategy in force; not to be called in a replica.
        """
        seen = tf.convert_to_tensor(self._seen.value)
        now = self._probes(distribution)
        epsilon = [rounding(weight.dtype) for weight in self._optimizer._trainable_variables]
        largest = tf.reduce_max(tf.maximum(tf.abs(seen), tf.abs(now)), axis=1)
        tolerance = 4.0 * tf.constant(epsilon, tf.float64) * largest
        # NaN is no replacement of NaN.
        same = tf.abs(now - seen) <= tolerance[:, tf.newaxis]
        same |= tf.math.is_nan(now) & tf.math.is_nan(seen)
        same |= tf.equal(now, seen)  # infinities
        return ~tf.reduce_all(same, axis=1)

    def remember(self, distribution: Any, taken: tf.Tensor | None = None) -> None:
        """Remember the weights as a step has left them; not to be called in a replica.

        Args:
            distribution: The strategy in force.
            taken: Whether there was a step, a bool scalar, the same in all replicas; None for yes.
        """
        now = self._probes(distribution)
        if taken is not None:
            taken = distribution.experimental_local_results(taken)[0]
            now = tf.where(taken, now, tf.convert_to_tensor(self._seen.value))
        distribution.extended.update(
            self._seen.value, lambda v, probes: v.assign(probes), args=(now,), group=False
        )

    def _probes(self, distribution: Any) -> tf.Tensor:
        """Return 16 numbers of every weight: float64 [number of weights, 16]."""
        weights = [tf_variable(weight) for weight in self._optimizer._trainable_variables]
        # The fused kernels copy a weight first while a tensor that was read from it lives: these
        # are gone by then, since whatever changes the weights waits for what the probes say.
        values = [
            tf.reshape(tf.convert_to_tensor(distribution.experimental_local_results(w)[0]), [-1])
            for w in weights
        ]
        # For small networks the number of operations counts: their weights are joined, and one
        # operation picks from all of a dtype. Large weights are too large to be copied for that.
        groups: dict[Any, list[int]] = {}
        for i, value in enumerate(values):
            together = value.dtype if value.shape[0] <= _JOINED else i
            groups.setdefault(together, []).append(i)
        rows = [_probe([values[i] for i in numbers]) for numbers in groups.values()]
        if len(rows) == 1:
            return rows[0]
        order = np.argsort([i for numbers in groups.values() for i in numbers])
        return tf.gather(tf.concat(rows, axis=0), order)

    # ---- who takes part -----------------------------------------------------------------------

    def joining(self, present: Collection[int], replaced: tf.Tensor) -> tf.Tensor:
        """Tell which weights start their inner loop at this step: bool [number of weights].

        Args:
            present: Numbers of the weights that have a gradient at this step.
            replaced: From `is_replaced`.
        """
        members = tf.cast(self.members.value, tf.bool)
        starts = tf.equal(self.phase.value, 0)
        return tf.cast(self.mask(present), tf.bool) & (starts | ~members | replaced)

    def members_after(self, present: Collection[int], replaced: tf.Tensor) -> tf.Tensor:
        """Tell which weights are in the inner loop during this step: int32 [number of weights].

        Args:
            present: Numbers of the weights that have a gradient at this step.
            replaced: From `is_replaced`.
        """
        members = tf.cast(self.members.value, tf.bool)
        members &= ~replaced & ~tf.equal(self.phase.value, 0)
        return tf.maximum(tf.cast(members, tf.int32), self.mask(present))

    def mask(self, numbers: Collection[int]) -> tf.Tensor:
        """Return 1 at these weights and 0 at the others: int32 [number of weights]."""
        mask = np.zeros(len(self._optimizer._trainable_variables), np.int32)
        mask[list(numbers)] = 1
        return tf.constant(mask)


def is_frozen(weight: Any) -> bool:
    """Whether a weight has been told not to train since the optimizer was built on it."""
    return not getattr(weight, "trainable", True)


def frozen(weights: Sequence[Any]) -> list[int]:
    """Return the numbers of the weights that do not train."""
    return [i for i, weight in enumerate(weights) if is_frozen(weight)]


def rounding(dtype: Any) -> float:
    """Return the step of a floating point dtype at 1."""
    return {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}[
        tf.as_dtype(dtype).name
    ]


def tf_variable(variable: Any) -> Any:
    """Return the tf.Variable of a Keras variable; a tf.Variable is its own."""
    return variable.value if isinstance(variable, keras.Variable) else variable


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


def _places(size: int) -> np.ndarray:
    """Return 16 places of a flat weight, spread at unequal steps; of a short one, all."""
    if size <= _PROBES:
        return np.arange(_PROBES) % max(size, 1)
    return np.sort(np.random.default_rng(size).choice(size, _PROBES, replace=False))
