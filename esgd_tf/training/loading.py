"""Loading a saved model at the weights to use."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras

from esgd_tf.training.evaluation import local_entropy_optimizers

__all__ = ["load_model"]


def load_model(path: str | Path, **options: Any) -> keras.Model:
    """Load a model that is trained by this library, at the anchor.

    `keras.models.load_model` loads it too, at the weights that the file holds: the Langevin
    weights, if it was saved in the middle of an inner loop. Training goes on from either, bit for
    bit.

    Args:
        path: str or Path. A `.keras` file.
        **options: Of `keras.models.load_model`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This file was saved in the middle")
        model = keras.models.load_model(path, **options)
    for optimizer in local_entropy_optimizers(model):
        optimizer._swap.place("anchor")
    return model
