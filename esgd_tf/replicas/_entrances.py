"""The entrances of `Replicas`: whichever way one comes in, the center is that of now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.replicas._exchange import Exchange
from esgd_tf.replicas._optimizer import put_at

__all__ = ["Entrances"]


class Entrances:
    """The part of `Replicas` that brings the center up to date before Keras looks at it.

    The center of most couplings is a mean, which is made when someone asks for it. Keras has many
    ways to ask.
    """

    # Of `Replicas` and `keras.Model`.
    compiled: bool
    coupling: Any
    gather: Callable[[], None]
    local: list[int]
    members: list[keras.Model]
    optimizer: Any
    replicas: int
    settle: Callable[[], None]
    weights: list[Any]
    _assign_center: Callable[..., None]
    _center: keras.Model
    _exchange: Exchange
    _go_on_here: Callable[[], None]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # Whether a graph of someone's reads the center's variables, which then must be up to date
        # at all times.
        self._is_traced = False
        super().__init__(*arguments, **options)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return the outputs of the center."""
        inputs = keras.tree.flatten((arguments, options))
        if not any(isinstance(value, keras.KerasTensor) for value in inputs):
            self._is_traced = self._is_traced or not tf.executing_eagerly()
            with tf.init_scope():
                self.settle()
        else:
            self._is_traced = True
        return super().__call__(*arguments, **options)  # type: ignore[misc]  # of keras.Model

    @property
    def layers(self) -> list[Any]:
        """The replicas, and the center as the last of them."""
        # Where there are several processes, only what all of them call may settle.
        if tf.executing_eagerly() and len(self.local) == self.replicas:
            self.settle()
        return super().layers  # type: ignore[misc]

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """Evaluate the center: as `keras.Model.evaluate`."""
        self.settle()
        return super().evaluate(*arguments, **options)  # type: ignore[misc]

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """Predict by the center: as `keras.Model.predict`."""
        self.settle()
        return super().predict(*arguments, **options)  # type: ignore[misc]

    def test_on_batch(self, *arguments: Any, **options: Any) -> Any:
        """Evaluate the center on one batch: as `keras.Model.test_on_batch`."""
        self.settle()
        return super().test_on_batch(*arguments, **options)  # type: ignore[misc]

    def predict_on_batch(self, *arguments: Any, **options: Any) -> Any:
        """Predict one batch by the center: as `keras.Model.predict_on_batch`."""
        self.settle()
        return super().predict_on_batch(*arguments, **options)  # type: ignore[misc]

    def save(self, *arguments: Any, **options: Any) -> None:
        """Save replicas, optimizers and center: as `keras.Model.save`. See also `center`."""
        self.settle()
        super().save(*arguments, **options)  # type: ignore[misc]

    def save_weights(self, *arguments: Any, **options: Any) -> None:
        """Save replicas, optimizers and center: as `keras.Model.save_weights`."""
        self.settle()
        super().save_weights(*arguments, **options)  # type: ignore[misc]

    def load_weights(self, *arguments: Any, **options: Any) -> None:
        """Load what `save_weights` or `save` saved."""
        super().load_weights(*arguments, **options)  # type: ignore[misc]
        self._go_on_here()

    def export(self, *arguments: Any, **options: Any) -> None:
        """Export the center: as `keras.Model.export`."""
        self.settle()
        self._center.export(*arguments, **options)

    def get_weights(self) -> list[np.ndarray]:
        """Return the weights of all replicas, at their anchors, and of the center.

        Of several processes, all must call this.
        """
        self.gather()
        values = {id(v): v.numpy() for v in self.weights}
        if self.compiled:
            for member, optimizer in zip(self.members, self.optimizer.replicas, strict=True):
                anchors = optimizer.anchors()
                for variable, anchor in zip(member.trainable_variables, anchors, strict=True):
                    values[id(variable)] = anchor.numpy()
        return [values[id(v)] for v in self.weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Put replicas and center where `get_weights` found them; inner loops start anew there.

        A center that is the mean of the replicas is that of the new ones. Of several processes,
        all must call this.

        Args:
            weights: sequence of arrays. The weights, as `get_weights` returns them.

        Raises:
            ValueError: Their number or their shapes are other ones.
        """
        super().set_weights(weights)  # type: ignore[misc]
        if not self.compiled:
            return
        for member, optimizer in zip(self.members, self.optimizer.replicas, strict=True):
            put_at(optimizer, [v.numpy() for v in member.trainable_variables])
        if not self.coupling.keeps_center:
            self._assign_center(self._exchange.mean())
            for state, variable in zip(
                self._exchange.state, self._center.trainable_variables, strict=True
            ):
                state.assign(variable)
        self._go_on_here()
        self.optimizer.is_settled = True
