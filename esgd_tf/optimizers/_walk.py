"""Weights that walk away from their anchors, and who of them takes part.

Some optimizers train other weights than those that they return: the Langevin weights x' of local
entropy, the fast weights of Lookahead, the weights whose average is wanted. The model's variables
hold the weights that walk, and for each there is an anchor, which is what gets evaluated and saved.

*Membership.* A weight joins the walk with its first gradient in it: then anchor = mean = x' = x.
What happens to the anchors happens to those that have joined and no others. So weights that get
their gradients in turn (two losses, a frozen part) are never dragged by a walk they are not in. A
weight that someone else has changed between two steps (`_probes.py`) joins anew, from where it is;
a weight that has been frozen leaves, and goes back to its anchor.

Each branch is one `tf.cond` for all weights, outside any replica: inside one, a conditional that
updates variables fails under tf.distribute (merge_call).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.optimizers._probes import Probes
from esgd_tf.optimizers._swap import WeightSwap
from esgd_tf.optimizers._variables import as_tf, frozen

__all__ = ["Gradients", "Walk"]

#: By the number of a weight: its gradient, summed over the devices, and its variable.
Gradients = Mapping[int, tuple[tf.Tensor, tf.Variable]]


class Walk:
    """The weights that walk, their anchors, and which of them have joined.

    Args:
        owner: keras.optimizers.Optimizer. The optimizer that saves the variables as its state.
        phase: keras.Variable, an int64 scalar >= 0. Steps since anchors and weights were last the
            same; 0 where they are.

    Attributes:
        weights: list of keras.Variable. The weights, in the order of their numbers; empty before
            `build`.
        l2: list of float. The coefficient of the L2 term for each weight.
        anchors: list of keras.Variable. The anchor of each weight; None for a weight that Keras
            overwrites with its gradient. Empty where nothing walks.
        means: list of keras.Variable. The running average of each weight, likewise; the anchors
            themselves where there is none.
        members: keras.Variable, int32 of shape [number of weights]. 1 for weights that have joined.
        probes: Probes. Tell which weights someone else has changed.
        swap: WeightSwap. Exchanges the weights with the anchors or the means, and back.
    """

    members: keras.Variable
    probes: Probes

    def __init__(self, owner: keras.optimizers.Optimizer, phase: keras.Variable) -> None:
        self._owner = owner
        self.phase = phase
        self.swap = WeightSwap(owner, self)
        self.weights: list[keras.Variable] = []
        self.l2: list[float] = []
        self.anchors: list[keras.Variable] = []
        self.means: list[keras.Variable] = []

    def build(self, weights: Sequence[keras.Variable], l2: Sequence[float]) -> None:
        """Create what depends on the number of weights.

        Args:
            weights: list of keras.Variable. The weights that the optimizer trains.
            l2: list of float >= 0. The coefficient of the L2 term for each weight.
        """
        self.weights, self.l2 = list(weights), list(l2)
        self._make_slots()
        if not self.anchors:
            return
        self.members = self._owner.add_variable(
            shape=(len(weights),),
            initializer="zeros",
            dtype="int32",
            aggregation="only_first_replica",
            name="members",
        )
        self.probes = Probes(self._owner, weights)
        self.swap.build(len(weights))

    def _make_slots(self) -> None:
        """Make the anchors, and what else there is for each weight; nothing where none walks."""

    def mask(self, numbers: Collection[int]) -> tf.Tensor:
        """Return 1 at these weights and 0 at the others: int32 [number of weights].

        Args:
            numbers: collection of int. Numbers of weights.
        """
        mask = np.zeros(len(self.weights), np.int32)
        mask[list(numbers)] = 1
        return tf.constant(mask)

    def trainable_mask(self) -> tf.Tensor:
        """Return 1 at weights that are not frozen and 0 at the others: int32 [weights]."""
        return 1 - self.mask(frozen(self.weights))

    def set_members(self, distribution: tf.distribute.Strategy, members: tf.Tensor) -> None:
        """Set which weights have joined.

        Args:
            distribution: tf.distribute.Strategy. The strategy in force.
            members: int32 tensor of shape [number of weights]. 1 for weights that have joined.
        """
        distribution.extended.update(
            self.members.value, lambda v, now: v.assign(now), args=(members,), group=False
        )

    def release_frozen(self, distribution: tf.distribute.Strategy) -> None:
        """Put weights that have been frozen in mid-walk back to their anchors, for good.

        Args:
            distribution: tf.distribute.Strategy. The strategy in force.
        """
        numbers = [i for i in frozen(self.weights) if self.anchors[i] is not None]
        if not numbers:
            return
        joined = tf.gather(tf.convert_to_tensor(self.members.value), numbers)

        def release() -> tf.Tensor:
            for place, i in enumerate(numbers):
                distribution.extended.update(
                    as_tf(self.weights[i]),
                    lambda v, anchor, joined: v.assign(tf.where(joined, anchor, v)),
                    args=(self.anchors[i].value, tf.cast(joined[place], tf.bool)),
                    group=False,
                )
            stay = 1 - self.mask(numbers)
            distribution.extended.update(
                self.members.value, lambda v, stay: v.assign(v * stay), args=(stay,), group=False
            )
            return tf.constant(0)

        tf.cond(tf.reduce_any(joined > 0), release, lambda: tf.constant(0))

    def join(
        self,
        distribution: tf.distribute.Strategy,
        gradients: Gradients,
        phase: tf.Tensor,
    ) -> tf.Tensor:
        """Let the weights that have a gradient join; return all members: int32 [weights].

        Args:
            distribution: tf.distribute.Strategy. The strategy in force.
            gradients: mapping from the number of a weight. Its gradient and its variable.
            phase: int64 scalar tensor. The phase before this step.
        """
        replaced = self.probes.is_replaced(distribution)
        before = tf.cast(self.members.value, tf.bool)
        present, starts = self.mask(gradients), tf.equal(phase, 0)
        joining = tf.cast(present, tf.bool) & (starts | ~before | replaced)
        stay = before & ~replaced & ~starts
        members = tf.maximum(tf.cast(stay, tf.int32), present)
        # A weight that was changed in mid-loop by a callback keeps its velocity, as in Keras' SGD.
        keep_velocity = replaced & before & (phase > 0)

        def start_all() -> tf.Tensor:
            for i, (_, variable) in gradients.items():
                distribution.extended.update(
                    variable, lambda v, i=i: self._start(i, v), group=False
                )
            return tf.constant(0)

        def start_some() -> tf.Tensor:
            for i, (_, variable) in gradients.items():
                distribution.extended.update(
                    variable,
                    functools.partial(self._start_if, i),
                    args=(joining[i], keep_velocity[i]),
                    group=False,
                )
            return tf.constant(0)

        tf.cond(
            starts,
            start_all,
            lambda: tf.cond(tf.reduce_any(joining), start_some, lambda: tf.constant(0)),
        )
        self.set_members(distribution, members)
        return members

    # ---- one weight on one device -------------------------------------------------------------

    def _start(self, i: int, variable: tf.Variable) -> None:
        """Set the anchor to the weight, as it joins.

        Args:
            i: int. The number of the weight.
            variable: tf.Variable. The weight on this device.
        """
        self.anchors[i].value.assign(variable)

    def _start_if(
        self, i: int, variable: tf.Variable, joins: tf.Tensor, keep_velocity: tf.Tensor
    ) -> None:
        """Do what `_start` does where `joins` holds.

        Args:
            i: int. The number of the weight.
            variable: tf.Variable. The weight on this device.
            joins: bool scalar tensor. Whether the weight joins.
            keep_velocity: bool scalar tensor. Whether it was in the walk, and someone else has
                changed it: its velocity then stays.
        """
        del keep_velocity
        anchor = self.anchors[i].value
        anchor.assign(tf.where(joins, variable, anchor))
