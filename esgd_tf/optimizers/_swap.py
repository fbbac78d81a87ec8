"""Exchange of the weights that the model holds: Langevin weights, anchor or mean.

To evaluate at the anchor, x' must leave the model and come back bit for bit. The two change places:
the variable takes the anchor and the anchor's slot takes x'. So nothing is lost if the model is
saved at that moment, no memory is needed, and an optimizer variable records which is where.

Whoever goes on with training puts x' back first: `AnchorCallback` does. If nobody has, as when
plain `fit` follows plain `fit`, the next training step does it inside the training graph. Its
gradient has then been taken at the anchor, which is the only difference of such a run.

If someone else has replaced the model's weights in the meantime (`load_weights`, `EarlyStopping`
with `restore_best_weights`), going back to the old x' would silently undo that. A fingerprint of
the weights put into the model tells: a projection on a fixed direction, which every change moves by
more than rounding does. Weights that were replaced leave the inner loop, and start one anew with
their next gradient; so do weights that have been frozen, which stay where they are.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Literal

import keras
import tensorflow as tf

from esgd_tf import _keras
from esgd_tf.optimizers._variables import as_tf, frozen, rounding

if TYPE_CHECKING:
    from esgd_tf.optimizers._walk import Walk

__all__ = ["PLACES", "WeightSwap", "Where", "uninterrupted"]

Where = Literal["anchor", "mean", "langevin"]
PLACES: tuple[Where, ...] = ("langevin", "anchor", "mean")
# The factor that spreads the digits of a sine into a pseudo-random number, and the rounding error
# that comes with it.
_SPREAD = 43758.5453
_ROUNDING = 2.0**-36


class WeightSwap:
    """The exchange of the model's weights with the slots of a walk.

    Args:
        owner: keras.optimizers.Optimizer. The optimizer that saves the variables as its state.
        walk: Walk. Owns the anchors, the means and the phase.

    Attributes:
        may_be_elsewhere: False only if x' is known to be in place, so that a callback may ask at
            every minibatch.
    """

    def __init__(self, owner: keras.optimizers.Optimizer, walk: Walk) -> None:
        self._owner = owner
        self._walk = walk
        self._held = owner.add_variable(
            shape=(),
            initializer="zeros",
            dtype="int32",
            aggregation="only_first_replica",
            name="weights_held",
        )
        self.may_be_elsewhere = True

    def build(self, number: int) -> None:
        """Create the state that depends on the number of weights.

        Args:
            number: int >= 0. The number of weights that the optimizer trains.
        """
        self._fingerprints = self._owner.add_variable(
            shape=(number, 2),
            initializer="zeros",
            dtype="float64",
            aggregation="only_first_replica",
            name="fingerprints",
        )

    def holds(self) -> Where | None:
        """Return what the model holds, eagerly; None where anchor, mean and x' coincide."""
        if not self._walk.weights or int(self._walk.phase.numpy()) == 0:
            return None
        return PLACES[int(self._held.numpy())]

    def anchors(self) -> list[tf.Tensor]:
        """Return the anchor of every weight, wherever it is kept at the moment."""
        walk = self._walk
        weights = [tf.convert_to_tensor(as_tf(v)) for v in walk.weights]
        if not walk.anchors:
            return weights
        held = tf.convert_to_tensor(self._held.value)
        in_place = tf.equal(walk.phase.value, 0) | tf.equal(held, PLACES.index("anchor"))
        members = tf.cast(walk.members.value, tf.bool)
        if tf.executing_eagerly() and bool(~in_place):
            # In a graph the next step sees to it.
            members &= ~walk.probes.is_replaced(self._strategy)
        pairs = list(zip(weights, walk.anchors, strict=True))

        def kept() -> list[tf.Tensor]:
            return [
                w if slot is None else tf.identity(tf.convert_to_tensor(slot.value))
                for w, slot in pairs
            ]

        def kept_of_members() -> list[tf.Tensor]:
            return [
                w if slot is None else tf.where(members[i], slot.value, w)
                for i, (w, slot) in enumerate(pairs)
            ]

        return tf.cond(
            in_place,
            lambda: [tf.identity(w) for w in weights],
            lambda: tf.cond(tf.reduce_all(members), kept, kept_of_members),
        )

    def place(self, where: Where) -> Where | None:
        """Make the model hold the weights `where`, eagerly; Ctrl-C waits until it does.

        Right after an outer update (phase 0) anchor, mean and x' coincide, and nothing moves. A
        weight that has changed since the last step stays: someone else has set it.

        Args:
            where: "anchor", "mean" or "langevin". The weights that the model is to hold.

        Returns:
            What the model held before; None where the three coincide.
        """
        before = self.holds()
        self.may_be_elsewhere = where != "langevin"
        if before is None or where == before:
            return before
        with self._strategy.scope(), uninterrupted():
            self.back_to_langevin(self._strategy)
            if where != "langevin":
                self._exchange(where, self._strategy)
        return before

    @property
    def _strategy(self) -> tf.distribute.Strategy:
        return _keras.strategy_of(self._owner)

    def leave_inner_loop(self) -> None:
        """Let all weights be what they are: each starts anew with its next gradient."""
        members = self._walk.members
        members.assign(tf.zeros_like(members.value))
        self._held.assign(PLACES.index("langevin"))

    def back_to_langevin(self, distribution: tf.distribute.Strategy) -> None:
        """Give the model its Langevin weights back; in the training graph or eagerly.

        Args:
            distribution: tf.distribute.Strategy. The strategy in force.
        """
        held = tf.convert_to_tensor(self._held.value)
        walk = self._walk

        def take_back() -> tf.Tensor:
            members = tf.convert_to_tensor(walk.members.value)
            going_back = self._are_untouched(distribution) & tf.cast(members, tf.bool)
            for i, variable in enumerate(walk.weights):
                if walk.anchors[i] is not None:
                    distribution.extended.update(
                        as_tf(variable),
                        self._take_back,
                        args=(i, held, going_back[i]),
                        group=False,
                    )
            distribution.extended.update(
                walk.members.value,
                lambda v, now: v.assign(now),
                args=(tf.cast(going_back, tf.int32),),
                group=False,
            )
            distribution.extended.update(self._held.value, lambda v: v.assign(0), group=False)
            walk.probes.remember(distribution)
            return tf.constant(0)

        tf.cond(tf.equal(held, PLACES.index("langevin")), lambda: tf.constant(0), take_back)

    def _exchange(self, where: Where, distribution: tf.distribute.Strategy) -> None:
        walk = self._walk
        walk.release_frozen(distribution)
        members = walk.members.numpy().astype(bool)
        moved = members & ~walk.probes.is_replaced(distribution).numpy()
        if not moved.any():
            return
        slots = walk.anchors if where == "anchor" else walk.means
        for i, (variable, slot) in enumerate(zip(walk.weights, slots, strict=True)):
            if slot is not None and moved[i]:
                langevin = tf.identity(tf.convert_to_tensor(variable))
                placed = tf.identity(tf.convert_to_tensor(slot.value))
                variable.assign(placed)
                slot.assign(langevin)
        # Weights that someone else has put there are out of the walk.
        walk.members.assign(moved.astype("int32"))
        self._fingerprints.assign(self._fingerprints_now(distribution))
        self._held.assign(PLACES.index(where))

    def _take_back(
        self, variable: tf.Variable, i: int, held: tf.Tensor, going_back: tf.Tensor
    ) -> None:
        """Undo `_exchange` for one variable that goes back; what has been replaced stays."""
        anchor, mean = self._walk.anchors[i].value, self._walk.means[i].value
        placed, first, second = (tf.convert_to_tensor(v) for v in (variable, anchor, mean))
        from_anchor = tf.equal(held, PLACES.index("anchor"))
        variable.assign(tf.where(going_back, tf.where(from_anchor, first, second), placed))
        if mean is anchor:
            anchor.assign(tf.where(going_back, placed, first))
            return
        # What stands in the model is the anchor, or the mean: rounded, if it was moved about.
        anchor.assign(tf.where(going_back & from_anchor, placed, first))
        mean.assign(tf.where(going_back & ~from_anchor, placed, second))

    def _are_untouched(self, distribution: tf.distribute.Strategy) -> tf.Tensor:
        """Return whether each weight is what `_exchange` put there, up to rounding: bool."""
        weights = self._walk.weights
        then, norm_then = tf.unstack(tf.convert_to_tensor(self._fingerprints.value), axis=1)
        now, norm_now = tf.unstack(self._fingerprints_now(distribution), axis=1)
        epsilon = [max(rounding(v.dtype), _ROUNDING) for v in weights]
        # Rounding errors have random signs, so the projection's error grows as the norm does.
        tolerance = 4.0 * tf.constant(epsilon, tf.float64) * tf.maximum(norm_then, norm_now)
        same = (tf.abs(now - then) <= tolerance) | (tf.math.is_nan(then) & tf.math.is_nan(now))
        return same & ~tf.cast(self._walk.mask(frozen(weights)), tf.bool)

    def _fingerprints_now(self, distribution: tf.distribute.Strategy) -> tf.Tensor:
        """Return the projection and the norm of every weight: float64 [number of weights, 2]."""
        return tf.stack(
            [
                _fingerprint(distribution.experimental_local_results(as_tf(variable))[0])
                for variable in self._walk.weights
            ]
        )


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the block is over: half of the weights must not move alone."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted
        return
    previous = signal.getsignal(signal.SIGINT)
    if previous is None:
        yield  # a handler that Python does not know cannot be put back
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if came and callable(previous):
            previous(*came[0])


def _fingerprint(weight: tf.Variable) -> tf.Tensor:
    """Return the projection on a fixed direction, as good as random, and the norm."""
    wide = tf.cast(tf.reshape(tf.convert_to_tensor(weight), [-1]), tf.float64)
    places = tf.range(math.prod(weight.shape), dtype=tf.float64)
    # Unlike a generator's, these numbers are the same with XLA and without, but for rounding.
    direction = tf.math.floormod(tf.sin(places * 12.9898 + 78.233) * _SPREAD, 1.0) - 0.5
    return tf.stack([tf.tensordot(wide, direction, 1), tf.norm(wide)])
