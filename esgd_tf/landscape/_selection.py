"""The argument `variables` of measures: the weights that the loss is a function of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import keras
import numpy as np

from esgd_tf import _keras

__all__ = ["Selection", "select", "select_indices"]

#: Variables, layers or names; of a list of weights, indices; or a function of a variable.
Selection: TypeAlias = (
    Sequence[keras.Variable | keras.Layer | str | int] | Callable[[keras.Variable], bool] | None
)


def select(model: keras.Model, trainable: list[keras.Variable], chosen: Selection) -> list[int]:
    """Return the indices of the chosen variables among the trainable ones, in order, each once.

    Args:
        model: keras.Model. The model.
        trainable: list of keras.Variable. Its trainable variables.
        chosen: None for all of them, a function of a variable, or a list of variables, layers and
            names. A name is that of a layer or the path of a variable; layers in models in a model
            have paths, of which the end is enough: "dense", "block/dense", "model/block/dense".

    Raises:
        ValueError: A name is that of several layers or variables, or of none, or nothing is chosen.
    """
    if chosen is None:
        indices = list(range(len(trainable)))
    elif isinstance(chosen, str | keras.Variable | keras.layers.Layer):
        raise ValueError(f"`variables` must be a list; got {_name(chosen)}: put it into brackets.")
    elif callable(chosen):
        indices = [i for i, v in enumerate(trainable) if chosen(v)]
    else:
        places = list(_places(model, model.name))
        wanted: set[int] = set()
        for item in chosen:
            named = _of_name(places, trainable, item) if isinstance(item, str) else None
            of_layer = {id(v) for v in getattr(item, "trainable_variables", [])}
            found = named or {i for i, v in enumerate(trainable) if v is item or id(v) in of_layer}
            if not found:
                raise ValueError(
                    f"`variables`: {_name(item)} is no trainable variable of the model and no "
                    f"layer with one; it has {', '.join(_paths(places, trainable))}."
                )
            wanted |= found
        indices = sorted(wanted)
    if not indices:
        raise ValueError("`variables` leaves no weight to measure.")
    return indices


def _places(layer: keras.Layer, path: str) -> Iterator[tuple[str, keras.Layer]]:
    """Yield all layers inside one, with their paths through models in models."""
    for inner in _keras.sublayers(layer):
        here = f"{path}/{inner.name}"
        yield here, inner
        yield from _places(inner, here)


def _of_name(
    places: list[tuple[str, keras.Layer]], trainable: list[keras.Variable], name: str
) -> set[int]:
    """Return the variables of the one layer that has a name, or the one variable."""
    index = {id(v): i for i, v in enumerate(trainable)}
    # Keyed by their variables, so that one layer counts once: a shared layer has several paths, and
    # a wrapper holds the same variables as the layer in it.
    found: dict[tuple[int, ...], str] = {}
    for path, layer in places:
        owned = tuple(sorted(index[id(v)] for v in layer.trainable_variables if id(v) in index))
        if owned and _ends_with(path, name):
            if path == name:
                return set(owned)
            found.setdefault(owned, path)
    paths = _paths(places, trainable)
    for i, (variable, path) in enumerate(zip(trainable, paths, strict=True)):
        if variable.path == name or _ends_with(path, name):
            found.setdefault((i,), path)
    if len(found) > 1:
        names = ", ".join(sorted(found.values()))
        raise ValueError(
            f"`variables`: {name!r} names several: {names}. Give one of these paths, or the layers "
            "themselves."
        )
    return set(next(iter(found), ()))


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith(f"/{name}")


def _paths(places: list[tuple[str, keras.Layer]], trainable: list[keras.Variable]) -> list[str]:
    """Return a path of each trainable variable: of the innermost layer that has it."""
    paths = {id(v): v.path for v in trainable}
    for path, layer in places:
        for variable in layer.trainable_variables:
            if id(variable) in paths:
                paths[id(variable)] = f"{path}/{variable.name}"
    return list(paths.values())


def _name(item: keras.Variable | keras.Layer | str | int) -> str:
    return repr(getattr(item, "path", None) or getattr(item, "name", item))


def select_indices(number: int, chosen: Selection) -> list[int]:
    """Return the chosen indices, checked and in order; all of them for None."""
    if chosen is None:
        return list(range(number))
    if callable(chosen) or not all(isinstance(i, int | np.integer) for i in chosen):
        raise ValueError("With a list of weights, `variables` must be a list of indices.")
    indices = sorted({int(i) for i in chosen})
    if not indices or indices[0] < 0 or indices[-1] >= number:
        raise ValueError(f"`variables` must be indices from 0 to {number - 1}; got {list(chosen)}.")
    return indices
