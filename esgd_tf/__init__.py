"""esgd_tf: Entropy-SGD and its relatives on TensorFlow and Keras 3.

The names below are imported when first used: the command line shows its help and checks its flags
without waiting for TensorFlow. Keras' loader knows the classes all the same.
"""

import lazy_loader

from esgd_tf._registration import register_when_keras_is_imported
from esgd_tf._version import __version__

register_when_keras_is_imported()

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "data",
        "landscape",
        "models",
        "optimizers",
        "replicas",
        "runs",
        "training",
        "walkers",
    ],
    submod_attrs={
        "optimizers": ["EntropyAdam", "EntropySGD", "LocalEntropy", "from_sgd"],
        "replicas": ["Replicas"],
        "training": [
            "AnchorCallback",
            "evaluate_at",
            "load_model",
            "local_entropy_optimizer",
            "reestimate_batch_norm",
        ],
    },
)
__all__ += ["__version__"]
