"""What the runs of train.py are made of: folder, checkpoints, guards, curves, stored networks.

Imported when first used: the checks of a run folder must not wait for TensorFlow.
"""

import lazy_loader

from esgd_tf._extras import require

require("esgd_tf.runs", "all", "filelock", "matplotlib", "scipy", "tensorboard", "tqdm")

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoints": ["load_checkpoint", "save_checkpoint"],
        "errors": ["CheckpointError", "NotFiniteError", "RunFolderError"],
        "run_folder": ["RunFolder"],
        "stored_run": ["StoredRun"],
    },
)
