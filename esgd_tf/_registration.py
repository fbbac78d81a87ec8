"""Makes the classes of this library known to Keras' loader, without importing them.

`keras.models.load_model` finds a class by its registered name, which a class gets when its module
is imported. `import esgd_tf` imports no TensorFlow, so stand-ins are registered instead: each
imports its class when a file asks for it. They are put in place when Keras has been imported, be it
before or after this library.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import wrapt

_PACKAGE = "esgd_tf"
#: The modules with registered classes, and these.
CLASSES = {
    "esgd_tf.baselines.ema": ["EMA"],
    "esgd_tf.baselines.gsam": ["GSAM"],
    "esgd_tf.baselines.lookahead": ["Lookahead"],
    "esgd_tf.baselines.lpf_sgd": ["LPFSGD"],
    "esgd_tf.baselines.sam": ["ASAM", "SAM"],
    "esgd_tf.baselines.swa": ["SWA", "SWASchedule"],
    "esgd_tf.landscape.bounded_cross_entropy": ["BoundedCrossEntropy"],
    "esgd_tf.models.batch_norm": ["BatchNormalization"],
    "esgd_tf.optimizers.entropy_sgd": ["EntropyAdam", "EntropySGD"],
    "esgd_tf.optimizers.from_sgd": ["OuterSchedule"],
    "esgd_tf.optimizers.local_entropy": ["LocalEntropy"],
    "esgd_tf.optimizers.scoping": [
        "AutoScope",
        "BoundedScope",
        "ConstantScope",
        "ExponentialScope",
        "LinearScope",
        "QuadraticScope",
    ],
    "esgd_tf.replicas.elastic_averaging": ["ElasticAveraging"],
    "esgd_tf.replicas.ensemble": ["Ensemble"],
    "esgd_tf.replicas.focusing": ["Focusing"],
    "esgd_tf.replicas.parle": ["Parle"],
    "esgd_tf.replicas.replicas": ["Replicas"],
    "esgd_tf.replicas.replicated_sgd": ["ReplicatedSGD"],
}


def register_when_keras_is_imported() -> None:
    """Let Keras' loader find the classes of this library from the moment that it is there."""
    wrapt.register_post_import_hook(_register, "keras")


def _register(keras: ModuleType) -> None:
    known = keras.saving.get_custom_objects()
    for module, names in CLASSES.items():
        for name in names:
            # The class itself replaces its stand-in when its module is imported.
            known.setdefault(f"{_PACKAGE}>{name}", _stand_in(module, name))


def _stand_in(module: str, name: str) -> type:
    def from_config(cls: type, config: dict[str, Any], **options: Any) -> Any:
        del cls
        return getattr(importlib.import_module(module), name).from_config(config, **options)

    return type(name, (), {"from_config": classmethod(from_config), "__module__": module})
