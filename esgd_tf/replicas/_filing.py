"""What `Replicas` writes into files, and how it comes back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import keras

from esgd_tf.replicas._members import random_states
from esgd_tf.replicas.coupling import Coupling

__all__ = ["Filing"]


class Filing:
    """The part of `Replicas` that is saved and loaded."""

    # Of `Replicas` and `keras.Model`.
    compile: Callable[..., None]
    coupling: Coupling
    initialization: str
    members: list[keras.Model]
    name: str
    replicas: int
    seed: int
    _compile_arguments: dict[str, Any]

    def get_config(self) -> dict[str, Any]:
        """Return what a model without strategy is rebuilt from."""
        return {
            "member": keras.saving.serialize_keras_object(self.members[0]),
            "replicas": self.replicas,
            "coupling": keras.saving.serialize_keras_object(self.coupling),
            "initialization": self.initialization,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Rebuild the model from `get_config`, on one device."""
        config = dict(config)
        member = config.pop("member")
        member = {key: value for key, value in member.items() if key != "compile_config"}
        initialization = config.pop("initialization")

        def build_model() -> keras.Model:
            # A copy: Keras empties the config of a functional model that it rebuilds.
            return keras.saving.deserialize_keras_object(
                copy.deepcopy(member), custom_objects=custom_objects
            )

        config["coupling"] = keras.saving.deserialize_keras_object(
            config["coupling"], custom_objects=custom_objects
        )
        model = cls(build_model, initialization="same", **config)  # type: ignore[call-arg]
        model.initialization = initialization
        return model

    def save_own_variables(self, store: Any) -> None:
        """Save the states of the replicas' random generators, which Keras leaves out."""
        super().save_own_variables(store)  # type: ignore[misc]
        for i, state in enumerate(random_states(self.members)):
            store[f"random_state_{i}"] = state

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` saved."""
        found = {name: store[name] for name in store.keys()}  # noqa: SIM118 - of HDF5
        for i, state in enumerate(random_states(self.members)):
            value = found.pop(f"random_state_{i}", None)
            if value is not None:  # a file of an earlier version has none
                state.assign(value)
        super().load_own_variables(found)  # type: ignore[misc]

    def get_compile_config(self) -> dict[str, Any]:
        """Return the arguments of `compile`, serialised."""
        return {
            name: keras.saving.serialize_keras_object(value)
            for name, value in self._compile_arguments.items()
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile with what `get_compile_config` returned."""
        self.compile(
            **{name: keras.saving.deserialize_keras_object(v) for name, v in config.items()}
        )
