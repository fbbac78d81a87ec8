"""The mean loss of a network over fixed data, as a function of its weights.

Everything in this room measures f(w) = 1/N Σ_b n_b L_b(w) around some weights: L_b is what Keras
computes as the loss of batch b, which has n_b of the N examples (see `_model_loss.py`). Where L_b
is the mean over examples of a loss, possibly times a weight, f is the same however the data are
cut. No measurement writes to the model: whatever happens, it stays as it was, bit for bit.

Sums over a batch are taken in float32 or wider, sums over batches in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from esgd_tf.landscape import _place
from esgd_tf.landscape._data import FixedData, cut_rows, first_line, rows_of
from esgd_tf.landscape._devices import on_all_devices
from esgd_tf.landscape._filters import filter_axes
from esgd_tf.landscape._layout import Layout, value_of
from esgd_tf.landscape._losses import FunctionLoss
from esgd_tf.landscape._metric_sums import MetricSums
from esgd_tf.landscape._model_loss import ModelLoss
from esgd_tf.landscape._precision import refuse_half_weights
from esgd_tf.landscape._second_derivatives import dense, twice_differentiable
from esgd_tf.landscape._selection import Selection, select, select_indices
from esgd_tf.landscape._traces import Traces, traces_of

__all__ = ["Objective", "Selection"]

Vector = NDArray[np.float64]

# By how much two passes of a batch may differ before the layers are said to be random: sums
# in float32 by several threads differ by less.
_SAME = 1e-5
_KERAS_BATCH_SIZE = 32


class Objective(Layout):
    """f and its gradient at any weights, over all the data, and what is needed to build on them.

    Args:
        model: keras.Model that is built, or a list of arrays, tensors or variables. The network, or
            the weights.
        loss: nested structure of losses, or callable. With a Keras model what `compile` takes as a
            loss; None takes the loss that the model was compiled with, with its `loss_weights`.
            Losses that layers add (regularisation) count too, as in `fit`. With a list of weights:
            a function of (weights, x, y), or of (weights) if there are no data.
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. What `FixedData`
            takes, or None (with a list of weights only).
        batch_size: int >= 1. Examples at a time, for arrays. Defaults to None, which means 512, or
            Keras' 32 where it matters how the data are cut.
        variables: list of variables, layers or names (of layers, or paths of variables), or a
            callable of a variable. Which weights f is a function of; the others keep their values.
            With a list of weights, a list of indices. Defaults to None, which means all trainable
            ones.
        metrics: mapping of metrics by name. Further means over the data: "error", Keras losses and
            metrics, or functions of (y_true, y_pred). Defaults to None, which means none.
        loss_is_needed: bool. Whether there must be a loss; False if only metrics are asked for.
            Defaults to True.
    """

    def __init__(
        self,
        model: keras.Model | Sequence[Any],
        loss: Any,
        data: Any,
        *,
        batch_size: int | None = None,
        variables: Selection = None,
        metrics: Mapping[str, Any] | None = None,
        loss_is_needed: bool = True,
    ) -> None:
        self._metrics = dict(metrics or {})
        # The one given, and the one that is called: of replicas, that of their center.
        self._given: keras.Model | None = None
        self.model: keras.Model | None = None
        self.measured_at = "weights"
        if isinstance(model, keras.Model):
            place = _place.find(model)
            self._given, self.model = model, place.model
            if not self.model.built:
                raise ValueError(
                    f"The model {model.name!r} has no weights yet: call it on data or build it "
                    "before it is measured."
                )
            self._all = list(self.model.trainable_variables)
            self._rest = list(self.model.non_trainable_variables)
            refuse_half_weights(self._all)
            self._selected = select(self.model, self._all, variables)
            self._data = FixedData(data, batch_size, for_model=True)
            self.traces = traces_of(place, loss, self._metrics)
            self.takes_loss = loss_is_needed
        else:
            self._all, self._rest = as_tensors(model), []
            if self._metrics:
                raise ValueError(
                    "With a list of weights there is no prediction to take metrics of."
                )
            self._selected = select_indices(len(self._all), variables)
            self._data = FixedData(data, batch_size, for_model=False)
            self.traces = Traces(FunctionLoss(loss, self._data.absent), MetricSums({}))
            self.takes_loss = True
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
        if self.model is not None:
            self._look_at_a_batch(data, batch_size)

    def _read(self) -> None:
        """Take note of all weights as they are now. Later changes of the model do not matter."""
        values: dict[int, Any] = {}
        if self._given is not None:
            place = _place.find(self._given)
            values, self.measured_at = place.values, place.name
        read = [
            tf.identity(tf.convert_to_tensor(values.get(id(v), value_of(v)))) for v in self._all
        ]
        self.start = [read[i] for i in self._selected]
        # What f is not a function of: the weights that are not selected, and BatchNormalization
        # statistics. Arguments of the graphs, so that `reread` needs no other trace.
        self.held = (
            [value for i, value in enumerate(read) if i not in set(self._selected)],
            [tf.identity(tf.convert_to_tensor(value_of(v))) for v in self._rest],
        )

    def _look_at_a_batch(self, data: Any, batch_size: int | None) -> None:
        """Refuse layers with random outputs, and cut the data as `evaluate` does if it matters."""
        batch = self._data.first()
        cuts = self._data.is_arrays and batch_size is None and self._data.count > _KERAS_BATCH_SIZE
        if self.traces.is_function and not (cuts and self.traces.loss.has_unknown_parts):
            one = np.zeros(1)
        else:
            one, other = (self._of_a_batch(batch) for _ in range(2))
            if not np.allclose(one, other, rtol=_SAME, atol=_SAME * _largest(one), equal_nan=True):
                raise ValueError(
                    "Two passes over the same data give different losses, so the model samples "
                    "random numbers though it is not in training (a layer that calls tf.random?), "
                    "and its loss is not a function of the weights: give it a seed of its own, or "
                    "leave the layer out."
                )
            self.traces.is_function = True
        if cuts and self._depends_on_batches(batch, one):
            self._data = FixedData(data, _KERAS_BATCH_SIZE, for_model=True)

    def _depends_on_batches(self, batch: Any, whole: Vector) -> bool:
        loss = self.traces.loss
        if loss.depends_on_batches or not loss.has_unknown_parts or not self.takes_loss:
            return loss.depends_on_batches
        # A function of the user's may be anything: try.
        rows = int(rows_of(batch[0]))
        halves = [
            tf.nest.map_structure(lambda t: t if t is None else cut_rows(t, a, b), batch)  # noqa: B023
            for a, b in ((0, rows // 2), (rows // 2, rows))
        ]
        apart = sum(self._of_a_batch(half)[0] for half in halves)
        return not np.allclose(apart, whole[0], rtol=_SAME)

    def _of_a_batch(self, batch: Any) -> Vector:
        return self.sum_over([batch], self._sums, self.start)[0]

    # ---- weights ------------------------------------------------------------------------------

    def reread(self) -> Objective:
        """Return this objective around the weights that the model has now, without new traces."""
        other = copy.copy(self)
        other._read()
        return other

    def moved_to(self, weights: Sequence[Any] | ArrayLike) -> Objective:
        """Return this objective around other weights, without new traces."""
        other = copy.copy(self)
        other.start = self.weights(weights)
        other.measured_at = "weights"
        return other

    # ---- means over the data ------------------------------------------------------------------

    @property
    def count(self) -> float:
        """N, the number of examples."""
        return self._data.count

    def evaluate(self, weights: Any = None) -> dict[str, float]:
        """Return the mean loss, as "loss", and the metrics, over all the data."""
        (sums,) = self.sum_over_batches(self._sums, self.weights(weights))
        found = {"loss": float(sums[0]) / self.count} if self.takes_loss else {}
        return found | self.traces.metrics.results(sums[1:])

    def value_and_gradient(self, weights: Any = None) -> tuple[float, Vector]:
        """Return f and its gradient, a vector [size]."""
        graph = self.graph("value and gradient", type(self)._graph_sums_and_gradient)
        sums = self.sum_over_batches(graph, self.weights(weights))
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

    def graph(self, key: Any, function: Callable[..., Any], *, of: Any = None) -> Any:
        """Return a traced function, the same one at the next call for the same model and loss.

        Args:
            key: any hashable. What tells it from others of the same network, loss and weights.
            function: callable. A function of (owner, *arguments), where the owner is this
                objective, or a copy of `of` with this objective in it, without data or weights.
            of: object. An object that has this objective as `_objective`. Defaults to None, which
                means the objective itself.
        """
        key = (key, tuple(self._selected), id(self._strategy))
        if key not in self.traces.graphs:
            bare = self._without_data()
            owner: Any = bare
            if of is not None:
                owner = copy.copy(of)
                owner._objective = bare
            self.traces.graphs[key] = tf.function(
                lambda *arguments: function(owner, *arguments),
                reduce_retracing=True,
                autograph=False,
            )
        return self.traces.graphs[key]

    def sum_over_batches(self, function: Callable[..., Any], *arguments: Any) -> list[Vector]:
        """Sum what a graph function gives for each batch, in float64.

        Args:
            function: callable. A function of (*arguments, held, x, y, sample_weight), which returns
                a list of tensors.
            *arguments: Weights, and what else the function takes before the batch.
        """
        return self.sum_over(self._data.batches(), function, *arguments)

    def sum_over(
        self, batches: Iterable[Any], function: Callable[..., Any], *arguments: Any
    ) -> list[Vector]:
        """Do the same for some batches."""
        sums: list[Vector] = []
        for batch in batches:
            try:
                results = function(*arguments, self.held, *batch)
            except tf.errors.InvalidArgumentError as reason:
                # A label beyond the classes, an index beyond an Embedding's table, ...
                raise ValueError(
                    f"The model or its loss cannot be computed on these data: {first_line(reason)}"
                ) from reason
            parts = [np.asarray(t, np.float64) for t in results]
            sums = parts if not sums else [s + p for s, p in zip(sums, parts, strict=True)]
        return sums

    def loss_sum(
        self, weights: Sequence[tf.Tensor], held: Any, x: Any, y: Any, sample_weight: Any
    ) -> tf.Tensor:
        """In a graph: return n_b L_b for a batch; over all batches, N f."""
        complete = self.complete(weights, held)
        return self.traces.loss.batch_sum(complete, held[1], x, y, sample_weight)

    def gradient_sum(
        self, weights: Sequence[tf.Tensor], held: Any, x: Any, y: Any, sample_weight: Any
    ) -> list[tf.Tensor]:
        """In a graph: return the gradient of `loss_sum`."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            value = self.loss_sum(weights, held, x, y, sample_weight)
        return tape.gradient(value, weights, unconnected_gradients="zero")

    def loss_of_each_example(
        self, weights: Sequence[tf.Tensor], held: Any, x: Any, y: Any, sample_weight: Any
    ) -> tf.Tensor:
        """In a graph: return each example's part in `loss_sum` [n], but for what layers add."""
        loss, complete = self.traces.loss, self.complete(weights, held)
        if isinstance(loss, FunctionLoss):
            return loss.of_each_example(complete, x, y, sample_weight)
        with loss.at(complete, held[1]) as model:
            return loss.of_each_example(x, y, loss.call(model, x), sample_weight)

    def forward(self, weights: Sequence[tf.Tensor], held: Any, x: Any) -> tuple[Any, list[Any]]:
        """In a graph: return the predictions, and the losses that layers add."""
        loss = self.traces.loss
        assert isinstance(loss, ModelLoss)
        with loss.at(self.complete(weights, held), held[1]) as model:
            return loss.call(model, x), list(model.losses)

    def loss_of_predictions(
        self, x: Any, y: Any, predictions: Any, sample_weight: Any
    ) -> tf.Tensor:
        """In a graph: return the sum of a batch's losses, without those that layers add."""
        loss = self.traces.loss
        assert isinstance(loss, ModelLoss)
        with twice_differentiable():
            return loss.of_examples(x, y, predictions, sample_weight)

    def complete(self, weights: Sequence[tf.Tensor], held: Any) -> list[tf.Tensor]:
        """Return the weights that are selected and those that are not, in the model's order."""
        chosen = dict(zip(self._selected, dense(weights), strict=True))
        fixed = iter(held[0])
        return [chosen[i] if i in chosen else next(fixed) for i in range(len(self._all))]

    @property
    def filter_axes(self) -> list[tuple[int, ...]] | None:
        """The axes along which each weight has its filters; None with a list of weights."""
        if self.model is None:
            return None
        return filter_axes(self.model, [self._all[i] for i in self._selected])

    @property
    def has_predictions(self) -> bool:
        """Whether f goes through a Keras model."""
        return self.model is not None

    @property
    def has_examples(self) -> bool:
        """Whether f is a mean over data."""
        return not self._data.absent

    def first_batch(self) -> Any:
        """Return (x, y, sample_weight) of the first batch."""
        return self._data.first()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """In a graph: run `function(*arguments)` on a batch, divided over all devices.

        Args:
            function: callable. Returns tensors that are sums over the examples it is given.
            *arguments: Those that all devices get, then x, y and sample_weight.

        Returns:
            What it returns, summed over the devices.
        """
        if self._strategy is None:
            return function(*arguments)
        return on_all_devices(self._strategy, function, *arguments)

    # ---- below: our own -----------------------------------------------------------------------

    def _distribution_strategy(self) -> tf.distribute.Strategy | None:
        strategy = getattr(self.model, "distribute_strategy", None)
        return strategy if strategy is not None and strategy.num_replicas_in_sync > 1 else None

    def _without_data(self) -> Objective:
        """Return what graphs need of this: they outlive it, and are not to keep data or models."""
        bare = copy.copy(self)
        bare._given = bare.model = bare._data = None  # type: ignore[assignment]
        bare.start, bare.held, bare._rest = [], ([], []), []
        bare._all = [None] * len(self._all)
        return bare

    @property
    def _sums(self) -> Any:
        return self.graph(("sums", self.takes_loss), type(self)._graph_sums)

    def _graph_sums(self, *arguments: Any) -> Any:
        return self.run(self._batch_sums, *arguments)

    def _batch_sums(self, weights: Any, held: Any, x: Any, y: Any, sample_weight: Any) -> Any:
        loss = self.traces.loss
        if isinstance(loss, FunctionLoss):
            total = self.loss_sum(weights, held, x, y, sample_weight)
            return [tf.reshape(tf.cast(total, tf.float64), [1])]
        with loss.at(self.complete(weights, held), held[1]) as model:
            predictions = loss.call(model, x)
            total = tf.zeros([], tf.float64)
            if self.takes_loss:
                total = loss.of_predictions(model, x, y, predictions, sample_weight)
            sums = self.traces.metrics.sums(y, predictions, sample_weight)
        return [tf.stack([tf.cast(s, tf.float64) for s in (total, *sums)])]

    def _graph_sums_and_gradient(self, *arguments: Any) -> Any:
        def on_a_device(weights: Any, held: Any, *batch: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                value = self.loss_sum(weights, held, *batch)
            slopes = tape.gradient(value, weights, unconnected_gradients="zero")
            return [value, *(tf.convert_to_tensor(slope) for slope in slopes)]

        return self.run(on_a_device, *arguments)


def as_tensors(weights: Any) -> list[tf.Tensor]:
    """Return a list of weights as tensors, or refuse what is none."""
    if not isinstance(weights, list | tuple) or not weights:
        raise ValueError(
            f"`model` must be a Keras model or a list of weights; got {type(weights).__name__}."
        )
    return [tf.convert_to_tensor(value_of(w)) for w in weights]


def _largest(values: Vector) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max(initial=0.0))
