"""The ensemble of replicas, which averages their outputs instead of their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from esgd_tf import _checks
from esgd_tf.replicas._arrival import after_arrival
from esgd_tf.replicas._exchange import mean_of

__all__ = ["Ensemble", "ensemble_outputs"]

KINDS = ("logits", "binary_logits", "mean")


def ensemble_outputs(outputs: Sequence[Any], kind: str) -> tf.Tensor:
    """Average the outputs of the members of an ensemble.

    Args:
        outputs: sequence of tensors of one shape. One tensor for each member.
        kind: "logits", "binary_logits" or "mean". "logits" averages the probabilities softmax(z)
            over the last axis and returns their logarithms, "binary_logits" averages the logistic
            function and returns its logits, "mean" averages the outputs
            (probabilities, regression).

    Raises:
        ValueError: There is no such kind.
    """
    members = [tf.convert_to_tensor(o) for o in outputs]
    if kind == "mean":
        return mean_of(members)
    if kind == "logits":
        logs = tf.stack([tf.nn.log_softmax(z) for z in members])
        return tf.reduce_logsumexp(logs, axis=0) - tf.constant(math.log(len(members)), logs.dtype)
    if kind == "binary_logits":
        # log p - log(1 - p) of the mean p, computed from logarithms so that nothing saturates.
        yes = tf.reduce_logsumexp(tf.stack([tf.math.log_sigmoid(z) for z in members]), axis=0)
        no = tf.reduce_logsumexp(tf.stack([tf.math.log_sigmoid(-z) for z in members]), axis=0)
        return yes - no
    raise ValueError(f"`kind` must be logits, binary_logits or mean; got {kind!r}.")


def kind_for(loss: Any, output_names: Sequence[str] | None = None) -> str | list[str]:
    """Return the kind of averaging for the outputs of networks trained with this loss.

    Args:
        loss: nested structure of losses. The loss given to `compile`: one loss, or a structure with
            one for every output.
        output_names: sequence of str. The names of the outputs, if they are not a dictionary;
            needed if the losses are one. Defaults to None, which means that there are none.

    Returns:
        A kind for all outputs, or one for each, in the order of `keras.tree.flatten`.
    """
    if isinstance(loss, dict):
        # Keras matches losses by the names of outputs in a list, or by the keys of a dictionary.
        named = output_names is not None and set(loss) <= set(output_names)
        names = list(output_names or ()) if named else sorted(loss)
        return [_kind_of(loss.get(name)) for name in names]
    if isinstance(loss, list | tuple):
        return [_kind_of(one) for one in keras.tree.flatten(loss)]
    return _kind_of(loss)


def _kind_of(loss: Any) -> str:
    if not getattr(loss, "from_logits", False):
        return "mean"
    binary = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
    return "binary_logits" if isinstance(loss, binary) else "logits"


@keras.saving.register_keras_serializable(package="esgd_tf")
class Ensemble(keras.Model):
    """Several networks whose outputs are averaged.

    Its regularisation is the mean of the members', so that its loss can be compared with theirs.

    Args:
        members: sequence of keras.Model. Built models with the same inputs and outputs.
        kind: str, or a list of str. The kind of average, as in `ensemble_outputs`: for all outputs,
            or one for each, in the order of `keras.tree.flatten`. Defaults to 'mean'.
        name: str. Name of the model. Defaults to 'ensemble'.

    Raises:
        ValueError: There are no members, or no such kind, or not one for each output.
    """

    def __init__(
        self,
        members: Sequence[keras.Model],
        kind: str | Sequence[str] = "mean",
        name: str = "ensemble",
    ) -> None:
        super().__init__(name=name)
        if not members:
            raise ValueError("An ensemble needs at least one member.")
        for one in [kind] if isinstance(kind, str) else kind:
            _checks.choice("kind", one, KINDS)
        self.members = list(members)
        self.kind = kind if isinstance(kind, str) else list(kind)
        if hasattr(members[0], "output_names"):
            # Keras matches losses and metrics in a dictionary by these names.
            self.output_names = list(members[0].output_names)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the averaged outputs, in the structure of a member's."""
        of_members = [member(inputs, training=training) for member in self.members]
        flat = list(zip(*(keras.tree.flatten(outputs) for outputs in of_members), strict=True))
        kinds = [self.kind] * len(flat) if isinstance(self.kind, str) else self.kind
        if len(kinds) != len(flat):
            raise ValueError(
                f"The members have {len(flat)} outputs, and `kind` has {len(kinds)} entries."
            )
        averaged = [ensemble_outputs(o, kind) for o, kind in zip(flat, kinds, strict=True)]
        return keras.tree.pack_sequence_as(of_members[0], averaged)

    @property
    def losses(self) -> list[Any]:
        """The mean of the losses that the members' layers add, such as their regularisation."""
        return [loss / len(self.members) for member in self.members for loss in member.losses]

    def test_step(self, data: Any) -> Any:
        """Evaluate on one batch, after it has arrived."""
        return after_arrival(super().test_step, data)

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
