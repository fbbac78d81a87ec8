"""The loss of one batch as a function of the weights, which all graphs of the landscape compute.

A graph is kept longer than the objective for which it was traced. It keeps its `BatchLoss` alive,
which therefore holds neither weights nor data.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from esgd_tf.landscape._devices import on_all_devices
from esgd_tf.landscape._losses import FunctionLoss
from esgd_tf.landscape._metric_sums import MetricSums
from esgd_tf.landscape._model_loss import ModelLoss
from esgd_tf.landscape._second_derivatives import dense, twice_differentiable
from esgd_tf.landscape._types import Held, Nested, Tensors

__all__ = ["BatchLoss"]


class BatchLoss:
    """The sum of the losses of a batch, its parts and its derivatives.

    The methods may be called while a graph is traced, or eagerly.

    Args:
        loss: ModelLoss or FunctionLoss. The loss, as a function of all weights and a batch.
        metrics: MetricSums. What is summed beside the loss.
        selected: list of ints. The indices of the weights that the loss is a function of here.
        count: int >= 1. How many weights there are, those that are held fixed included.
        strategy: tf.distribute.Strategy. The strategy whose devices share a batch; None for a
            single device.
        takes_loss: bool. Whether `sums` computes the loss; False if only metrics are asked for.
    """

    def __init__(
        self,
        loss: ModelLoss | FunctionLoss,
        metrics: MetricSums,
        selected: list[int],
        count: int,
        strategy: tf.distribute.Strategy | None,
        takes_loss: bool,
    ) -> None:
        self.loss, self.metrics = loss, metrics
        self.selected, self.strategy = selected, strategy
        self.takes_loss = takes_loss
        self._count = count

    def loss_sum(
        self, weights: Tensors, held: Held, x: Nested, y: Nested, sample_weight: Nested
    ) -> tf.Tensor:
        """Return n_b L_b for a batch; the sum over all batches is N f."""
        complete = self.complete(weights, held)
        return self.loss.batch_sum(complete, held[1], x, y, sample_weight)

    def gradient_sum(
        self, weights: Tensors, held: Held, x: Nested, y: Nested, sample_weight: Nested
    ) -> Tensors:
        """Return the gradient of `loss_sum`."""
        return self._sum_and_gradient(weights, held, x, y, sample_weight)[1]

    def loss_of_each_example(
        self, weights: Tensors, held: Held, x: Nested, y: Nested, sample_weight: Nested
    ) -> tf.Tensor:
        """Return each example's part in `loss_sum` [n], without what layers add."""
        loss, complete = self.loss, self.complete(weights, held)
        if isinstance(loss, FunctionLoss):
            return loss.of_each_example(complete, x, y, sample_weight)
        with loss.at(complete, held[1]) as model:
            return loss.of_each_example(x, y, loss.call(model, x), sample_weight)

    def predictions(self, weights: Tensors, held: Held, x: Nested) -> Nested:
        """Return what the network predicts."""
        loss = self.loss
        assert isinstance(loss, ModelLoss)
        with loss.at(self.complete(weights, held), held[1]) as model:
            return loss.call(model, x)

    def loss_of_predictions(
        self, x: Nested, y: Nested, predictions: Nested, sample_weight: Nested
    ) -> tf.Tensor:
        """Return the sum of a batch's losses, without those that layers add."""
        loss = self.loss
        assert isinstance(loss, ModelLoss)
        with twice_differentiable():
            return loss.of_examples(x, y, predictions, sample_weight)

    def complete(self, weights: Tensors, held: Held) -> Tensors:
        """Return the weights that are selected and those that are not, in the model's order."""
        chosen = dict(zip(self.selected, dense(weights), strict=True))
        fixed = iter(held[0])
        return [chosen[i] if i in chosen else next(fixed) for i in range(self._count)]

    # ---- functions to be traced -----------------------------------------------------------------

    def run(self, function: Callable[..., Tensors], *arguments: Nested) -> Tensors:
        """Run `function(*arguments)` on a batch, divided over all devices.

        Args:
            function: callable. Returns tensors that are sums over the examples it is given.
            *arguments: The arguments that all devices get, then x, y and sample_weight.

        Returns:
            The tensors of the function, summed over the devices.
        """
        if self.strategy is None:
            return function(*arguments)
        return on_all_devices(self.strategy, function, *arguments)

    def sums(self, weights: Tensors, held: Held, *batch: Nested) -> Tensors:
        """Return one float64 vector: the sum of the losses, then two numbers for each metric."""
        return self.run(self._sums_on_a_device, weights, held, *batch)

    def sum_and_gradient(self, weights: Tensors, held: Held, *batch: Nested) -> Tensors:
        """Return `loss_sum`, and then its gradient by each of the weights."""

        def on_a_device(weights: Tensors, held: Held, *batch: Nested) -> Tensors:
            value, slopes = self._sum_and_gradient(weights, held, *batch)
            return [value, *(tf.convert_to_tensor(slope) for slope in slopes)]

        return self.run(on_a_device, weights, held, *batch)

    def _sums_on_a_device(
        self, weights: Tensors, held: Held, x: Nested, y: Nested, sample_weight: Nested
    ) -> Tensors:
        loss = self.loss
        if isinstance(loss, FunctionLoss):
            total = self.loss_sum(weights, held, x, y, sample_weight)
            return [tf.reshape(tf.cast(total, tf.float64), [1])]
        with loss.at(self.complete(weights, held), held[1]) as model:
            predictions = loss.call(model, x)
            total = tf.zeros([], tf.float64)
            if self.takes_loss:
                total = loss.of_predictions(model, x, y, predictions, sample_weight)
            sums = self.metrics.sums(y, predictions, sample_weight)
        return [tf.stack([tf.cast(s, tf.float64) for s in (total, *sums)])]

    def _sum_and_gradient(
        self, weights: Tensors, held: Held, *batch: Nested
    ) -> tuple[tf.Tensor, Tensors]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            value = self.loss_sum(weights, held, *batch)
        return value, tape.gradient(value, weights, unconnected_gradients="zero")
