"""The ensemble of replicas: their outputs averaged, instead of their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

__all__ = ["Ensemble", "ensemble_outputs"]


def ensemble_outputs(outputs: Sequence[Any], kind: str) -> tf.Tensor:
    """Average the outputs of the members of an ensemble.

    Args:
        outputs: One tensor a member, all of one shape.
        kind: "logits" averages the probabilities softmax(z) over the last axis and returns their
            logarithms, "binary_logits" those of the logistic function and returns their logits,
            "mean" averages as it is (probabilities, regression).

    Raises:
        ValueError: There is no such kind.
    """
    members = [tf.convert_to_tensor(o) for o in outputs]
    if kind == "mean":
        return tf.add_n(members) / len(members)
    if kind == "logits":
        logs = tf.stack([tf.nn.log_softmax(z) for z in members])
        return tf.reduce_logsumexp(logs, axis=0) - tf.constant(math.log(len(members)), logs.dtype)
    if kind == "binary_logits":
        # log p - log(1 - p) of the mean p; sums of logarithms, so that nothing saturates.
        yes = tf.reduce_logsumexp(tf.stack([tf.math.log_sigmoid(z) for z in members]), axis=0)
        no = tf.reduce_logsumexp(tf.stack([tf.math.log_sigmoid(-z) for z in members]), axis=0)
        return yes - no
    raise ValueError(f"`kind` must be logits, binary_logits or mean; got {kind!r}.")


def kind_for(loss: Any) -> str:
    """Return how the outputs of networks trained with this loss are averaged."""
    if not getattr(loss, "from_logits", False):
        return "mean"
    binary = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
    return "binary_logits" if isinstance(loss, binary) else "logits"


@keras.saving.register_keras_serializable(package="esgd_tf")
class Ensemble(keras.Model):
    """Several networks whose outputs are averaged.

    Args:
        members: Built Keras models with the same inputs and outputs.
        kind: How, as of `ensemble_outputs`.
        name: Name of the model.

    Raises:
        ValueError: There are no members, or no such kind.
    """

    def __init__(
        self, members: Sequence[keras.Model], kind: str = "mean", name: str = "ensemble"
    ) -> None:
        super().__init__(name=name)
        if not members:
            raise ValueError("An ensemble needs at least one member.")
        if kind not in ("logits", "binary_logits", "mean"):
            raise ValueError(f"`kind` must be logits, binary_logits or mean; got {kind!r}.")
        self.members = list(members)
        self.kind = kind
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the averaged outputs."""
        outputs = [member(inputs, training=training) for member in self.members]
        return ensemble_outputs(outputs, self.kind)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        members = [keras.saving.serialize_keras_object(m) for m in self.members]
        return {"members": members, "kind": self.kind, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Ensemble:
        """Rebuild the ensemble from `get_config`."""
        config = dict(config)
        config["members"] = [
            keras.saving.deserialize_keras_object(m, custom_objects=custom_objects)
            for m in config["members"]
        ]
        return cls(**config)
