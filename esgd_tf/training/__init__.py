"""Helpers for Keras users beside the optimizers: anchor, batch norm, strategies, loading.

Imported when first used: what only reads the description of a job must not wait for TensorFlow.
"""

import lazy_loader

from esgd_tf._extras import require

require("esgd_tf.training", "tensorflow", "tensorflow", "keras")

# The names stand in the stub beside this file, where editors and type checkers look for them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
