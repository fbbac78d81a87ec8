"""The inner loop of Entropy-SGD: anchor, mean and velocity, and the Langevin steps that move them.

The equations stand in `langevin.py`; here they run on variables, by the fused kernels of
`_kernels.py`. The equations do not say which weights take part; this module does.

*Membership.* A weight joins the inner loop with its first gradient in it: then anchor = mean = x'
= x and v = 0. The outer update moves those that have joined and no others. So weights that get
their gradients in turn (two losses, a frozen part) are never dragged by a loop they are not in.
A weight that someone else has changed between two steps (`_probes.py`) joins anew, from where it
is; a weight that has been frozen leaves, and goes back to its anchor.

Each branch is one `tf.cond` for all weights, outside any replica: inside one, a conditional that
updates variables fails under tf.distribute (merge_call).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.optimizers import _kernels, langevin
from esgd_tf.optimizers._probes import Probes
from esgd_tf.optimizers._statistics import StatisticsVariables
from esgd_tf.optimizers._step_sizes import Scalars, StepSizes
from esgd_tf.optimizers._swap import WeightSwap
from esgd_tf.optimizers._variables import as_tf, frozen
from esgd_tf.optimizers.scoping import AutoScope, ScopeSchedule

__all__ = ["Gradients", "InnerLoop", "Rule", "Taken"]

#: Maps the number of a weight to its gradient, summed over the devices, and its variable.
Gradients = Mapping[int, tuple[tf.Tensor, tf.Variable]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """The numbers of the Langevin step that never change.

    Args:
        langevin_steps: int >= 0. L, Langevin steps per outer update; 0 means no inner loop.
        nesterov: bool. Whether the step looks ahead along the velocity.
        noise: float >= 0. epsilon, the strength of the thermal noise.
        averaging: float in [0, 1). The weight of the old mean.
        pulls: bool. Whether there is a pull toward the anchor to compute.
        seed: keras.Variable, an int64 scalar. The seed of the noise.
    """

    langevin_steps: int
    nesterov: bool
    noise: float
    averaging: float
    pulls: bool
    seed: keras.Variable


class Taken(NamedTuple):
    """A Langevin step that has been taken.

    Attributes:
        members: int32 tensor of shape [number of weights]. 1 for weights in the inner loop.
        seen: The gradient q and the sample of N(0, I) that the statistics need, by the `id` of the
            variable on its device.
    """

    members: tf.Tensor
    seen: dict[int, tuple[tf.Tensor, tf.Tensor]]


class InnerLoop:
    """The state of the inner loop of one `LocalEntropy`, and its steps.

    Args:
        owner: keras.optimizers.Optimizer. The optimizer that saves the variables as its state.
        rule: Rule. The numbers of the step.
        step_sizes: StepSizes. eta' and the momentum, which may be set between two steps.
        phase: keras.Variable, an int64 scalar in [0, L). Langevin steps taken since the last outer
            update.
        statistics: bool. Whether to keep the norms of the last outer update.
        schedule: ScopeSchedule. The law of gamma; `AutoScope` measures it in the inner loop.

    Attributes:
        weights: list of keras.Variable. The weights, in the order of their numbers; empty before
            `build`.
        l2: list of float. The coefficient of the L2 term for each weight.
        anchors: list of keras.Variable. x for each weight; None for a weight that Keras overwrites
            with its gradient. Empty for L = 0.
        means: list of keras.Variable. The running mean for each weight, with the same gaps.
        velocities: list of keras.Variable. -eta' v for each weight, with the same gaps; empty for
            momentum 0.
        members: keras.Variable, int32 of shape [number of weights]. 1 for weights that have joined.
        probes: Probes. They tell which weights someone else has changed.
        swap: WeightSwap. Exchanges x' with the anchor or the mean, and back.
        statistics: StatisticsVariables. They record the steps; None if nothing is recorded.
    """

    members: keras.Variable
    probes: Probes

    def __init__(
        self,
        owner: keras.optimizers.Optimizer,
        rule: Rule,
        step_sizes: StepSizes,
        phase: keras.Variable,
        statistics: bool,
        schedule: ScopeSchedule,
    ) -> None:
        self._owner = owner
        self._rule = rule
        self._step_sizes = step_sizes
        self.l2: list[float] = []
        self.phase = phase
        self.swap = WeightSwap(owner, self)
        self.statistics: StatisticsVariables | None = None
        if statistics or isinstance(schedule, AutoScope):
            self.statistics = StatisticsVariables(owner, rule.langevin_steps, schedule)
        self.weights: list[keras.Variable] = []
        self.anchors: list[keras.Variable] = []
        self.means: list[keras.Variable] = []
        self.velocities: list[keras.Variable] = []

    def build(self, weights: Sequence[keras.Variable], l2: Sequence[float]) -> None:
        """Create the slots, and what else depends on the number of weights.

        Args:
            weights: list of keras.Variable. The weights that the optimizer trains.
            l2: list of float >= 0. The coefficient of the L2 term for each weight.
        """
        self.weights, self.l2 = list(weights), list(l2)
        if self._rule.langevin_steps == 0:
            return
        self.anchors, self.means = self._owner.add_optimizer_variables(weights, ["anchor", "mean"])
        if self._step_sizes.has_momentum:
            self.velocities = self._owner.add_optimizer_variables(weights, "velocity")
        self.members = self._owner.add_variable(
            shape=(len(weights),),
            initializer="zeros",
            dtype="int32",
            aggregation="only_first_replica",
            name="members",
        )
        self.probes = Probes(self._owner, weights)
        self.swap.build(len(weights))

    # ---- one step -----------------------------------------------------------------------------

    def step(
        self,
        distribution: tf.distribute.Strategy,
        gradients: Gradients,
        evaluation: tf.Tensor,
        scope: tf.Tensor,
    ) -> Taken:
        """Let weights join, and take one Langevin step with those that have a gradient.

        Args:
            distribution: tf.distribute.Strategy. The strategy in force.
            gradients: mapping from int to pairs. The gradient and the variable of each weight.
            evaluation: int64 scalar tensor. Gradient evaluations so far: each has its own noise.
            scope: float64 scalar tensor. gamma(t).
        """
        phase = tf.identity(tf.convert_to_tensor(self.phase.value))
        key = None
        if self._rule.noise > 0:
            key = _kernels.noise_key(self._rule.seed.value, evaluation)
        kinds = {(v.dtype, self._step_sizes.factor(i)) for i, (_, v) in gradients.items()}
        scalars = self._step_sizes.scalars(kinds, scope, self._rule.noise, self._rule.averaging)
        members = self._join(distribution, gradients, phase)
        # The keys are the ids of the variables on each device.
        seen: dict[int, tuple[tf.Tensor, tf.Tensor]] = {}
        for i, (gradient, variable) in gradients.items():
            distribution.extended.update(
                variable,
                lambda v, g, i=i: seen.update({id(v): self._move(i, v, g, scalars, key)}),
                args=(gradient,),
                group=False,
            )
        if self.statistics is not None:
            self.statistics.finish_step(distribution)
        return Taken(members, seen)

    def end(
        self, i: int, variable: tf.Variable, taken: Taken, factor: tf.Tensor | None
    ) -> tf.Tensor:
        """Put a weight back to its anchor, and return the gradient for the outer optimizer.

        Args:
            i: int. The number of the weight.
            variable: tf.Variable. The weight on this device.
            taken: Taken. The last Langevin step.
            factor: float64 scalar tensor. The factor on x - mean; None for 1.
        """
        anchor, mean, _ = self._slots(i)
        difference: tf.Tensor = langevin.outer_gradient(anchor, mean)
        if self.statistics is not None:
            none = tf.zeros_like(difference)
            gradient, normal = taken.seen.get(id(variable), (none, none))
            self.statistics.see_outer_update(
                gradient,
                normal,
                difference,
                tf.subtract(variable, anchor),
                self._step_sizes.displacement_scale(self._step_sizes.factor(i), self._rule.noise),
            )
        if factor is not None:
            difference = tf.cast(factor, difference.dtype) * difference
        variable.assign(anchor)
        return difference

    # ---- who takes part -----------------------------------------------------------------------

    def mask(self, numbers: Collection[int]) -> tf.Tensor:
        """Return 1 at these weights and 0 at the others: int32 [number of weights].

        Args:
            numbers: collection of int. Numbers of weights.
        """
        mask = np.zeros(len(self.weights), np.int32)
        mask[list(numbers)] = 1
        return tf.constant(mask)

    def release_frozen(self, distribution: tf.distribute.Strategy) -> None:
        """Put weights that were frozen during an inner loop back to their anchors; they leave it.

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

    def _join(
        self,
        distribution: tf.distribute.Strategy,
        gradients: Gradients,
        phase: tf.Tensor,
    ) -> tf.Tensor:
        """Start the loop of weights that join at this step; return all members: int32 [weights]."""
        replaced = self.probes.is_replaced(distribution)
        before = tf.cast(self.members.value, tf.bool)
        present, starts = self.mask(gradients), tf.equal(phase, 0)
        joining = tf.cast(present, tf.bool) & (starts | ~before | replaced)
        stay = before & ~replaced & ~starts
        members = tf.maximum(tf.cast(stay, tf.int32), present)
        # A weight that a callback changed during the loop keeps its velocity, as in Keras' SGD.
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
        distribution.extended.update(
            self.members.value, lambda v, now: v.assign(now), args=(members,), group=False
        )
        return members

    # ---- one weight on one device -------------------------------------------------------------

    def _slots(self, i: int) -> tuple[tf.Variable, tf.Variable, tf.Variable | None]:
        """Return anchor, mean and velocity of a weight; the velocity is None for momentum 0."""
        velocity = self.velocities[i].value if self.velocities else None
        return self.anchors[i].value, self.means[i].value, velocity

    def _start(self, i: int, variable: tf.Variable) -> None:
        """Set x' = mean = x and v = 0."""
        anchor, mean, velocity = self._slots(i)
        anchor.assign(variable)
        mean.assign(variable)
        if velocity is not None:
            velocity.assign(tf.zeros_like(variable))

    def _start_if(
        self, i: int, variable: tf.Variable, joins: tf.Tensor, keep_velocity: tf.Tensor
    ) -> None:
        """Set x' = mean = x and, unless it is to be kept, v = 0, for a weight that joins."""
        anchor, mean, velocity = self._slots(i)
        for slot in (anchor, mean):
            slot.assign(tf.where(joins, variable, slot))
        if velocity is not None:
            stays = keep_velocity | ~joins
            velocity.assign(tf.where(stays, velocity, tf.zeros_like(variable)))

    def _move(
        self,
        i: int,
        variable: tf.Variable,
        gradient: tf.Tensor,
        scalars: Mapping[tuple[tf.DType, float], Scalars],
        key: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Take one Langevin step; return its gradient q and its N(0, I)."""
        gradient = _kernels.with_l2(gradient, variable, self.l2[i])
        anchor, mean, velocity = self._slots(i)
        scalar = scalars[variable.dtype, self._step_sizes.factor(i)]
        needs_pull = self._rule.pulls or self.statistics is not None
        pull = tf.subtract(variable, anchor) if needs_pull else None
        _kernels.descend(
            variable,
            velocity,
            gradient,
            learning_rate=scalar.rate,
            momentum=scalar.momentum,
            nesterov=self._rule.nesterov,
            after=[pull] if needs_pull else [],
        )
        if self._rule.pulls:
            _kernels.subtract_scaled(variable, scalar.pull, pull)
        normal = tf.zeros([], variable.dtype)
        if key is not None:
            # The noise is sampled after the gradient is there. Sampled at the step's start, the
            # noise of all weights would take up memory beside the activations.
            with tf.control_dependencies([gradient]):
                normal = _kernels.standard_normal(variable.shape, variable.dtype, key, i)
            _kernels.subtract_scaled(variable, scalar.noise, normal)
        _kernels.average(mean, variable, self._rule.averaging, scalar.rest)
        if self.statistics is not None:
            self.statistics.see_step(pull)
        return gradient, normal
