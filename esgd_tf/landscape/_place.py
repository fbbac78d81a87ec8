"""Which weights of a model are measured: those it holds, the anchor, or the center of replicas.

Between two outer updates a model that `EntropySGD` trains holds the Langevin weights x', which jump
about the anchor x; and the variables of a model of replicas are those of all replicas. Nobody wants
to know how wide the valley is around these. The anchor and the center are measured instead, and
every result says so in `measured_at`.
"""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

# The one import from another room: only the optimizer knows where the anchor is.
from esgd_tf import _keras
from esgd_tf.landscape._types import Loss, LossWeights
from esgd_tf.optimizers import _finding

__all__ = ["Place", "find"]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a model is measured.

    Attributes:
        model: The Keras model that is called; of replicas, the one that stands for their center.
        name: "weights" for those that the model holds, "anchor", "mean" (inside
            `evaluate_at(model, "mean")`) or "center".
        values: Weights that differ from what the variables hold, by the id of the Keras variable.
        loss: The loss that the model was compiled with, or None.
        loss_weights: The weights of losses that it was compiled with, or None.
    """

    model: keras.Model
    name: str
    values: dict[int, tf.Tensor]
    loss: Loss
    loss_weights: LossWeights


def find(model: keras.Model) -> Place:
    """Return where a model is measured now."""
    if _finding.has_replicas(model):
        given = model.evaluation_arguments()
        center = model.center_model()
        return Place(center, "center", {}, given["loss"], given["loss_weights"])
    name = "weights"
    values: dict[int, tf.Tensor] = {}
    for optimizer in _finding.of_model(model):
        held = optimizer.held
        if held is None:
            continue
        name = "mean" if held == "mean" else "anchor"
        if held == "langevin":
            pairs = zip(_keras.trained_by(optimizer), optimizer.anchors(), strict=True)
            values |= {id(variable): anchor for variable, anchor in pairs}
    return Place(model, name, values, *_keras.compiled_loss(model))
