"""Saving an optimizer's state and its constructor's arguments, and reading them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from esgd_tf.optimizers.scoping import ScopeSchedule

# The constructor's arguments that are kept under their own names, as plain values.
_PLAIN = (
    "scoping",
    "noise",
    "averaging",
    "momentum",
    "nesterov",
    "weight_decay",
    "gamma_in_outer_step",
    "seed",
)


def save_variables(variables: Sequence[keras.Variable], store: Any) -> None:
    """Put the values of the variables into the store, by their numbers."""
    for i, variable in enumerate(variables):
        store[str(i)] = variable.numpy()


def load_variables(variables: Sequence[keras.Variable], store: Any, name: str) -> None:
    """Load what `save_variables` saved.

    Args:
        variables: In the order in which they were saved.
        store: What was saved.
        name: The optimizer's, for the error.

    Raises:
        ValueError: The stored state is that of another configuration.
    """
    if len(store.keys()) != len(variables):
        raise ValueError(
            f"The saved state of optimizer {name!r} has {len(store.keys())} variables and "
            f"this one has {len(variables)}: build it on the same model, with the same "
            "momentum, use_ema, statistics, skip_nonfinite and kind of scope, before loading."
        )
    for i, variable in enumerate(variables):
        variable.assign(store[str(i)])


def arguments(optimizer: Any) -> dict[str, Any]:
    """Return the constructor's arguments of a `LocalEntropy` that are its own, serialised."""
    gamma = optimizer.gamma
    if isinstance(gamma, ScopeSchedule):
        gamma = keras.saving.serialize_keras_object(gamma)
    return {
        "outer_optimizer": keras.saving.serialize_keras_object(optimizer.outer_optimizer),
        "langevin_steps": optimizer.langevin_steps,
        "langevin_learning_rate": optimizer.langevin_learning_rate,
        "gamma": gamma,
        **{name: getattr(optimizer, name) for name in _PLAIN},
        "statistics": optimizer.keeps_statistics,
        "skip_nonfinite": optimizer.skip_nonfinite,
    }


def deserialized(config: dict[str, Any], custom_objects: Any) -> dict[str, Any]:
    """Return a config whose outer optimizer and scope are objects again."""
    config = dict(config)
    for key in ("outer_optimizer", "gamma"):
        if isinstance(config.get(key), dict):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects=custom_objects
            )
    return config
