"""Training: evaluation at the anchor, batch-norm re-estimation, checkpoints, diagnostics.

Imported when first used: the run folder's checks must not wait for TensorFlow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batch_norm": ["reestimate_batch_norm"],
        "evaluation": ["AnchorCallback", "evaluate_at", "local_entropy_optimizer"],
    },
)
