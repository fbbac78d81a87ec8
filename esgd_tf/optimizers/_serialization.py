"""Saving an optimizer's state and its constructor's arguments, and reading them again.

Keras loads weights into a model that is compiled but has not trained yet, whose optimizer has no
slots then: its own optimizers warn, and forget the state. Here the state is kept until the slots
are there. A state that does not fit (of another optimizer) is ignored with a warning, so that
the weights of any file can be loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from esgd_tf import _keras
from esgd_tf._warn import warn
from esgd_tf.optimizers.scoping import ScopeSchedule

if TYPE_CHECKING:
    from esgd_tf.optimizers._wrapping import WrappingOptimizer
    from esgd_tf.optimizers.local_entropy import LocalEntropy

__all__ = ["StateWarning", "StoredState", "arguments", "deserialized", "set_weights"]

# The constructor's arguments that are kept under their own names, as plain values.
_PLAIN = (
    "scoping",
    "noise",
    "averaging",
    "nesterov",
    "weight_decay",
    "gamma_in_outer_step",
    "seed",
    "skip_nonfinite",
)
# In a file, beside the variables by their numbers: whose state it is, and its L.
_MARK = "langevin_steps"


class StateWarning(UserWarning):
    """The state of an optimizer in a file is not what this optimizer can go on with."""


class StoredState:
    """The state of one optimizer and of the one that it wraps, on the way from a file.

    Args:
        optimizer: WrappingOptimizer. The optimizer whose state is saved and loaded.
    """

    def __init__(self, optimizer: WrappingOptimizer) -> None:
        self._optimizer = optimizer
        self._own: dict[str, np.ndarray] | None = None
        self._outer: dict[str, np.ndarray] | None = None
        # Keras visits the outer optimizer by itself; without slots it would forget its state.
        optimizer.outer_optimizer.load_own_variables = self.load_outer

    def save(self, store: Any) -> None:
        """Put the state into the store."""
        for i, variable in enumerate(_keras.own_variables(self._optimizer)):
            store[str(i)] = variable.numpy()
        store[_MARK] = np.array(self._optimizer.langevin_steps)

    def load(self, store: Any) -> None:
        """Take the optimizer's own state from the store; restore it if there are slots."""
        self._own = _read(store)
        self._outer = None
        if self._optimizer.built:
            self.restore()

    def load_outer(self, store: Any) -> None:
        """Take the outer optimizer's state from the store; restore it if there are slots."""
        self._outer = _read(store)
        if self._optimizer.built:
            self.restore()

    def restore(self) -> None:
        """Give the optimizers the states that have been loaded for them."""
        own, self._own = self._own, None
        outer, self._outer = self._outer, None
        name = self._optimizer.name
        if own is not None:
            self._restore_own(own)
        if outer is not None and not _fill(self._optimizer.outer_optimizer.variables, outer):
            warn(
                f"The file has no state that the outer optimizer of {name!r} could go on with: it "
                "starts anew.",
                StateWarning,
            )

    def _restore_own(self, values: dict[str, np.ndarray]) -> None:
        optimizer = self._optimizer
        mark = values.pop(_MARK, None)
        if mark is None or not _fill(_keras.own_variables(optimizer), values):
            what = "of another optimizer" if mark is None else "made with other arguments"
            warn(
                f"The optimizer state in the file is that {what} than {optimizer.name!r}, which "
                "starts anew. (To go on with a state, make the optimizer with the same momentum, "
                "use_ema, statistics, skip_nonfinite and kind of scope, for the same weights.)",
                StateWarning,
            )
            return
        optimizer._swap.may_be_elsewhere = True
        phase = int(optimizer._walk.phase.numpy())
        if int(mark) != optimizer.langevin_steps and phase > 0:
            warn(
                f"The file was saved after {phase} of {int(mark)} Langevin steps: "
                f"{optimizer.name!r} goes on with that inner loop, and ends it after "
                f"{optimizer.langevin_steps}.",
                StateWarning,
            )
        optimizer._warnings.loaded()


def set_weights(optimizer: WrappingOptimizer, weights: Sequence[Any]) -> None:
    """Set all variables of an optimizer and of the one that it wraps.

    Raises:
        ValueError: The optimizer is not built, or the arrays do not fit.
    """
    if not optimizer.built:
        raise ValueError(
            f"`set_weights` needs the slots of {optimizer.name!r}: call "
            "`build(trainable_variables)` first."
        )
    variables = optimizer.variables
    shapes = [tuple(v.shape) for v in variables]
    given = [np.shape(w) for w in weights]
    if shapes != given:
        raise ValueError(
            f"The optimizer {optimizer.name!r} has {len(shapes)} variables, of shapes {shapes}; "
            f"got {len(given)} arrays of shapes {given}."
        )
    for variable, weight in zip(variables, weights, strict=True):
        variable.assign(weight)


def arguments(optimizer: LocalEntropy) -> dict[str, Any]:
    """Return the constructor's arguments of a `LocalEntropy` that are its own, serialised."""
    gamma = optimizer.gamma
    if isinstance(gamma, ScopeSchedule):
        gamma = keras.saving.serialize_keras_object(gamma)
    return {
        "outer_optimizer": keras.saving.serialize_keras_object(optimizer.outer_optimizer),
        "langevin_steps": optimizer.langevin_steps,
        "gamma": gamma,
        **{name: getattr(optimizer, name) for name in _PLAIN},
        **optimizer._step_sizes.config(),
        "learning_rate_multipliers": optimizer._outer.multipliers(),
        "statistics": optimizer.keeps_statistics,
    }


def deserialized(config: Mapping[str, Any], custom_objects: Any) -> dict[str, Any]:
    """Return a config whose outer optimizer, inner rate and scope are objects again."""
    config = dict(config)
    for key in ("outer_optimizer", "gamma", "langevin_learning_rate"):
        if isinstance(config.get(key), dict):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects=custom_objects
            )
    return config


def _read(store: Any) -> dict[str, np.ndarray]:
    return {key: np.asarray(store[key]) for key in list(store.keys())}


def _fill(variables: Sequence[keras.Variable], values: Mapping[str, np.ndarray]) -> bool:
    """Assign the values to the variables, if all of them fit; tell whether they did."""
    wanted = {str(i): tuple(variable.shape) for i, variable in enumerate(variables)}
    if {key: value.shape for key, value in values.items()} != wanted:
        return False
    for i, variable in enumerate(variables):
        variable.assign(values[str(i)])
    return True
