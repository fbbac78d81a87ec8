"""What the runs of train.py are made of: folder, checkpoints, guards, curves, stored networks.

Imported when first used: the checks of a run folder must not wait for TensorFlow.
"""

import lazy_loader

from esgd_tf._extras import require

require("esgd_tf.runs", "tensorflow", "tensorflow", "keras")
require("esgd_tf.runs", "all", "filelock", "matplotlib", "scipy", "tensorboard", "tqdm")

# The names stand in the stub beside this file, where editors and type checkers look for them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
