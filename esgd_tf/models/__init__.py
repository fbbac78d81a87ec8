"""Networks of the papers, by name.

* ``build(name, input_shape, num_classes)`` makes a functional Keras model that returns logits.
* ``names()`` and ``check_name(name)`` list and check names without loading TensorFlow.
* ``register(name)`` adds a new architecture.
* ``BatchNormalization`` is Keras' layer on TensorFlow's fused kernel.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batch_norm": ["BatchNormalization"],
        "registry": ["build", "check_name", "names", "register"],
    },
)
