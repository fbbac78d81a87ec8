"""Which weights a measurement is a function of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

__all__ = ["Selection", "select", "select_indices"]

Selection = None | Sequence[Any] | Callable[[Any], bool]


def select(model: keras.Model, trainable: list[Any], chosen: Selection) -> list[int]:
    """Return the indices of the chosen variables among the trainable ones."""
    if chosen is None:
        indices = list(range(len(trainable)))
    elif callable(chosen):
        indices = [i for i, v in enumerate(trainable) if chosen(v)]
    else:
        wanted: set[int] = set()
        for item in chosen:
            found = set(_matches(model, trainable, item))
            if not found:
                raise ValueError(
                    f"`variables`: {getattr(item, 'name', item)!r} is no trainable variable and no "
                    f"layer with one; the model has {', '.join(v.path for v in trainable)}."
                )
            wanted |= found
        indices = sorted(wanted)
    if not indices:
        raise ValueError("`variables` leaves no weight to measure.")
    return indices


def _matches(model: keras.Model, trainable: list[Any], item: Any) -> Iterator[int]:
    layers = {layer.name: layer for layer in model._flatten_layers(include_self=False)}
    layer = layers.get(item) if isinstance(item, str) else item
    of_layer = {id(v) for v in getattr(layer, "trainable_variables", [])}
    for i, variable in enumerate(trainable):
        named = isinstance(item, str) and variable.path == item
        if named or variable is item or id(variable) in of_layer:
            yield i


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
