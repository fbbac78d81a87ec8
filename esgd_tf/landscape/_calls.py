"""A Keras network as the list of its layers' calls, and its copy without models in models."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np

from esgd_tf import _keras
from esgd_tf.landscape import _place
from esgd_tf.landscape._batch import first_line

__all__ = ["Call", "FlatCopy", "scaled"]


@dataclasses.dataclass
class Call:
    """A call of a layer.

    Attributes:
        layer: The layer of the given model, or another operation of Keras.
        made: What is called in its place in the copy.
        sources: The calls whose outputs it takes, by their numbers; -1 for an input of the network.
        consumers: The calls that take its outputs.
        is_output: Whether it gives an output of the network.
        shape: The shape of its output; of the first one if there are several.
    """

    layer: Any
    made: Any
    sources: list[int]
    shape: tuple[int | None, ...]
    consumers: list[int] = dataclasses.field(default_factory=list)
    is_output: bool = False


class FlatCopy:
    """A functional copy of a network, with its weights and without models in models.

    Args:
        model: keras.Model that is built. Sequential or functional, and so any models in it. Where
            it is trained by `EntropySGD` or made of replicas, the copy has the weights that are
            measured: the anchor, or the center.
        without: collection of ints. The ids of layers that are left out. Defaults to ().
        settings: mapping of settings by the id of a layer. Settings that differ in the copy.
            Defaults to None, which means none.

    Attributes:
        model: The copy, which is not compiled.
        calls: The calls of its layers, in an order in which they can be computed.

    Raises:
        ValueError: The model is not built, it or one in it is of a class of its own, or a layer
            cannot be made from its configuration.
    """

    def __init__(
        self,
        model: keras.Model,
        without: Collection[int] = (),
        settings: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        if not isinstance(model, keras.Model):
            raise ValueError(f"`model` must be a Keras model; got a {type(model).__name__}.")
        place = _place.find(model)
        if not place.model.built:
            raise ValueError(
                f"The model {model.name!r} has no weights yet: call it on data or build it first."
            )
        self._without, self._settings = without, dict(settings or {})
        self._copies: dict[int, Any] = {}
        self._names: set[str] = set()
        # By the ids of symbolic tensors, which are kept so that no other gets their ids.
        self._made: dict[int, int] = {}
        self._kept: list[Any] = []
        self.calls: list[Call] = []
        given = place.model
        _refuse_own_class(given)
        inputs = [
            keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name) for t in given.inputs
        ]
        # A Sequential model has one input, and no structure of them until it is called.
        structured = inputs[0]
        if _keras.has_graph(given):
            structured = keras.tree.pack_sequence_as(given.input, inputs)
        outputs = self._inside(given, structured)
        for tensor in keras.tree.flatten(outputs):
            if (number := self._made.get(id(tensor))) is not None:
                self.calls[number].is_output = True
        for number, call in enumerate(self.calls):
            for source in {s for s in call.sources if s >= 0}:
                self.calls[source].consumers.append(number)
        self.model = keras.Model(structured, outputs, name=given.name)
        self._copy_weights(place.values)

    def calls_of(self, layer: Any) -> list[Call]:
        """Return the calls of a layer of the given model."""
        return [call for call in self.calls if call.layer is layer]

    def _inside(self, model: keras.Model, inputs: Any) -> Any:
        if _keras.has_graph(model):
            return _keras.run_through_graph(model, inputs, self._call)
        for layer in model.layers:
            inputs = self._call(layer, inputs)
        return inputs

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, keras.Model):
            _refuse_own_class(layer)
            return self._inside(layer, args[0] if len(args) == 1 else args)
        if id(layer) in self._without:
            return args[0]
        made = self._copy_of(layer)
        outputs = made(*args, **kwargs)
        tensors = [
            t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)
        ]
        results = keras.tree.flatten(outputs)
        sources = [self._made.get(id(t), -1) for t in tensors]
        self.calls.append(Call(layer, made, sources, tuple(results[0].shape)))
        self._kept.append(results)
        for tensor in results:
            self._made[id(tensor)] = len(self.calls) - 1
        return outputs

    def _copy_of(self, layer: Any) -> Any:
        if id(layer) in self._copies:
            return self._copies[id(layer)]
        made = layer
        if isinstance(layer, keras.layers.Layer):
            # Layers of different models in the model may have one name.
            name, number = layer.name, 1
            while name in self._names:
                number += 1
                name = f"{layer.name}_{number}"
            self._names.add(name)
            try:
                config = layer.get_config() | dict(self._settings.get(id(layer), {}))
                made = type(layer).from_config(config | {"name": name})
            except Exception as reason:  # the user's own classes may fail here in any way
                raise ValueError(
                    f"Layer {layer.name!r}, a {type(layer).__name__}, cannot be copied from its "
                    f"configuration: {first_line(reason)}"
                ) from reason
        self._copies[id(layer)] = made
        return made

    def _copy_weights(self, values: Mapping[int, Any]) -> None:
        seen: set[int] = set()
        for call in self.calls:
            if id(call.layer) in seen or not isinstance(call.layer, keras.layers.Layer):
                continue
            seen.add(id(call.layer))
            # A bias that only the copy has comes last, and stays 0.
            for old, new in zip(call.layer.weights, call.made.weights, strict=False):
                new.assign(values.get(id(old), old))


def _refuse_own_class(model: keras.Model) -> None:
    if not (_keras.has_graph(model) or isinstance(model, keras.Sequential)):
        raise ValueError(
            f"The model {model.name!r} is a {type(model).__name__}, whose layers cannot be gone "
            "through one by one: make it a functional or Sequential model."
        )


def scaled(variable: keras.Variable, factor: Any) -> None:
    """Multiply a variable by a factor, in float64."""
    variable.assign(np.asarray(variable, np.float64) * factor)
