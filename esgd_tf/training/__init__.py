"""What Keras users import beside an optimizer: the anchor, batch norm, strategies, loading.

Imported when first used: what only reads the description of a job must not wait for TensorFlow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batch_norm": ["reestimate_batch_norm"],
        "evaluation": [
            "AnchorCallback",
            "evaluate_at",
            "local_entropy_optimizer",
            "local_entropy_optimizers",
        ],
        "loading": ["load_model"],
        "multi_worker": ["enable_multi_worker"],
        "nonfinite": ["skip_nonfinite"],
        "strategies": ["StrategyError", "make_strategy", "split_device"],
    },
)
