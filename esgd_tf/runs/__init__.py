"""Parts of the runs of train.py: folder, checkpoints, guards, curves and stored networks.

Its modules are imported when they are first used, so that checking a run folder does not load
TensorFlow.
"""

import lazy_loader

from esgd_tf._extras import require

require("esgd_tf.runs", "tensorflow", "tensorflow", "keras")
require("esgd_tf.runs", "all", "filelock", "matplotlib", "scipy", "tensorboard", "tqdm")

# The names stand in the stub beside this file, where editors and type checkers look for them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
