"""Worker 0 while the workers are not coupled: a network that is trained beside them.

    GD      w = w - lr v,   v = momentum v + ∇f(w)          f over all the data
    SGD     the same with the gradient of its own minibatch
    LBFGS   one iteration of SciPy's L-BFGS-B on f

Each acts once per step of the stochastic workers. f is the training loss, with dropout and with the
statistics of the batch in BatchNormalization; for LBFGS, which needs a function of the weights
alone, both act as in evaluation.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf.landscape._objective import Objective

__all__ = ["Descent", "QuasiNewton", "WorkerZero", "minibatches", "whole_batch"]

Array = NDArray[Any]
Batches = Callable[[int], Iterable[tuple[Any, Any]]]
# Examples whose gradient is computed at once, when all the data are one batch.
_CHUNK = 2000


class WorkerZero(Protocol):
    """Trains the network of worker 0."""

    def step(self, number: int) -> None:
        """Take the step with this number, counted from 0."""

    def restart(self) -> None:
        """Reset the memory of the method, because the weights were set from outside."""

    def state(self) -> list[Array]:
        """Return the state that the next step depends on, without the weights."""

    def set_state(self, state: list[Array]) -> None:
        """Set a state that `state` returned; the weights must be as they were then."""


def whole_batch(x: Any, y: Any) -> Batches:
    """Return a function that gives all the data at each step, in chunks."""
    chunks = [
        (tf.constant(x[at : at + _CHUNK]), tf.constant(y[at : at + _CHUNK]))
        for at in range(0, len(y), _CHUNK)
    ]
    return lambda number: chunks


def minibatches(x: Any, y: Any, batch_size: int, seed: int) -> Batches:
    """Return a function that gives the minibatch of a step.

    Each epoch has a new order; its last batch is filled up from the beginning of that order.

    Args:
        x: array of shape [n, ...]. The inputs.
        y: array of shape [n, ...]. The targets.
        batch_size: int >= 1. Examples of a minibatch; all n if it is larger.
        seed: int >= 0. The seed of the orders.
    """
    count = len(y)
    size = min(batch_size, count)
    steps = -(-count // size)

    def batch(number: int) -> list[tuple[Any, Any]]:
        epoch, k = divmod(number, steps)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        chosen = np.concatenate([order, order])[k * size : (k + 1) * size]
        return [(tf.constant(x[chosen]), tf.constant(y[chosen]))]

    return batch


class Descent:
    """Gradient descent, with all the data or a minibatch at each step.

    Args:
        model: keras.Model. The network of worker 0.
        loss: callable. A function of (y, outputs) that gives each example's loss.
        optimizer: keras.optimizers.Optimizer that is not built yet. It takes the steps.
        batches: callable. Returns the minibatches of a step, given its number.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Callable[[Any, Any], Any],
        optimizer: keras.optimizers.Optimizer,
        batches: Batches,
    ) -> None:
        self._model, self._loss, self._batches = model, loss, batches
        self.optimizer = optimizer
        optimizer.build(model.trainable_variables)
        self._gradient = tf.function(self._graph_gradient, reduce_retracing=True, autograph=False)

    def step(self, number: int) -> None:
        """Take a step."""
        total: list[tf.Tensor] = []
        count = 0
        for x, y in self._batches(number):
            part = self._gradient(x, y)
            total = part if not total else [s + p for s, p in zip(total, part, strict=True)]
            count += int(y.shape[0])
        mean = [s / tf.cast(count, s.dtype) for s in total]
        self.optimizer.apply(mean, self._model.trainable_variables)

    def restart(self) -> None:
        """Set the optimizer's memory to zero."""
        for variable in self._memory():
            variable.assign(tf.zeros_like(variable.value))

    def state(self) -> list[Array]:
        """Return the optimizer's memory."""
        return [variable.numpy() for variable in self._memory()]

    def set_state(self, state: list[Array]) -> None:
        """Set the optimizer's memory."""
        for variable, value in zip(self._memory(), state, strict=True):
            variable.assign(value)

    def _memory(self) -> list[keras.Variable]:
        rate = self.optimizer.learning_rate
        return [v for v in self.optimizer.variables if v is not rate]

    def _graph_gradient(self, x: Any, y: Any) -> list[tf.Tensor]:
        variables = [v.value for v in self._model.trainable_variables]
        with tf.GradientTape() as tape:
            losses = self._loss(y, self._model(x, training=True))
            value = tf.reduce_sum(losses)
            if self._model.losses:  # losses that layers add belong to the mean
                value += tf.add_n(self._model.losses) * tf.cast(tf.shape(y)[0], value.dtype)
        return tape.gradient(value, variables, unconnected_gradients="zero")


class QuasiNewton:
    """L-BFGS by SciPy, one iteration at a time.

    SciPy does not expose its memory, so a resumed run repeats the iterations from the point
    where they began, which determines them.

    Args:
        model: keras.Model. The network of worker 0.
        loss: callable. A function of (y, outputs) that gives each example's loss.
        x: array of shape [n, ...]. The inputs.
        y: array of shape [n, ...]. The targets.
    """

    def __init__(self, model: keras.Model, loss: Any, x: Any, y: Any) -> None:
        self._model = model
        self._objective = Objective(model, loss, (x, y), batch_size=_CHUNK)
        self._iterates: Iterator[Array] | None = None
        self._begin = self._weights()
        self._done = 0

    def step(self, number: int) -> None:
        """Go to the next iterate; stay at the minimum once it is found."""
        del number
        if self._iterates is None:
            self._iterates = _iterates(self._value_and_gradient, self._begin)
            for _ in range(self._done):
                next(self._iterates, None)
        found = next(self._iterates, None)
        self._done += 1
        if found is not None:
            parts = self._objective.unflatten(found)
            for variable, part in zip(self._model.trainable_variables, parts, strict=True):
                variable.assign(part)

    def restart(self) -> None:
        """Start again from the current weights of the network."""
        self._iterates, self._begin, self._done = None, self._weights(), 0

    def state(self) -> list[Array]:
        """Return the point where the iterations began, and their number."""
        return [self._begin, np.array(self._done)]

    def set_state(self, state: list[Array]) -> None:
        """Set a state that `state` returned."""
        self._iterates, self._begin, self._done = None, state[0], int(state[1])

    def _weights(self) -> Array:
        return self._objective.flatten(self._model.trainable_variables)

    def _value_and_gradient(self, w: Array) -> tuple[float, Array]:
        return self._objective.value_and_gradient(w)


def _iterates(function: Callable[[Array], tuple[float, Array]], start: Array) -> Iterator[Array]:
    """Yield the iterates of L-BFGS, each when it is asked for.

    SciPy calls a function and does not yield, so its loop runs in a thread that waits between
    iterations.
    """
    from scipy.optimize import minimize  # noqa: PLC0415 - loaded when it is used

    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def give(x: Array) -> None:
        found.put(np.array(x))
        if not asked.get():
            raise StopIteration

    def search() -> None:
        try:
            if asked.get():
                minimize(
                    function, start, jac=True, method="L-BFGS-B", callback=give,
                    options={"maxiter": 10**9, "maxfun": 10**9, "ftol": 0.0, "gtol": 0.0},
                )  # fmt: skip
            found.put(None)
        except BaseException as error:
            found.put(error)

    # The thread is a daemon: the end of a run must not wait for iterations that are not needed.
    threading.Thread(target=search, daemon=True).start()
    try:
        while True:
            asked.put(True)
            result = found.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                return
            yield result
    finally:
        asked.put(False)
