"""Training: evaluation at the anchor, batch norm, checkpoints, diagnostics, strategies.

Imported when first used: the run folder's checks must not wait for TensorFlow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batch_norm": ["reestimate_batch_norm"],
        "checkpoints": ["CheckpointError", "load_checkpoint", "load_model", "save_checkpoint"],
        "evaluation": [
            "AnchorCallback",
            "evaluate_at",
            "local_entropy_optimizer",
            "local_entropy_optimizers",
        ],
        "multi_worker": ["enable_multi_worker"],
        "nonfinite": ["skip_nonfinite"],
        "strategies": ["StrategyError", "make_strategy", "split_device"],
    },
)
