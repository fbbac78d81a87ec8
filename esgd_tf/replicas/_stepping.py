"""The training step of all replicas, and the choice of the steps at which they are coupled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from esgd_tf._warn import warn
from esgd_tf.replicas._arrival import END, Batches
from esgd_tf.replicas._attraction import Attraction, Due
from esgd_tf.replicas._exchange import mean_of
from esgd_tf.replicas._group import Group
from esgd_tf.replicas.focusing import CouplingSchedule

__all__ = ["Stepping"]

Logs = dict[str, Any]


class Stepping:
    """Takes the training steps of the replicas of this process, and couples them when it is due.

    With a strategy, collectives run between two steps, not inside of them: the graph of a step then
    holds local work only, so that devices need not wait for each other.

    Args:
        group: Group. The replicas and their coupling.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._batches = Batches()
        # The number of training steps taken, counted outside of the graphs.
        self._steps = 0
        # Whether `fit` has been given a batch, and whether it has warned of the coupling.
        self._has_data = True
        self._has_warned = False

    def take(self, data: Any) -> Logs:
        """Take one step in every replica of this process, in a graph or eagerly.

        Args:
            data: sequence of minibatches. One for each replica of this process.

        Returns:
            The means over replicas of the values that a step returns.
        """
        group, exchange = self._group, self._group.exchange
        optimizer = group.optimizers
        due = self._is_due(optimizer.iterations.value)
        if exchange.in_graph:
            _if(due, exchange.gather)
        gamma = optimizer.gamma
        logs = []
        for number, (member, device, batch) in enumerate(
            zip(group.own, group.devices, data, strict=True)
        ):
            with tf.device(device):
                inner = exchange.optimizers[number]
                center = exchange.center_of(number)
                inner.coupling = Attraction(group.coupling, inner, center, due, gamma)
                try:
                    logs.append(member.train_step(batch))
                finally:
                    inner.coupling = None
        if group.coupling.keeps_center:
            _if(due, exchange.move_center)
        optimizer.iterations.assign_add(1)
        return {name: mean_of([log[name] for log in logs]) for name in logs[0]}

    def between_meetings(
        self, step: Callable[[Any], Logs], steps_per_execution: int
    ) -> Callable[[Any], Logs]:
        """Return the function that `fit` calls: it fetches minibatches, steps and couples.

        Args:
            step: callable. Takes `steps_per_execution` steps with the minibatches of an iterator.
            steps_per_execution: int >= 1. The number of those steps.
        """

        def fetch_meet_and_step(iterator: Any) -> Logs:
            source = self._batches.take(iterator, steps_per_execution)
            if not self._group.exchange.in_graph and self._is_due(self._steps):
                self._group.exchange.gather()
            try:
                logs = step(source)
            except END:
                if self._has_data:
                    raise
                raise ValueError(
                    f"The data set has fewer minibatches than the {self._group.count} replicas "
                    "that they are dealt to, or one of them has no minibatch: there is nothing to "
                    "train on."
                ) from None
            self._has_data = True
            self._steps += 1
            return logs

        return fetch_meet_and_step

    def mean_logs(self, logs: Logs) -> Logs:
        """Return an epoch's means over the replicas of all processes.

        Args:
            logs: dict of numbers by name. The means over the replicas of this process.
        """
        self.warn_of_strength(of_next=False)
        group = self._group
        if group.is_whole:
            return logs
        return {
            name: group.exchange.mean_numbers([float(value)] * len(group.local))
            for name, value in logs.items()
        }

    # ---- the steps that couple ----------------------------------------------------------------

    @property
    def period(self) -> int:
        """Training steps from one coupling to the next; known once it is compiled."""
        group = self._group
        return group.coupling.every * max(group.optimizers.replicas[0].langevin_steps, 1)

    def _is_due(self, step: tf.Tensor | int) -> Due:
        """Return whether the step after this number of steps couples."""
        if self.period == 1:
            return True
        if isinstance(step, int):
            return (step + 1) % self.period == 0
        return tf.equal((tf.cast(step, tf.int64) + 1) % self.period, 0)

    def begin(self, batches: Batches | None = None) -> None:
        """Prepare for training.

        Args:
            batches: Batches. The batches of `fit`, which may look at some of them first. Defaults
                to None, which looks at none.
        """
        self._batches = Batches() if batches is None else batches
        self._has_data = False
        self.go_on_here()

    def go_on_here(self) -> None:
        """Continue training from the current weights and step counter."""
        if self._group.is_compiled:
            self._steps = self._clock()
        self._group.exchange.begin()

    def _clock(self) -> int:
        return int(self._group.optimizers.iterations.numpy())

    def warn_of_strength(self, *, of_next: bool) -> None:
        """Warn once of a coupling that is too strong.

        Args:
            of_next: bool. Whether to check the strength of the next step instead of the last.
        """
        if self._has_warned or (not of_next and not self._clock()):
            return
        warning = self._group.optimizers.warning_of_strength(of_next=of_next)
        if warning:
            self._has_warned = True
            warn(warning)

    @property
    def needs_gamma(self) -> bool:
        """Return whether gamma_0 must still be measured."""
        strength = self._group.coupling.strength
        measured = isinstance(strength, CouplingSchedule) and strength.is_measured
        return measured and self._group.optimizers.gamma_zero == 0.0


def _if(due: Any, action: Callable[[], tf.Tensor]) -> None:
    if due is True:
        action()
    else:
        tf.cond(due, action, lambda: tf.constant(0))
