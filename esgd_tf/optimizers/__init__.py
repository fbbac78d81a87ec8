"""Keras optimizers that descend the local entropy, and their rules as pure functions."""

from esgd_tf._extras import require

require("esgd_tf.optimizers", "tensorflow", "tensorflow", "keras")

from esgd_tf.optimizers import langevin, scoping
from esgd_tf.optimizers._statistics import LangevinStatistics
from esgd_tf.optimizers.entropy_sgd import EntropyAdam, EntropySGD
from esgd_tf.optimizers.from_sgd import from_sgd
from esgd_tf.optimizers.local_entropy import LocalEntropy
from esgd_tf.optimizers.scoping import (
    AutoScope,
    BoundedScope,
    ConstantScope,
    ExponentialScope,
    LinearScope,
    QuadraticScope,
    ScopeSchedule,
)

__all__ = [
    "AutoScope",
    "BoundedScope",
    "ConstantScope",
    "EntropyAdam",
    "EntropySGD",
    "ExponentialScope",
    "LangevinStatistics",
    "LinearScope",
    "LocalEntropy",
    "QuadraticScope",
    "ScopeSchedule",
    "from_sgd",
    "langevin",
    "scoping",
]
