"""Calls the user's function that makes the networks, and copies networks."""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from esgd_tf import _keras

__all__ = ["copy_of", "copy_state", "kept", "numbered"]


def numbered(build_model: Callable[..., keras.Model]) -> Callable[[int], keras.Model]:
    """Return a function of the replica's number that calls `build_model`.

    The number goes to the only argument without a default, if there is one. Arguments with a
    default, such as a coefficient, keep it.

    Args:
        build_model: callable. Returns a new, built model; see `Replicas`.

    Raises:
        ValueError: Several arguments have no default.
    """
    try:
        parameters = list(inspect.signature(build_model).parameters.values())
    except (TypeError, ValueError):  # some callables written in C have no signature
        parameters = []
    lacking = [
        p
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if not lacking:
        return lambda a: build_model()
    if len(lacking) > 1:
        raise ValueError(
            "`build_model` may have one argument without a default, which gets the number of the "
            f"replica, but it has {', '.join(p.name for p in lacking)}: give the others a default, "
            "or fill them in by functools.partial."
        )
    (number,) = lacking
    if number.kind == number.KEYWORD_ONLY:
        return lambda a: build_model(**{number.name: a})
    return build_model


def copy_of(model: keras.Model, build_model: Callable[..., keras.Model]) -> keras.Model:
    """Return a new model with the same layers and state, not compiled."""
    copy = None
    # A subclass may lack the methods to rebuild it.
    with contextlib.suppress(NotImplementedError, TypeError, ValueError):
        copy = type(model).from_config(model.get_config())
    if copy is None or not copy.built:
        copy = numbered(build_model)(0)
    copy_state(model, copy)
    return copy


def copy_state(source: keras.Model, target: keras.Model) -> None:
    """Copy the complete state of a model to another of the same architecture.

    The state is copied layer by layer, as Keras saves it: vocabularies from `adapt` are not among a
    model's weights, and some layers derive state from their weights that `set_weights` ignores.
    """
    pairs = list(zip(_keras.layers_in(source), _keras.layers_in(target), strict=True))
    for old, new in pairs:
        if not _has_learnt(old):
            continue
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        new.load_own_variables({name: _array(value) for name, value in store.items()})
        if hasattr(old, "save_assets") and hasattr(new, "load_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)


@contextlib.contextmanager
def kept(model: keras.Model) -> Iterator[None]:
    """Restore the complete state of a model at the end of the block."""
    stores = []
    for layer in _keras.layers_in(model):
        if not _has_learnt(layer):
            continue
        store: dict[str, Any] = {}
        layer.save_own_variables(store)
        stores.append((layer, {name: _array(value) for name, value in store.items()}))
    try:
        yield
    finally:
        for layer, store in stores:
            layer.load_own_variables(store)


def _has_learnt(layer: Any) -> bool:
    """Return whether a layer has a state; a vocabulary comes from `adapt` or from a file."""
    vocabulary = getattr(layer, "get_vocabulary", None)
    return vocabulary is None or len(vocabulary(include_special_tokens=False)) > 0


def _array(value: Any) -> np.ndarray:
    """Return a copy of an entry of a layer's store: a variable or an array."""
    return np.array(value.numpy() if hasattr(value, "numpy") else value)
