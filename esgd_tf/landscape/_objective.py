"""The mean loss of a network over fixed data, as a function of its weights.

Everything in this room measures f(w) = 1/N Σ_b n_b L_b(w) around some weights: L_b is what Keras
computes as the loss of batch b, which has n_b of the N examples (see `_model_loss.py`). Where L_b
is the mean over examples of a loss, possibly times a weight, f is the same however the data are
cut. No measurement writes to the model: whatever happens, it stays as it was, bit for bit.

Sums over a batch are taken in float32 or wider, sums over batches in float64.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from esgd_tf.landscape import _place
from esgd_tf.landscape._batch import first_line
from esgd_tf.landscape._batch_loss import BatchLoss
from esgd_tf.landscape._data import FixedData
from esgd_tf.landscape._devices import strategy_of
from esgd_tf.landscape._filters import filter_axes
from esgd_tf.landscape._first_batch import depends_on_cuts
from esgd_tf.landscape._layout import Layout, as_tensors, value_of
from esgd_tf.landscape._losses import FunctionLoss
from esgd_tf.landscape._metric_sums import MetricSums
from esgd_tf.landscape._precision import refuse_half_weights
from esgd_tf.landscape._selection import Selection, select, select_indices
from esgd_tf.landscape._traces import Graph, Traces, traces_of
from esgd_tf.landscape._types import (
    Batch,
    Data,
    Loss,
    Metric,
    Nested,
    Network,
    Tensors,
    Vector,
    Weights,
)

__all__ = ["Objective", "Selection"]

# How `evaluate` cuts arrays.
_KERAS_BATCH_SIZE = 32


class Objective(Layout):
    """The mean loss f over all the data, and its gradient, at any weights.

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
        model: Network,
        loss: Loss,
        data: Data,
        *,
        batch_size: int | None = None,
        variables: Selection = None,
        metrics: Mapping[str, Metric] | None = None,
        loss_is_needed: bool = True,
    ) -> None:
        self._metrics = dict(metrics or {})
        # The model that was given, and the one that is called; for replicas, that is the model of
        # their center.
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
        self.batch_loss = BatchLoss(
            self.traces.loss,
            self.traces.metrics,
            self._selected,
            len(self._all),
            strategy_of(self.model),
            self.takes_loss,
        )
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
            could_cut = self._data.is_arrays and batch_size is None
            large = could_cut and self._data.count > _KERAS_BATCH_SIZE
            first = self._data.first()
            if depends_on_cuts(self.batch_loss, self._sums_of, first, self.traces, large=large):
                self._data = FixedData(data, _KERAS_BATCH_SIZE, for_model=True)

    def _read(self) -> None:
        """Copy all weights as they are now, so that later changes of the model do not matter."""
        values: dict[int, tf.Tensor] = {}
        if self._given is not None:
            place = _place.find(self._given)
            values, self.measured_at = place.values, place.name
        read = [
            tf.identity(tf.convert_to_tensor(values.get(id(v), value_of(v)))) for v in self._all
        ]
        self.start = [read[i] for i in self._selected]
        # The weights that are not selected, and other variables, such as BatchNormalization
        # statistics. They are arguments of the graphs, so that `reread` needs no other trace.
        self.held = (
            [value for i, value in enumerate(read) if i not in set(self._selected)],
            [tf.identity(tf.convert_to_tensor(value_of(v))) for v in self._rest],
        )

    def _sums_of(self, batch: Batch) -> Vector:
        return self.sum_over([batch], self._sums(), self.start)[0]

    def _sums(self) -> Graph:
        return self.graph(("sums", self.takes_loss), BatchLoss.sums)

    # ---- weights --------------------------------------------------------------------------------

    def reread(self) -> Objective:
        """Return this objective around the weights that the model has now, without new traces."""
        other = copy.copy(self)
        other._read()
        return other

    def moved_to(self, weights: Weights | ArrayLike) -> Objective:
        """Return this objective around other weights, without new traces."""
        other = copy.copy(self)
        other.start = self.weights(weights)
        other.measured_at = "weights"
        return other

    def of_examples(self, chosen: NDArray[np.integer[Any]]) -> Objective:
        """Return the mean over some of the examples, of data that are arrays, without new traces.

        Args:
            chosen: array of ints. The numbers of the examples.
        """
        other = copy.copy(self)
        data = self._data.examples(chosen)
        # Cut as all the data are, where it matters.
        size = self._data.batch_size
        other._data = FixedData(data, size, for_model=self.model is not None)
        return other

    @property
    def is_over_arrays(self) -> bool:
        """Whether f is a mean over arrays of examples, which can be taken one by one."""
        return self._data.is_arrays

    # ---- means over the data --------------------------------------------------------------------

    @property
    def count(self) -> float:
        """N, the number of examples."""
        return self._data.count

    def evaluate(self, weights: Weights | ArrayLike | None = None) -> dict[str, float]:
        """Return the mean loss, as "loss", and the metrics, over all the data."""
        (sums,) = self.sum_over_batches(self._sums(), self.weights(weights))
        found = {"loss": float(sums[0]) / self.count} if self.takes_loss else {}
        return found | self.traces.metrics.results(sums[1:])

    def value_and_gradient(
        self, weights: Weights | ArrayLike | None = None
    ) -> tuple[float, Vector]:
        """Return f and its gradient, a vector [size]."""
        graph = self.graph("value and gradient", BatchLoss.sum_and_gradient)
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

    # ---- sums that measures define --------------------------------------------------------------

    def graph(self, key: Hashable, function: Callable[..., Tensors]) -> Graph:
        """Return a traced function, the same one at the next call for the same model and loss.

        Args:
            key: any hashable. What tells the function from others of the same network, loss and
                selected weights.
            function: callable. A function of (batch loss, *arguments), where the batch loss is
                `batch_loss`. It must not hold data or weights, since its graph is kept.
        """
        batch_loss, graphs = self.batch_loss, self.traces.graphs
        key = (key, tuple(batch_loss.selected), id(batch_loss.strategy))
        if key not in graphs:
            # TensorFlow warns of functions that are traced often, and takes two for the same if
            # their code is: each of a lambda's instances would count as one of the other.
            graphs[key] = tf.function(
                functools.partial(function, batch_loss), reduce_retracing=True, autograph=False
            )
        return graphs[key]

    def sum_over_batches(self, function: Graph, *arguments: Nested) -> list[Vector]:
        """Return the sums over batches of the tensors that a graph returns, in float64.

        Args:
            function: callable. What `graph` returned: a function of (*arguments, held, x, y,
                sample_weight), which returns a list of tensors.
            *arguments: The weights, and further arguments that stand before `held`.
        """
        return self.sum_over(self._data.batches(), function, *arguments)

    def sum_over(
        self, batches: Iterable[Batch], function: Graph, *arguments: Nested
    ) -> list[Vector]:
        """Return the same sums over some batches; see `sum_over_batches`."""
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

    @property
    def places(self) -> list[Any]:
        """What `variables` may name each weight by, alone: the variable itself, or its index."""
        return [i if self.model is None else self._all[i] for i in self._selected]

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

    def first_batch(self) -> Batch:
        """Return (x, y, sample_weight) of the first batch."""
        return self._data.first()
