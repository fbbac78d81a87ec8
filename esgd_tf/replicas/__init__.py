"""Interacting copies of one network: Replicated-SGD, elastic averaging, Parle.

Its names are imported when they are first used, so that command-line flags need no TensorFlow.
"""

import lazy_loader

from esgd_tf._extras import require

require("esgd_tf.replicas", "tensorflow", "tensorflow", "keras")

# The names stand in the stub beside this file, where editors and type checkers look for them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
