"""The mean loss of a network over fixed data, as a pure function of its weights.

Everything in this room measures f(w) = 1/N Σ_i loss(y_i, network(x_i; w)) around some weights. The
network is called with tensors in the place of its variables (Keras' `stateless_call`), so that no
measurement writes to the model: whatever happens, it stays as it was, bit for bit. Dropout is off
and BatchNormalization uses its stored statistics, or f would not be a function.

Sums over a batch are taken in the dtype of the model, sums over batches in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from esgd_tf.landscape._data import FixedData
from esgd_tf.landscape._losses import (
    broadcast_mean,
    one_each,
    per_example_loss,
    resolved_loss,
    weighted_sum,
)
from esgd_tf.landscape._selection import Selection, select, select_indices

__all__ = ["Objective", "Selection"]

Vector = NDArray[np.float64]


class Objective:
    """f and its gradient at any weights, over all the data, and what is needed to build on them.

    Args:
        model: A built Keras model, or a list of weights (arrays, tensors or variables).
        loss: With a Keras model: a Keras loss, its name, or a function of (y_true, y_pred) that
            returns a value for each example or their mean; None takes the loss that the model was
            compiled with. Losses that layers add (regularisation) count too, as in `fit`. With a
            list of weights: a function of (weights, x, y), or of (weights) if there are no data.
        data: (x, y) or (x, y, sample_weight) arrays, a batched `tf.data.Dataset` of such tuples
            that gives the same batches at each pass, or None (with a list of weights only).
        batch_size: Examples at a time, for arrays; 512 if None.
        variables: Which weights f is a function of; the others keep their values. A list of the
            model's variables or layers or of names (of layers, or paths of variables), or a
            function of a variable; None for all trainable ones. With a list of weights, a list of
            indices.
        metrics: Further means over the data, by name: functions of (y_true, y_pred) that return a
            value for each example.
    """

    def __init__(
        self,
        model: keras.Model | Sequence[Any],
        loss: Any,
        data: Any,
        *,
        batch_size: int | None = None,
        variables: Selection = None,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    ) -> None:
        self._metrics = dict(metrics or {})
        # Of (y, predictions) or, with a list of weights, of (weights, x, y).
        self._loss: Callable[..., tf.Tensor]
        self.model: keras.Model | None = None
        if isinstance(model, keras.Model):
            if not model.built:
                raise ValueError(
                    f"The model {model.name!r} has no weights yet: call it on data or build it "
                    "before it is measured."
                )
            self.model = model
            self._all = list(model.trainable_variables)
            self._rest = list(model.non_trainable_variables)
            self._given_loss = resolved_loss(model, loss)
            self._loss = per_example_loss(self._given_loss)
            self._selected = select(model, self._all, variables)
        else:
            self._all, self._rest = as_tensors(model), []
            if not callable(loss) or isinstance(loss, keras.losses.Loss):
                raise ValueError(
                    "With a list of weights, `loss` must be a function of (weights, x, y), or of "
                    f"(weights) without data; got {loss!r}."
                )
            if self._metrics:
                raise ValueError(
                    "With a list of weights there is no prediction to take metrics of."
                )
            self._given_loss = self._loss = loss
            self._selected = select_indices(len(self._all), variables)
        self._data = FixedData(data, batch_size, needed=self.model is not None)
        self._strategy = self._distribution_strategy()
        self._read()
        for tensor in self.start:
            if not tensor.dtype.is_floating:
                raise ValueError(
                    f"Weights must be real numbers to have a gradient; got one of dtype "
                    f"{tensor.dtype.name}."
                )
        self.shapes = [tuple(t.shape) for t in self.start]
        self.dtypes = [t.dtype for t in self.start]
        self.size = sum(int(np.prod(s)) for s in self.shapes)
        self.names = [
            getattr(self._all[i], "path", f"weight_{i}")
            if self.model is not None
            else f"weight_{i}"
            for i in self._selected
        ]
        self._sums = tf.function(self._graph_sums, reduce_retracing=True, autograph=False)
        self._sums_and_gradient = tf.function(
            self._graph_sums_and_gradient, reduce_retracing=True, autograph=False
        )

    def _read(self) -> None:
        """Take note of all weights as they are now. Later changes of the model do not matter."""
        read = [tf.identity(tf.convert_to_tensor(value_of(v))) for v in self._all]
        self.start = [read[i] for i in self._selected]
        # What f is not a function of: the weights that are not selected, and BatchNormalization
        # statistics. Arguments of the graphs, so that `reread` needs no other trace.
        self.held = (
            [value for i, value in enumerate(read) if i not in set(self._selected)],
            [tf.identity(tf.convert_to_tensor(value_of(v))) for v in self._rest],
        )

    # ---- weights ------------------------------------------------------------------------------

    def reread(self) -> Objective:
        """Return this objective around the weights that the model has now, without new traces."""
        other = copy.copy(self)
        other._read()
        return other

    def weights(self, weights: Sequence[Any] | ArrayLike | None = None) -> list[tf.Tensor]:
        """Return weights as a list of tensors of the model's shapes and dtypes.

        Args:
            weights: A list of arrays, a flat vector of `size` numbers, or None for those that the
                model had when this objective was made.
        """
        if weights is None:
            return self.start
        if isinstance(weights, list | tuple):
            shapes = [tuple(np.shape(value_of(w))) for w in weights]
            if shapes != self.shapes:
                raise ValueError(
                    f"The weights have shapes {shapes}, and the network needs {self.shapes}."
                )
            return [
                tf.cast(value_of(w), dtype)
                if tf.is_tensor(value_of(w))
                else tf.constant(np.asarray(w), dtype)
                for w, dtype in zip(weights, self.dtypes, strict=True)
            ]
        return self.unflatten(np.asarray(weights))

    def flatten(self, tensors: Sequence[Any]) -> Vector:
        """Return a list of arrays as one float64 vector [size]."""
        return np.concatenate([np.asarray(t, np.float64).ravel() for t in tensors] or [np.zeros(0)])

    def unflatten(self, vector: ArrayLike) -> list[tf.Tensor]:
        """Return a vector [size] as a list of tensors."""
        vector = np.asarray(vector)
        if vector.shape != (self.size,):
            raise ValueError(
                f"The vector has shape {vector.shape}, and there are {self.size:,} weights."
            )
        tensors, at = [], 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            count = int(np.prod(shape))
            tensors.append(tf.constant(vector[at : at + count].reshape(shape), dtype))
            at += count
        return tensors

    # ---- means over the data ------------------------------------------------------------------

    @property
    def count(self) -> float:
        """Number of examples, or the sum of their weights."""
        return self._data.count

    def evaluate(self, weights: Any = None) -> dict[str, float]:
        """Return the mean loss, as "loss", and the metrics, over all the data."""
        (sums,) = self.sum_over_batches(self._sums, self.weights(weights))
        return dict(zip(["loss", *self._metrics], (sums / self.count).tolist(), strict=True))

    def value_and_gradient(self, weights: Any = None) -> tuple[float, Vector]:
        """Return f and its gradient, a vector [size]."""
        sums = self.sum_over_batches(self._sums_and_gradient, self.weights(weights))
        return float(sums[0]) / self.count, self.flatten(sums[1:]) / self.count

    def finite_start(self) -> float:
        """Return f at the start.

        Raises:
            ValueError: It is not finite.
        """
        value = self.evaluate()["loss"]
        if not np.isfinite(value):
            raise ValueError(
                f"The loss at the weights of the model is {value}: nothing to measure."
            )
        return value

    # ---- for those who build their own sums ---------------------------------------------------

    def sum_over_batches(self, function: Callable[..., Any], *arguments: Any) -> list[Vector]:
        """Sum what a graph function gives for each batch, in float64.

        Args:
            function: Of (*arguments, held, x, y, sample_weight); returns a list of tensors.
            *arguments: Weights, and what else the function takes before the batch.
        """
        sums: list[Vector] = []
        for batch in self._data.batches():
            parts = [np.asarray(t, np.float64) for t in function(*arguments, self.held, *batch)]
            sums = parts if not sums else [s + p for s, p in zip(sums, parts, strict=True)]
        return sums

    def loss_sum(
        self, weights: Sequence[tf.Tensor], held: Any, x: Any, y: Any, sample_weight: Any
    ) -> tf.Tensor:
        """In a graph: return the sum of a batch's losses; over all batches, N f."""
        if self.model is None:
            if self._data.absent:
                return tf.convert_to_tensor(self._loss(self._complete(weights, held)))
            losses = self.per_example_loss(weights, held, x, y)
            return weighted_sum(losses, sample_weight)
        predictions, added = self.forward(weights, held, x)
        return self._loss_sum_of(predictions, added, y, sample_weight)

    def forward(
        self, weights: Sequence[tf.Tensor], held: Any, x: Any
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """In a graph: return the predictions, and the losses that layers add."""
        assert self.model is not None
        predictions, _, added = self.model.stateless_call(
            self._complete(weights, held), held[1], x, training=False, return_losses=True
        )
        return predictions, list(added)

    def loss_of_predictions(self, y: Any, predictions: Any) -> tf.Tensor:
        """In a graph: return the loss of each example [n], without those that layers add."""
        return self._loss(y, predictions)

    def per_example_loss(
        self, weights: Sequence[tf.Tensor], held: Any, x: Any, y: Any
    ) -> tf.Tensor:
        """In a graph: return the loss of each example [n], without those that layers add."""
        if self.model is None:
            losses = tf.convert_to_tensor(self._loss(self._complete(weights, held), x, y))
            return broadcast_mean(losses, x)
        return self._loss(y, self.forward(weights, held, x)[0])

    @property
    def has_predictions(self) -> bool:
        """Whether f goes through a Keras model."""
        return self.model is not None

    @property
    def has_examples(self) -> bool:
        """Whether f is a mean over data."""
        return not self._data.absent

    def loss_is_a_mean(self) -> bool:
        """Whether the loss function gives the mean of a batch instead of a value for each."""
        if isinstance(self._given_loss, keras.losses.Loss):
            return False
        x, y, _ = next(iter(self._data.batches()))
        arguments = (
            (self._complete(self.start, self.held), x, y)
            if self.model is None
            else (y, self.forward(self.start, self.held, x)[0])
        )
        return tf.convert_to_tensor(self._given_loss(*arguments)).shape.rank == 0

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """In a graph: run `function(*arguments)` on a batch, divided over all devices.

        Args:
            function: Returns tensors that are sums over the examples it is given.
            *arguments: Those that all devices get, then x, y and sample_weight.

        Returns:
            What it returns, summed over the devices.
        """
        if self._strategy is None:
            return function(*arguments)
        devices = self._strategy.num_replicas_in_sync
        *fixed, x, y, sample_weight = arguments

        def part(value: Any, index: int) -> Any:
            def cut(t: Any) -> Any:
                rows = tf.shape(t)[0]
                return t[rows * index // devices : rows * (index + 1) // devices]

            return tf.nest.map_structure(cut, value)

        def of_a_device(context: Any) -> Any:
            index = context.replica_id_in_sync_group
            return part(x, index), part(y, index), part(sample_weight, index)

        parts = self._strategy.experimental_distribute_values_from_function(of_a_device)
        results = self._strategy.run(lambda p: function(*fixed, *p), args=(parts,))
        return tf.nest.map_structure(
            lambda r: self._strategy.reduce(tf.distribute.ReduceOp.SUM, r, axis=None), results
        )

    # ---- below: our own -----------------------------------------------------------------------

    def _distribution_strategy(self) -> tf.distribute.Strategy | None:
        strategy = getattr(self.model, "distribute_strategy", None)
        return strategy if strategy is not None and strategy.num_replicas_in_sync > 1 else None

    def _complete(self, weights: Sequence[tf.Tensor], held: Any) -> list[tf.Tensor]:
        chosen = dict(zip(self._selected, weights, strict=True))
        fixed = iter(held[0])
        return [chosen[i] if i in chosen else next(fixed) for i in range(len(self._all))]

    def _loss_sum_of(self, predictions: Any, added: Any, y: Any, sample_weight: Any) -> tf.Tensor:
        total = weighted_sum(self._loss(y, predictions), sample_weight)
        if added:
            examples = tf.cast(tf.reduce_sum(sample_weight), total.dtype)
            total += tf.cast(tf.add_n(added), total.dtype) * examples
        return total

    def _batch_sums(self, weights: Any, held: Any, x: Any, y: Any, sample_weight: Any) -> Any:
        if self.model is None:
            total = self.loss_sum(weights, held, x, y, sample_weight)
            return [tf.reshape(tf.cast(total, tf.float64), [1])]
        predictions, added = self.forward(weights, held, x)
        sums = [tf.cast(self._loss_sum_of(predictions, added, y, sample_weight), tf.float64)]
        for metric in self._metrics.values():
            values = one_each(metric(y, predictions))
            sums.append(tf.cast(weighted_sum(values, sample_weight), tf.float64))
        return [tf.stack(sums)]

    def _graph_sums(self, *arguments: Any) -> Any:
        return self.run(self._batch_sums, *arguments)

    def _graph_sums_and_gradient(self, *arguments: Any) -> Any:
        def on_a_device(weights: Any, held: Any, *batch: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                value = self.loss_sum(weights, held, *batch)
            return [value, *tape.gradient(value, weights, unconnected_gradients="zero")]

        return self.run(on_a_device, *arguments)


def value_of(variable: Any) -> Any:
    """Return what a Keras variable holds; anything else as it is."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def as_tensors(weights: Any) -> list[tf.Tensor]:
    """Return a list of weights as tensors, or refuse what is none."""
    if not isinstance(weights, list | tuple) or not weights:
        raise ValueError(
            f"`model` must be a Keras model or a list of weights; got {type(weights).__name__}."
        )
    return [tf.convert_to_tensor(value_of(w)) for w in weights]
