"""Walkers: explore a loss landscape with one or many networks that may pull at each other.

    from esgd_tf.walkers import Experiment, Settings

    experiment = Experiment(Settings(dataset="mnist", n_workers=3, alpha=0.1), "runs/three")
    experiment.run()

Its names are imported when they are first used, so that command-line flags need no TensorFlow.
"""

import lazy_loader

from esgd_tf._extras import require

require("esgd_tf.walkers", "tensorflow", "tensorflow", "keras")
require("esgd_tf.walkers", "all", "filelock", "matplotlib", "scipy", "tensorflow_datasets")

# The names stand in the stub beside this file, where editors and type checkers look for them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
