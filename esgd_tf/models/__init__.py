"""Networks of the papers, by name.

* ``build(name, input_shape, num_classes)`` makes a functional Keras model that returns logits.
* ``names()`` and ``check_name(name)`` list and check names without loading TensorFlow.
* ``register(name)`` adds a new architecture.
* ``BatchNormalization`` is Keras' layer on TensorFlow's fused kernel.
"""

import lazy_loader

from esgd_tf._extras import require

require("esgd_tf.models", "tensorflow", "tensorflow", "keras")

# The names stand in the stub beside this file, where editors and type checkers look for them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
