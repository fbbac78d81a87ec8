"""The loss that Keras trains, as a pure function of the weights of a model.

For a batch of n examples, `model.compute_loss` returns what the model was compiled with: losses of
one or several outputs with their weights, masks, sample weights and reductions, and what layers
add. Keras' `evaluate` reports the mean of that over batches, each counted n times. So does this
module: what it returns for a batch is n times Keras' value, and the sum over batches divided by the
number of examples is what `evaluate` prints.

The model is called with tensors in the place of its variables (`keras.StatelessScope`), dropout off
and moving statistics fixed, so that nothing is written to it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from esgd_tf import _keras
from esgd_tf.landscape._batch import first_line, rows_of
from esgd_tf.landscape._float64 import is_in_float64
from esgd_tf.landscape._precision import in_full_precision
from esgd_tf.landscape._second_derivatives import twice_differentiable
from esgd_tf.landscape._types import Loss, LossWeights, Nested, Tensors
from esgd_tf.landscape._watched_losses import watched_losses

__all__ = ["ModelLoss", "replicas_in_sync"]

# The errors that Keras raises where targets, predictions, weights and losses do not fit.
_KERAS_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, tf.errors.OpError)


class ModelLoss:
    """The loss that Keras trains, of a batch at a time. It keeps no model alive, and no data.

    Args:
        model: keras.Model. A built model.
        loss: nested structure of losses. All that `compile` takes as a loss; None if there are only
            those that layers add.
        loss_weights: nested structure of floats. The weights of the losses, as `compile` takes
            them; None for 1 each.
        compiled: bool. Whether `loss` is the one that the model was compiled with: then a model
            with a `compute_loss` of its own is asked.

    Attributes:
        depends_on_batches: Whether the value of a batch is more than the mean over its examples, so
            that it matters how data are cut: masks, sums, losses of a whole batch, terms that
            layers compute of activations. Known after the first trace.
        sees_examples: Whether there is a loss of each example. Known after the first trace.
        has_unknown_parts: Whether a loss is not Keras' own, so that it may look across a batch
            without our seeing it.
    """

    def __init__(
        self, model: keras.Model, loss: Loss, loss_weights: LossWeights, compiled: bool
    ) -> None:
        self._model = weakref.ref(model)
        overridden = type(model).compute_loss is not keras.Model.compute_loss
        self._own_rule = compiled and overridden
        self.depends_on_batches = self._own_rule
        self.sees_examples = not self._own_rule
        self.has_unknown_parts = self._own_rule
        self._judge = None
        if loss is not None and not self._own_rule:
            self._judge = _judge(model, watched_losses(loss, self), loss_weights)
        self.has_loss = self._own_rule or self._judge is not None
        self._takes_training = "training" in _arguments(type(model).call)

    @property
    def model(self) -> keras.Model:
        """The model."""
        model = self._model()
        assert model is not None
        return model

    # ---- in a graph -----------------------------------------------------------------------------

    def batch_sum(
        self, weights: Tensors, rest: Tensors, x: Nested, y: Nested, sample_weight: Nested
    ) -> tf.Tensor:
        """Return n times the loss of a batch.

        Args:
            weights: sequence of tensors. The values of the trainable variables.
            rest: sequence of tensors. The values of the other variables.
            x: nested structure of tensors. The inputs.
            y: nested structure of tensors. The targets, or None.
            sample_weight: nested structure of tensors. The weights of the examples as Keras takes
                them, or None.
        """
        with self.at(weights, rest) as model:
            predictions = self.call(model, x)
            return self.of_predictions(model, x, y, predictions, sample_weight)

    @contextlib.contextmanager
    def at(self, weights: Tensors, rest: Tensors) -> Iterator[keras.Model]:
        """Let the model have other weights inside the block, without writing to it."""
        model = self.model
        mapping = [
            *zip(model.trainable_variables, weights, strict=True),
            *zip(model.non_trainable_variables, rest, strict=True),
        ]
        scope = keras.StatelessScope(mapping, collect_losses=True)
        with in_full_precision(model), twice_differentiable(model), scope:
            yield model

    def call(self, model: keras.Model, x: Nested) -> Nested:
        """Return the predictions as `evaluate` has them; inside `at`."""
        return model(x, training=False) if self._takes_training else model(x)

    def of_predictions(
        self, model: keras.Model, x: Nested, y: Nested, predictions: Nested, sample_weight: Nested
    ) -> tf.Tensor:
        """Return n times the loss of a batch, with what layers have added; inside `at`."""
        if self._own_rule:
            options = {"training": False} if _takes_training(model.compute_loss) else {}
            value = model.compute_loss(x, y, predictions, sample_weight, **options)
            return _times_rows(value * replicas_in_sync(), x)
        added = [tf.reduce_sum(value) for value in model.losses]
        if model.losses and len(model.losses) > len(_regularization(model)):
            self.depends_on_batches = True
        parts = [_times_rows(value, x) for value in added]
        if self._judge is not None:
            parts.append(self.of_examples(x, y, predictions, sample_weight))
        if not parts:
            raise ValueError("There is no loss: give one, or compile the model with one.")
        dtype = functools.reduce(_wider, (part.dtype for part in parts))
        return tf.add_n([tf.cast(part, dtype) for part in parts])

    def of_examples(
        self, x: Nested, y: Nested, predictions: Nested, sample_weight: Nested
    ) -> tf.Tensor:
        """Return n times the loss of a batch, without what layers add."""
        if self._judge is None:
            raise ValueError(
                "This measure needs a loss of targets and predictions, and the model has none but "
                "what its layers or its `compute_loss` add: give a loss."
            )
        if y is None:
            raise ValueError("The data have no targets, and the loss needs some: give (x, y).")
        if any(
            getattr(t, "_keras_mask", None) is not None for t in keras.tree.flatten(predictions)
        ):
            self.depends_on_batches = True
        try:
            value = self._judge.compute_loss(x, y, predictions, sample_weight)
        except _KERAS_ERRORS as reason:
            shapes = f"predictions {_shapes(predictions)}, targets {_shapes(y)}"
            if sample_weight is not None:
                shapes += f", sample weights {_shapes(sample_weight)}"
            raise ValueError(
                f"Keras cannot compute the loss of these data ({shapes}): {first_line(reason)}"
            ) from reason
        return _times_rows(value * replicas_in_sync(), x)

    def of_each_example(
        self, x: Nested, y: Nested, predictions: Nested, sample_weight: Nested
    ) -> tf.Tensor:
        """Return each example's part of `of_examples`, a vector [n]; their sum is its value.

        Keras' reductions are linear in the weights of examples, so an example's part is the
        derivative by its weight.
        """
        ones = tf.ones([rows_of(x)], "float64" if is_in_float64() else keras.config.floatx())
        with tf.GradientTape() as tape:
            tape.watch(ones)
            total = self.of_examples(x, y, predictions, _weighted(ones, sample_weight))
        parts = tape.gradient(total, ones)
        if parts is None:
            self.sees_examples = False
            return tf.zeros_like(ones)
        return parts

    def saw(self, values: tf.Tensor) -> None:
        """Note how a loss treats a batch, from its values before they are reduced."""
        if len(values.shape) == 0:
            self.depends_on_batches, self.sees_examples = True, False
        if getattr(values, "_keras_mask", None) is not None:
            self.depends_on_batches = True


class _Judge(keras.Model):
    """A model without layers, made for the sake of its `compute_loss`."""


def _judge(model: keras.Model, loss: Loss, loss_weights: LossWeights) -> keras.Model:
    judge = _Judge(name="judge")
    names = getattr(model, "output_names", None)
    if names is not None:
        judge.output_names = list(names)
    judge.compile(None, loss, loss_weights=loss_weights, jit_compile=False)
    return judge


def _weighted(ones: tf.Tensor, sample_weight: Nested) -> Nested:
    """Return sample weights, with those of example i multiplied by `ones[i]`."""

    def times(weight: tf.Tensor) -> tf.Tensor:
        weight = tf.cast(weight, ones.dtype)
        return weight * tf.reshape(ones, [-1] + [1] * (len(weight.shape) - 1))

    return ones if sample_weight is None else keras.tree.map_structure(times, sample_weight)


def replicas_in_sync() -> float:
    """Return the number of devices, by which Keras divides the loss of one device's part."""
    return float(tf.distribute.get_strategy().num_replicas_in_sync)


def _shapes(structure: Nested) -> str:
    return ", ".join(
        str(getattr(t, "shape", type(t).__name__)) for t in keras.tree.flatten(structure)
    )


def _times_rows(value: tf.Tensor, x: Nested) -> tf.Tensor:
    value = tf.convert_to_tensor(value)
    if value.shape.rank != 0:
        raise ValueError(
            f"The loss of a batch has the shape {tuple(value.shape)} and must be one number: give "
            "the loss a reduction, such as 'sum_over_batch_size'."
        )
    return value * tf.cast(rows_of(x), value.dtype)


def _wider(one: tf.DType, other: tf.DType) -> tf.DType:
    return one if one.size >= other.size else other


def _regularization(model: keras.Model) -> Tensors:
    return _keras.regularization_losses(model)


def _takes_training(function: Callable[..., object]) -> bool:
    return "training" in _arguments(function)


def _arguments(function: Callable[..., object]) -> list[str]:
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return [*parameters, "training"]
    return list(parameters)
