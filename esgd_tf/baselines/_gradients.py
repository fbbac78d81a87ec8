"""Gradients of the loss at other weights than the model's, on the minibatch of the step.

Some rivals of local entropy need more of a minibatch than its gradient at w: SAM takes a second one
at w + e, where e depends on the first, and LPF-SGD takes one at w plus noise. Keras hands an
optimizer one gradient a step, at w. `enable_minibatch_gradients` gives a model a training step in
which its optimizer may ask for others.

The other weights never stand in the model: a `keras.StatelessScope` lets the layers see them. So
nothing has to be put back, w stays as it is to the bit, each device can have other weights of its
own, and what else a forward pass changes (moving statistics, random states) can be dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, cast

import keras
import tensorflow as tf

from esgd_tf import _keras

__all__ = [
    "Gradients",
    "Minibatch",
    "TakesGradients",
    "enable_minibatch_gradients",
    "sum_over_devices",
]

#: A gradient for each trained weight; None where the loss does not depend on it.
Gradients: TypeAlias = list[Any]
#: Nested structures of tensors, as `train_step` takes them.
Data: TypeAlias = Any


class TakesGradients(Protocol):
    """An optimizer that takes gradients of a minibatch where it wants them."""

    #: Set while a step is traced that asks `minibatch_gradient` for the gradient.
    has_minibatch: bool

    def minibatch_gradient(self, minibatch: Minibatch) -> Gradients:
        """Return the gradient with which to take the step.

        Args:
            minibatch: Minibatch. The minibatch, with the model.
        """


class Minibatch:
    """A minibatch and the model, for gradients at any weights; used inside a training step.

    Args:
        model: keras.Model. The compiled model.
        data: nested structure of tensors. The minibatch: x, (x, y) or (x, y, sample weights).

    Attributes:
        weights: list of tf.Tensor. The weights w that the step is taken from: on each device, its
            own copy.
        outputs: The outputs of the network at the weights of the first gradient, for the metrics.
    """

    def __init__(self, model: keras.Model, data: Data) -> None:
        self._model = model
        self.x, self.y, self.sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if not all(layer.built for layer in _keras.layers_in(model)):
            # Eagerly, a model may be built by its first minibatch, and have no weights before.
            _keras.symbolic_build(model, data)
        self._trained = list(model.trainable_variables)
        self.weights = [tf.convert_to_tensor(v.value) for v in self._trained]
        # Moving statistics and the states of random generators: with these put back, a gradient at
        # other weights is that of the same function, dropout masks included.
        self._state = list(model.non_trainable_variables)
        self._before = [tf.identity(tf.convert_to_tensor(v.value)) for v in self._state]
        self.outputs: Any = None

    @property
    def size(self) -> tf.Tensor:
        """The number of examples: an int32 scalar."""
        return tf.shape(tf.nest.flatten(self.x)[0])[0]

    def gradient(self) -> Gradients:
        """Return the gradient at w, as Keras' own training step computes it.

        The loss goes into the metric that averages it, and moving statistics and random states move
        on.
        """
        with tf.GradientTape() as tape:
            outputs, loss = self._forward(self.x, self.y, self.sample_weight)
            _keras.see_loss(self._model, loss, self.size)
            loss = self._model.optimizer.scale_loss(loss)
        self.outputs = outputs
        return list(tape.gradient(loss, self.weights_in_model()))

    def gradient_at(self, weights: Sequence[tf.Tensor]) -> Gradients:
        """Return the gradient at other weights, of the same function as `gradient`.

        Random states are those before the step, so that dropout has the same mask; what the forward
        pass would change is dropped.

        Args:
            weights: list of tensors of the shapes of the trained weights. Where to take it.
        """
        state = [*zip(self._trained, weights, strict=True)]
        state += zip(self._state, self._before, strict=True)
        scope = keras.StatelessScope(state_mapping=state, collect_losses=True)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            places = [scope.get_current_value(v) for v in self._trained]
            tape.watch(places)
            with scope:
                _, loss = self._forward(self.x, self.y, self.sample_weight)
            loss = self._model.optimizer.scale_loss(loss)
        return list(tape.gradient(loss, places))

    def gradient_of_parts(self, places: Sequence[Sequence[tf.Tensor]]) -> Gradients:
        """Return the mean of the gradients of equal parts of the minibatch, each at other weights.

        The parts come one after the other: moving statistics and random states move on from part to
        part, and the loss of each goes into the metric that averages it.

        Args:
            places: list of lists of tensors. The weights at which each part is evaluated.
        """
        # Metrics make their variables when first used: in a stateless scope they would be lost.
        _keras.symbolic_build(self._model, (self.x, self.y, self.sample_weight))
        count = len(places)
        # The metrics of several outputs' losses see the outputs in the forward pass.
        variables = [*self._state, *self._model.metrics_variables]
        before = [tf.identity(tf.convert_to_tensor(v.value)) for v in variables]
        state = before
        total: Gradients = [None] * len(self._trained)
        outputs = []
        for part, weights in enumerate(places):
            begin, end = self.size * part // count, self.size * (part + 1) // count
            x, y, sample_weight = tf.nest.map_structure(
                lambda t, begin=begin, end=end: None if t is None else t[begin:end],
                (self.x, self.y, self.sample_weight),
            )
            mapping = [
                *zip(self._trained, weights, strict=True),
                *zip(variables, state, strict=True),
            ]
            scope = keras.StatelessScope(state_mapping=mapping, collect_losses=True)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                at = [scope.get_current_value(v) for v in self._trained]
                tape.watch(at)
                with scope:
                    predicted, loss = self._forward(x, y, sample_weight)
                    state = [scope.get_current_value(v) for v in variables]
                scaled = self._model.optimizer.scale_loss(loss)
            outputs.append(predicted)
            share = tf.cast(end - begin, tf.float32) / tf.cast(self.size, tf.float32)
            _keras.see_loss(self._model, loss, end - begin)
            total = [
                _sum(sum_, gradient, share)
                for sum_, gradient in zip(total, tape.gradient(scaled, at), strict=True)
            ]
        for variable, old, value in zip(variables, before, state, strict=True):
            if value is not old:
                variable.assign(value)
        self.outputs = tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), *outputs)
        return total

    def weights_in_model(self) -> list[keras.Variable]:
        """Return the trained weights themselves."""
        return self._trained

    def _forward(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, tf.Tensor]:
        outputs = _keras.call_in_training(self._model, x)
        return outputs, _keras.loss_in_training(self._model, x, y, outputs, sample_weight)


def _sum(total: Any, gradient: Any, share: tf.Tensor) -> Any:
    """Return total + share gradient, where None stands for no gradient."""
    if gradient is None:
        return total
    gradient = tf.convert_to_tensor(gradient)
    # A part without examples has no mean.
    gradient = tf.where(share > 0, tf.cast(share, gradient.dtype) * gradient, 0)
    return gradient if total is None else total + gradient


def sum_over_devices(gradients: Sequence[Any]) -> list[tf.Tensor]:
    """Return gradients summed over the devices, the same on each; called in a replica.

    Args:
        gradients: sequence of tensors. The gradients of this device's part of a minibatch.
    """
    local = []
    for gradient in map(tf.convert_to_tensor, gradients):
        # Several processes reduce only tensors that carry their device.
        with tf.device(gradient.device):
            local.append(tf.identity(gradient))
    context = tf.distribute.get_replica_context()
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, local))


def enable_minibatch_gradients(model: keras.Model) -> keras.Model:
    """Give a model the training step that SAM, ASAM, GSAM and LPF-SGD need.

    Their gradients are not those at the model's weights, and Keras' own training step takes no
    others. With any other optimizer the model is returned as it is, so that code can call this
    whatever it trains by.

    Examples:
        >>> model.compile(optimizer=esgd_tf.SAM(keras.optimizers.SGD(0.1)), loss=loss)
        >>> esgd_tf.enable_minibatch_gradients(model).fit(x, y)

    Args:
        model: keras.Model. A compiled model, changed in place. Call this before
            `skip_nonfinite` and `enable_multi_worker`, and again after another `compile` or after
            loading the model from a file.

    Returns:
        The model.

    Raises:
        ValueError: The model is not compiled, or has a `train_step` of its own, which would not be
            called.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        raise ValueError(
            f"The model {model.name!r} has no optimizer that takes gradients: compile it first."
        )
    if not hasattr(_unwrapped(optimizer), "minibatch_gradient"):
        return model
    own = type(model).train_step is not keras.Model.train_step
    if own or ("train_step" in vars(model) and not hasattr(model.train_step, "takes_gradients")):
        raise ValueError(
            f"The model {model.name!r} has a `train_step` of its own, in which no other gradients "
            "are taken: call `enable_minibatch_gradients` before other changes of the step, on a "
            "model with Keras' own."
        )

    def train_step(data: Data) -> dict[str, Any]:
        takes = cast(TakesGradients, _unwrapped(model.optimizer))
        minibatch = Minibatch(model, data)
        takes.has_minibatch = True
        try:
            gradients = takes.minibatch_gradient(minibatch)
            model.optimizer.apply(gradients, minibatch.weights_in_model())
        finally:
            takes.has_minibatch = False
        return cast(
            dict[str, Any],
            model.compute_metrics(
                minibatch.x, minibatch.y, minibatch.outputs, sample_weight=minibatch.sample_weight
            ),
        )

    train_step.takes_gradients = True  # type: ignore[attr-defined]
    model.train_step = train_step
    model.train_function = None
    return model


def _unwrapped(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer inside Keras' loss scaling, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)
