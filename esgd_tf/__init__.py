"""esgd_tf: Entropy-SGD and its relatives on TensorFlow and Keras 3.

The names below are imported when first used: the command line shows its help and checks its flags
without waiting for TensorFlow. Keras' loader knows the classes all the same.
"""

import lazy_loader

from esgd_tf._registration import register_when_keras_is_imported

register_when_keras_is_imported()

# The names stand in the stub beside this file, where editors and type checkers look for them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
