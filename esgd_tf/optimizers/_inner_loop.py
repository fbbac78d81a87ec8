"""The inner loop of Entropy-SGD: anchor, mean and velocity, and the Langevin steps that move them.

The equations stand in `langevin.py`; here they run on variables, by the fused kernels of
`_kernels.py`. Which weights take part is said in `_walk.py`: a weight starts with v = 0 when it
joins, and the outer update moves those that have joined and no others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import keras
import tensorflow as tf

from esgd_tf.optimizers import _kernels, langevin
from esgd_tf.optimizers._statistics import StatisticsVariables
from esgd_tf.optimizers._step_sizes import Scalars, StepSizes
from esgd_tf.optimizers._walk import Gradients, Walk
from esgd_tf.optimizers.scoping import AutoScope, ScopeSchedule

__all__ = ["InnerLoop", "Rule", "Taken"]


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


class InnerLoop(Walk):
    """The inner loop of one `LocalEntropy`: the walk of the Langevin weights x' about the anchor x.

    Args:
        owner: keras.optimizers.Optimizer. The optimizer that saves the variables as its state.
        rule: Rule. The numbers of the step.
        step_sizes: StepSizes. eta' and the momentum, which may be set between two steps.
        phase: keras.Variable, an int64 scalar in [0, L). Langevin steps taken since the last outer
            update.
        statistics: bool. Whether to keep the norms of the last outer update.
        schedule: ScopeSchedule. The law of gamma; `AutoScope` measures it in the inner loop.

    Attributes:
        velocities: list of keras.Variable. -eta' v for each weight; empty for momentum 0.
        statistics: StatisticsVariables. What watches the steps; None for nothing.
    """

    def __init__(
        self,
        owner: keras.optimizers.Optimizer,
        rule: Rule,
        step_sizes: StepSizes,
        phase: keras.Variable,
        statistics: bool,
        schedule: ScopeSchedule,
    ) -> None:
        super().__init__(owner, phase)
        self._rule = rule
        self._step_sizes = step_sizes
        self.statistics: StatisticsVariables | None = None
        if statistics or isinstance(schedule, AutoScope):
            self.statistics = StatisticsVariables(owner, rule.langevin_steps, schedule)
        self.velocities: list[keras.Variable] = []

    def _make_slots(self) -> None:
        if self._rule.langevin_steps == 0:
            return
        self.anchors, self.means = self._owner.add_optimizer_variables(
            self.weights, ["anchor", "mean"]
        )
        if self._step_sizes.has_momentum:
            self.velocities = self._owner.add_optimizer_variables(self.weights, "velocity")

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
        members = self.join(distribution, gradients, phase)
        # By the variable on each device.
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
