"""Walkers: explore a loss landscape with one or many networks that may pull at each other.

    from esgd_tf.walkers import Experiment, Settings

    experiment = Experiment(Settings(dataset="mnist", n_workers=3, alpha=0.1), "runs/three")
    experiment.run()

Imported when first used: the flags of the command line must not wait for TensorFlow.
"""

import lazy_loader

from esgd_tf._extras import require

require("esgd_tf.walkers", "all", "filelock", "matplotlib", "scipy", "tensorflow_datasets")

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "control": ["Change", "read_schedule"],
        "experiment": ["Experiment"],
        "figures": ["figure_page"],
        "problem": ["Problem"],
        "records": ["read_table"],
        "settings": ["Settings", "SettingsError"],
    },
)
