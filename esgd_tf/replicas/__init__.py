"""Interacting copies of one network: Replicated-SGD, elastic averaging, Parle.

Imported when first used: the flags of the command line must not wait for TensorFlow.
"""

import lazy_loader

from esgd_tf._extras import require

require("esgd_tf.replicas", "tensorflow", "tensorflow", "keras")

# The names stand in the stub beside this file, where editors and type checkers look for them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
