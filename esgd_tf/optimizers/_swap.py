"""Which weights the model's variables hold: the Langevin weights, the anchor or the mean.

To evaluate at the anchor, x' must make room and come back bit for bit. The two change places: the
variable takes the anchor and the anchor's slot takes x'. So nothing is lost if the model is saved
at that moment, no memory is needed, and an optimizer variable remembers who sits where.

Whoever goes on with training puts x' back first: `AnchorCallback` does. If nobody has, as when
plain `fit` follows plain `fit`, the next training step does it inside the training graph. Its
gradient has then been taken at the anchor, the one thing that such a run has different.

If someone else has replaced the model's weights in the meantime (`load_weights`, `EarlyStopping`
with `restore_best_weights`), going back to the old x' would silently undo that. A fingerprint of
the weights put into the model tells; weights that were replaced start their inner loop anew.
"""

from __future__ import annotations

from typing import Any, Literal

import tensorflow as tf

Where = Literal["anchor", "mean", "langevin"]
PLACES: tuple[Where, ...] = ("langevin", "anchor", "mean")


class WeightSwap:
    """The exchange of the model's weights with the slots of one `LocalEntropy` optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._held = optimizer.add_variable(
            shape=(),
            initializer="zeros",
            dtype="int32",
            aggregation="only_first_replica",
            name="weights_held",
        )
        self._fingerprints: Any = None
        # False only if x' is known to be in place, so that a callback may ask at every minibatch.
        self.may_be_elsewhere = True

    def build(self, num_variables: int) -> None:
        """Create the state that depends on the number of weights."""
        self._fingerprints = self._optimizer.add_variable(
            shape=(num_variables,),
            initializer="zeros",
            dtype="int64",
            aggregation="only_first_replica",
            name="fingerprints",
        )

    def place(self, where: Where) -> Where:
        """Make the model hold the weights `where`, eagerly.

        Between two outer updates (phase 0) anchor, mean and x' coincide, and nothing moves.

        Args:
            where: "anchor", "mean" or "langevin".

        Returns:
            What the model held before.
        """
        optimizer = self._optimizer
        self.may_be_elsewhere = where != "langevin"
        if not optimizer.built or int(optimizer.langevin_phase) == 0:
            return "langevin"
        before = PLACES[int(self._held.numpy())]
        if where == before:
            return before
        strategy = optimizer._distribution_strategy
        with strategy.scope():
            self.back_to_langevin(strategy)
            if where != "langevin":
                self._exchange(where)
        return before

    def back_to_langevin(self, distribution: Any) -> None:
        """Give the model its Langevin weights back; in the training graph or eagerly."""
        held = tf.convert_to_tensor(self._held.value)

        def take_back() -> tf.Tensor:
            for i, variable in enumerate(self._optimizer._trainable_variables):
                if self._optimizer._anchors[i] is not None:
                    distribution.extended.update(
                        variable.value, self._take_back, args=(i, held), group=False
                    )
            distribution.extended.update(self._held.value, lambda v: v.assign(0), group=False)
            return tf.constant(0)

        tf.cond(tf.equal(held, PLACES.index("langevin")), lambda: tf.constant(0), take_back)

    def _exchange(self, where: Where) -> None:
        optimizer = self._optimizer
        slots = optimizer._anchors if where == "anchor" else optimizer._means
        fingerprints = []
        for variable, slot in zip(optimizer._trainable_variables, slots, strict=True):
            if slot is None:
                fingerprints.append(tf.constant(0, tf.int64))
                continue
            langevin = tf.identity(tf.convert_to_tensor(variable.value))
            placed = tf.identity(tf.convert_to_tensor(slot.value))
            variable.assign(placed)
            slot.assign(langevin)
            fingerprints.append(_fingerprint(placed))
        self._fingerprints.assign(tf.stack(fingerprints))
        self._held.assign(PLACES.index(where))

    def _take_back(self, variable: tf.Variable, i: int, held: tf.Tensor) -> None:
        """Undo `_exchange` for one variable, or start its inner loop anew if it was replaced."""
        optimizer = self._optimizer
        anchor, mean = optimizer._anchors[i].value, optimizer._means[i].value
        placed, first, second = (tf.convert_to_tensor(v) for v in (variable, anchor, mean))
        fingerprints = tf.convert_to_tensor(self._fingerprints.value)
        untouched = tf.equal(_fingerprint(placed), fingerprints[i])
        from_anchor = tf.equal(held, PLACES.index("anchor"))
        variable.assign(tf.where(untouched, tf.where(from_anchor, first, second), placed))
        anchor.assign(tf.where(untouched & ~from_anchor, first, placed))
        mean.assign(tf.where(untouched & from_anchor, second, placed))
        if optimizer._velocities:
            velocity = optimizer._velocities[i].value
            velocity.assign(tf.where(untouched, velocity, tf.zeros_like(velocity)))


def _fingerprint(weights: tf.Tensor) -> tf.Tensor:
    """Return the sum of the bits read as integers: exact in any order, so equal in every mode."""
    integers = {2: tf.int16, 4: tf.int32, 8: tf.int64}[weights.dtype.size]
    return tf.reduce_sum(tf.cast(tf.bitcast(weights, integers), tf.int64))
