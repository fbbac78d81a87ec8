"""Interacting copies of one network: Replicated-SGD, elastic averaging, Parle.

Imported when first used: the flags of the command line must not wait for TensorFlow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["coupling"],
    submod_attrs={
        "coupling": ["Coupling"],
        "elastic_averaging": ["ElasticAveraging"],
        "ensemble": ["ensemble_outputs"],
        "focusing": ["Focusing"],
        "minibatches": ["OwnMinibatches"],
        "monitor": ["ReplicaMonitor"],
        "parle": ["Parle"],
        "replicas": ["Replicas"],
        "replicated_sgd": ["ReplicatedSGD"],
    },
)
