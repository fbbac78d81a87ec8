"""Graphs of a network's loss, kept from one measure to the next.

Tracing a large network takes longer than many passes through it, and every measure of the same
network with the same loss needs the same graphs. They are kept as long as the model lives, and as
long as it is the same: another `compile`, another loss, a layer frozen, or another setting of a
layer (an activation, a regulariser) makes new ones. A change that no setting shows, such as that of
an attribute that the `call` of a layer reads, has an effect only after the next `compile`, as in
`fit`.
"""

from __future__ import annotations

import json
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping

import keras

from esgd_tf import _keras
from esgd_tf.landscape._losses import FunctionLoss
from esgd_tf.landscape._metric_sums import MetricSums
from esgd_tf.landscape._model_loss import ModelLoss
from esgd_tf.landscape._place import Place
from esgd_tf.landscape._types import Loss, Metric, Tensors

__all__ = ["Graph", "Traces", "traces_of"]

#: What `tf.function` makes: it returns a list of tensors.
Graph = Callable[..., Tensors]

# The most sets of graphs that are kept for a model: a loss that is defined anew at each call, such
# as a lambda, makes a new set each time.
_KEPT = 4
_known: weakref.WeakKeyDictionary[keras.Model, OrderedDict[Hashable, Traces]]
_known = weakref.WeakKeyDictionary()


class Traces:
    """A loss, metrics, and the graphs traced of them.

    Attributes:
        loss: The loss, as a function of weights and a batch.
        metrics: The metrics.
        graphs: The traced functions, by what they compute.
        tried: The kinds of operator that passed their trial with this loss: see `_try.py`.
        is_function: Whether the loss has been seen to be the same at two passes over the same data.
    """

    def __init__(self, loss: ModelLoss | FunctionLoss, metrics: MetricSums) -> None:
        self.loss, self.metrics = loss, metrics
        self.graphs: dict[Hashable, Graph] = {}
        self.tried: set[Hashable] = set()
        self.is_function = False
        # The objects whose ids are in the key, kept alive so that no other object gets their ids.
        self.keeps: object = None


def traces_of(place: Place, loss: Loss, metrics: Mapping[str, Metric]) -> Traces:
    """Return the graphs of a model's loss and metrics, those of an earlier call if they still hold.

    Args:
        place: Place. Where the model is measured.
        loss: nested structure of losses. What was given as the loss; None for what the model was
            compiled with.
        metrics: mapping of metrics by name. What is measured beside the loss.
    """
    model, weights = place.model, None
    compiled = loss is None
    if compiled:
        loss, weights = place.loss, place.loss_weights
    named = tuple(metrics.items())
    tracker = _keras.loss_tracker(model)
    key = (
        _identities(loss), repr(weights), compiled, _identities(named), _settings(model),
        id(tracker),
    )  # fmt: skip
    of_model = _known.setdefault(model, OrderedDict())
    if key in of_model:
        of_model.move_to_end(key)
        return of_model[key]
    how = ModelLoss(model, loss, weights, compiled)
    made = Traces(how, MetricSums(metrics, loss))
    made.keeps = (loss, named, tracker)
    of_model[key] = made
    while len(of_model) > _KEPT:
        of_model.popitem(last=False)
    return made


def _identities(structure: object) -> tuple[Hashable, ...]:
    """Return a key of a structure of losses: strings by their value, objects by identity."""
    paths = keras.tree.flatten_with_path(structure)
    return tuple(
        (str(path), leaf if isinstance(leaf, str | float | int) else id(leaf))
        for path, leaf in paths
    )


def _settings(model: keras.Model) -> Hashable:
    """Return a key of what a graph of the model depends on beside its weights."""
    strategy = getattr(model, "distribute_strategy", None)
    layers = tuple((id(layer), _config(layer)) for layer in _keras.layers_in(model))
    variables = tuple(
        (id(v), v.trainable, _config(getattr(v, "regularizer", None))) for v in model.variables
    )
    return hash((layers, variables, id(strategy), keras.config.floatx()))


def _config(thing: keras.Layer | keras.Regularizer) -> Hashable:
    try:
        return hash(json.dumps(thing.get_config(), default=repr, sort_keys=True))
    except Exception:  # the user's own classes may fail here in any way
        return repr(thing)
