"""Checkpoints of a run: `.keras` files that Keras loads and training resumes from exactly.

The model is saved at the anchor, with the state of its optimizer: `keras.models.load_model` gives
the network to use, and `load_checkpoint` everything needed to go on as if nothing had happened.
One more member of the zip archive holds the state that Keras does not save: how much of the data
has been seen, and the states of the random generators of dropout.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from esgd_tf._files import replaced_when_whole
from esgd_tf.optimizers._serialization import StateWarning
from esgd_tf.runs.errors import CheckpointError, DamagedCheckpointError
from esgd_tf.runs.progress import MEMBER, Progress, read_extra
from esgd_tf.runs.trained import trained
from esgd_tf.training.evaluation import evaluate_at
from esgd_tf.training.loading import load_model

__all__ = [
    "CheckpointError",
    "DamagedCheckpointError",
    "Progress",
    "load_checkpoint",
    "load_network",
    "save_checkpoint",
]


def save_checkpoint(model: keras.Model, path: Path, progress: Progress) -> None:
    """Save the model at the anchor, and all that training needs to go on, atomically.

    Args:
        model: keras.Model. A compiled model.
        path: Path. A `.keras` file, replaced when the new one is whole.
        progress: Progress. The progress of the run, which is stored too.

    Raises:
        OSError: The file cannot be written; the old one is still there.
    """
    extra = {**dataclasses.asdict(progress), "random_states": _random_states(model)}
    with evaluate_at(model, "anchor"), replaced_when_whole(path) as partial:
        model.save(partial)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr(MEMBER, json.dumps(extra))


def load_checkpoint(model: keras.Model, path: Path) -> Progress:
    """Load a file of `save_checkpoint` into a model of the same architecture and optimizer.

    Args:
        model: keras.Model. A compiled model, changed in place.
        path: Path. The `.keras` file.

    Returns:
        The progress that was stored with it.

    Raises:
        CheckpointError: The file is of another model or optimizer.
        DamagedCheckpointError: The file is missing or damaged. The model is as it was.
    """
    progress, random_states = read_extra(path)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    try:
        with warnings.catch_warnings():
            # Without its optimizer's state a run would start anew instead of going on.
            warnings.simplefilter("error", StateWarning)
            model.load_weights(path)
        variables = _random_variables(model)
        for variable, state in zip(variables, random_states, strict=True):
            variable.assign(np.array(state, dtype=variable.dtype))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"Checkpoint {path} is that of another model or optimizer: "
            f"{str(error).strip().splitlines()[0]}"
        ) from None
    return progress


def load_network(path: Path) -> tuple[keras.Model, Progress]:
    """Load the network of a checkpoint, at the anchor and without its optimizer.

    For replicas, this is their center.

    Args:
        path: Path. A `.keras` file that `save_checkpoint` wrote.

    Returns:
        The model, not compiled, and the progress that was stored with it.

    Raises:
        CheckpointError: The file is missing or damaged, or its layers are not known.
    """
    progress, _ = read_extra(path)
    try:
        model = load_model(path, compile=False)
        return trained(model).network(), progress
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # One cause is a layer of an architecture that is not registered in this process.
        raise CheckpointError(
            f"The network of checkpoint {path} cannot be built: "
            f"{str(error).strip().splitlines()[0]}"
        ) from None


def _random_variables(model: keras.Model) -> list[Any]:
    """Return the states of the random generators, which are in `variables`, not in `weights`."""
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def _random_states(model: keras.Model) -> list[Any]:
    return [keras.ops.convert_to_numpy(variable).tolist() for variable in _random_variables(model)]
