"""The methods through which Keras trains, evaluates and saves replicas.

The center of most couplings is a mean that is computed on demand. Each method here makes sure that
the center is current, and passes the call on to one of the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf.replicas._arrival import after_arrival
from esgd_tf.replicas._center import Center
from esgd_tf.replicas._group import Group
from esgd_tf.replicas._members import random_states
from esgd_tf.replicas._optimizer import put_at
from esgd_tf.replicas._stepping import Stepping

__all__ = ["ReplicasModel"]


class ReplicasModel(keras.Model):
    """The methods of `Replicas` that Keras calls: training, evaluating, saving and loading.

    Args:
        group: Group. The replicas and their coupling.
        name: str. The name of the model.
    """

    def __init__(self, group: Group, name: str) -> None:
        super().__init__(name=name)
        # Keras saves these under the names of the attributes.
        self.members = group.members
        self._center = group.center
        self._group = group
        self._middle = Center(group)
        self._stepping = Stepping(group)
        self._compile_arguments: dict[str, Any] = {}
        # Whether a user's graph reads the center's variables, which then must be current at all
        # times.
        self._is_traced = False
        self.train_function: Any = None  # as Keras has it
        self.built = True

    # ---- stepping -----------------------------------------------------------------------------

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the outputs of the center."""
        return self._center(inputs, training=training)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Take one step in every replica of this process, after the batch has arrived."""
        return after_arrival(self._stepping.take, data)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluate the center on one batch, after it has arrived."""
        return after_arrival(self._center.test_step, data)

    def make_train_function(self, force: bool = False) -> None:
        """Make the function that `fit` calls; with a strategy, coupling is between its calls."""
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        self.train_function = self._stepping.between_meetings(
            self.train_function, self.steps_per_execution
        )

    @property
    def metrics(self) -> list[Any]:
        """Metrics of all replicas and of the center."""
        return [metric for model in [*self.members, self._center] for metric in model.metrics]

    def _flatten_metrics_in_order(self, logs: dict[str, Any]) -> Any:
        return self._center._flatten_metrics_in_order(logs)

    def _get_metrics_result_or_logs(self, logs: dict[str, Any]) -> dict[str, Any]:
        return self._stepping.mean_logs(logs)

    def get_metrics_result(self) -> dict[str, Any]:
        """Return an empty dict, since each step returns the means so far."""
        return {}

    # ---- reading the center -------------------------------------------------------------------

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return the outputs of the center."""
        inputs = keras.tree.flatten((arguments, options))
        if not any(isinstance(value, keras.KerasTensor) for value in inputs):
            self._is_traced = self._is_traced or not tf.executing_eagerly()
            with tf.init_scope():
                self._middle.update()
        else:
            self._is_traced = True
        return super().__call__(*arguments, **options)

    @property
    def layers(self) -> list[Any]:
        """The replicas, and the center as the last of them."""
        # With several processes, only methods that all of them call may update the center.
        if tf.executing_eagerly() and self._group.is_whole:
            self._middle.update()
        return super().layers

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """Evaluate the center: as `keras.Model.evaluate`."""
        self._middle.update()
        return super().evaluate(*arguments, **options)

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """Predict by the center: as `keras.Model.predict`."""
        self._middle.update()
        return super().predict(*arguments, **options)

    def test_on_batch(self, *arguments: Any, **options: Any) -> Any:
        """Evaluate the center on one batch: as `keras.Model.test_on_batch`."""
        self._middle.update()
        return super().test_on_batch(*arguments, **options)

    def predict_on_batch(self, *arguments: Any, **options: Any) -> Any:
        """Predict one batch by the center: as `keras.Model.predict_on_batch`."""
        self._middle.update()
        return super().predict_on_batch(*arguments, **options)

    def save(self, *arguments: Any, **options: Any) -> None:
        """Save replicas, optimizers and center: as `keras.Model.save`. See also `center`."""
        self._middle.update()
        super().save(*arguments, **options)

    def save_weights(self, *arguments: Any, **options: Any) -> None:
        """Save replicas, optimizers and center: as `keras.Model.save_weights`."""
        self._middle.update()
        super().save_weights(*arguments, **options)

    def load_weights(self, *arguments: Any, **options: Any) -> None:
        """Load a file that `save_weights` or `save` wrote."""
        super().load_weights(*arguments, **options)
        self._stepping.go_on_here()

    def export(self, *arguments: Any, **options: Any) -> None:
        """Export the center: as `keras.Model.export`."""
        self._middle.update()
        self._center.export(*arguments, **options)

    def get_weights(self) -> list[NDArray[Any]]:
        """Return the weights of all replicas, at their anchors, and of the center.

        With several processes, all must call this.
        """
        self._middle.gather()
        values = {id(v): v.numpy() for v in self.weights}
        if self.compiled:
            for member, optimizer in zip(self.members, self.optimizer.replicas, strict=True):
                anchors = optimizer.anchors()
                for variable, anchor in zip(member.trainable_variables, anchors, strict=True):
                    values[id(variable)] = anchor.numpy()
        return [values[id(v)] for v in self.weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the weights that `get_weights` returned; inner loops start again there.

        A center that is the mean of the replicas becomes the mean of the new ones. With several
        processes, all must call this.

        Args:
            weights: sequence of arrays. The weights, as `get_weights` returns them.

        Raises:
            ValueError: Their number or their shapes do not fit.
        """
        super().set_weights(weights)
        if not self.compiled:
            return
        for member, optimizer in zip(self.members, self.optimizer.replicas, strict=True):
            put_at(optimizer, [v.numpy() for v in member.trainable_variables])
        if not self._group.coupling.keeps_center:
            self._middle.assign(self._group.exchange.mean())
            for state, variable in zip(
                self._group.exchange.state, self._center.trainable_variables, strict=True
            ):
                state.assign(variable)
        self._stepping.go_on_here()
        self.optimizer.center_is_current = True

    # ---- files --------------------------------------------------------------------------------

    def save_own_variables(self, store: Any) -> None:
        """Save the states of the replicas' random generators, which Keras leaves out."""
        super().save_own_variables(store)
        for i, state in enumerate(random_states(self.members)):
            store[f"random_state_{i}"] = state

    def load_own_variables(self, store: Any) -> None:
        """Load the states that `save_own_variables` saved."""
        found = {name: store[name] for name in store.keys()}  # noqa: SIM118 - an HDF5 group
        for i, state in enumerate(random_states(self.members)):
            value = found.pop(f"random_state_{i}", None)
            if value is not None:  # a file of an earlier version has none
                state.assign(value)
        super().load_own_variables(found)

    def get_compile_config(self) -> dict[str, Any]:
        """Return the arguments of `compile`, serialised."""
        return {
            name: keras.saving.serialize_keras_object(value)
            for name, value in self._compile_arguments.items()
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile with the arguments that `get_compile_config` returned."""
        self.compile(
            **{name: keras.saving.deserialize_keras_object(v) for name, v in config.items()}
        )
