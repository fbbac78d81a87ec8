"""Loading a saved model at the weights to use."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from esgd_tf.optimizers import _finding

__all__ = ["load_model"]


def load_model(
    path: str | Path,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    safe_mode: bool = True,
) -> keras.Model:
    """Load a model that is trained by this library, at the anchor.

    `keras.models.load_model` loads it too, at the weights that the file holds: the Langevin
    weights, if it was saved in the middle of an inner loop. Training goes on from either, bit for
    bit.

    Args:
        path: str or Path. A `.keras` file.
        custom_objects: mapping of classes or functions by name. What a file may name beside what
            Keras and this library know. Defaults to None, which means nothing.
        compile: bool. Whether to compile the model as it was. Defaults to True.
        safe_mode: bool. Whether to refuse files that hold code. Defaults to True.

    Returns:
        The model.

    Raises:
        ValueError: The file is not a model, or names a class that is not known.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This file was saved in the middle")
        model = keras.models.load_model(
            path, custom_objects=custom_objects, compile=compile, safe_mode=safe_mode
        )
    for optimizer in _finding.of_model(model):
        optimizer._swap.place("anchor")
    return model
