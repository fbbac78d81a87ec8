"""One training step of all replicas, and when they are coupled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from esgd_tf._warn import warn
from esgd_tf.replicas._arrival import END, Batches, after_arrival
from esgd_tf.replicas._drawing import Drawing
from esgd_tf.replicas._exchange import Exchange, mean_of
from esgd_tf.replicas.coupling import Coupling
from esgd_tf.replicas.focusing import CouplingSchedule

__all__ = ["Stepping"]


class Stepping:
    """The part of `Replicas` that Keras' training loop calls.

    With a strategy, collectives stand between two steps, not inside: each step then is a graph of
    local work alone, whose devices need not wait for each other.
    """

    # Of `Replicas` and `keras.Model`.
    compiled: bool
    coupling: Coupling
    devices: Sequence[str | None]
    local: list[int]
    members: list[keras.Model]
    optimizer: Any
    replicas: int
    train_function: Any
    _center: keras.Model
    _drawings: list[Drawing]
    _exchange: Exchange
    _step: int
    steps_per_execution: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._batches = Batches()
        # Whether `fit` has been given a batch, and whether it has warned of the coupling.
        self._has_data = True
        self._has_warned = False

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the outputs of the center."""
        return self._center(inputs, training=training)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Take one step in every replica of this process, once the batch is there."""
        return after_arrival(self._take_step, data)

    def _take_step(self, data: Any) -> dict[str, Any]:
        optimizer = self.optimizer
        due = self._is_due(optimizer.iterations.value)
        if self._exchange.in_graph:
            _if(due, self._exchange.gather)
        gamma = optimizer.gamma
        logs = []
        for a, drawing, device, batch in zip(
            self.local, self._drawings, self.devices, data, strict=True
        ):
            with tf.device(device):
                drawing.now(due, gamma)
                logs.append(self.members[a].train_step(batch))
        if self.coupling.keeps_center:
            _if(due, self._exchange.move_center)
        optimizer.iterations.assign_add(1)
        return {name: mean_of([log[name] for log in logs]) for name in logs[0]}

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluate the center on one batch, once it is there."""
        return after_arrival(self._center.test_step, data)

    def make_train_function(self, force: bool = False) -> None:
        """Make the function that `fit` calls; with a strategy, replicas meet between its calls."""
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)  # type: ignore[misc]  # of keras.Model
        step = self.train_function

        def pull_meet_and_step(iterator: Any) -> Any:
            source = self._batches.take(iterator, self.steps_per_execution)
            if not self._exchange.in_graph and self._is_due(self._step):
                self._exchange.gather()
            try:
                logs = step(source)
            except END:
                if self._has_data:
                    raise
                raise ValueError(
                    f"The data set has fewer minibatches than the {self.replicas} replicas that "
                    "they are dealt to, or one of them has no minibatch: there is nothing to train "
                    "on."
                ) from None
            self._has_data = True
            self._step += 1
            return logs

        self.train_function = pull_meet_and_step

    @property
    def metrics(self) -> list[Any]:
        """Metrics of all replicas and of the center."""
        return [metric for model in [*self.members, self._center] for metric in model.metrics]

    def _flatten_metrics_in_order(self, logs: dict[str, Any]) -> Any:
        return self._center._flatten_metrics_in_order(logs)

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        """Return an epoch's means over the replicas of all processes."""
        self._warn_of_strength(of_next=False)
        if len(self.local) == self.replicas:
            return logs
        return {
            name: self._exchange.mean_numbers([float(value)] * len(self.local))
            for name, value in logs.items()
        }

    def get_metrics_result(self) -> dict[str, Any]:
        """Return nothing: what each step returns are the means so far."""
        return {}

    # ---- when ------------------------------------------------------------------------------------

    @property
    def _has_inner_loop(self) -> bool:
        return self.coupling_period > self.coupling.every

    @property
    def coupling_period(self) -> int:
        """Training steps from one coupling to the next; known once it is compiled."""
        return self.coupling.every * max(self.optimizer.replicas[0].langevin_steps, 1)

    def _is_due(self, step: Any) -> Any:
        """Tell whether the step after so many steps couples."""
        if self.coupling_period == 1:
            return True
        if isinstance(step, int):
            return (step + 1) % self.coupling_period == 0
        return tf.equal((tf.cast(step, tf.int64) + 1) % self.coupling_period, 0)

    def _clock(self) -> int:
        return int(self.optimizer.iterations.numpy())

    def _begin(self, batches: Batches | None = None) -> None:
        """Get ready to train.

        Args:
            batches: Batches. Those of `fit`, which knows whether to look at some. Defaults to None,
                which leaves them alone.
        """
        self._batches = Batches() if batches is None else batches
        self._has_data = False
        self._go_on_here()

    def _go_on_here(self) -> None:
        """Training goes on from the weights and the clock of now, wherever they come from."""
        if self.compiled:
            self._step = self._clock()
        self._exchange.begin()

    def _warn_of_strength(self, *, of_next: bool) -> None:
        """Say once what became of a coupling that is too strong."""
        if self._has_warned or (not of_next and not self._clock()):
            return
        warning = self.optimizer.warning_of_strength(of_next=of_next)
        if warning:
            self._has_warned = True
            warn(warning)

    def _needs_gamma(self) -> bool:
        strength = self.coupling.strength
        measured = isinstance(strength, CouplingSchedule) and strength.is_measured
        return measured and self.optimizer.gamma_zero == 0.0


def _if(due: Any, action: Callable[[], tf.Tensor]) -> None:
    if due is True:
        action()
    else:
        tf.cond(due, action, lambda: tf.constant(0))
