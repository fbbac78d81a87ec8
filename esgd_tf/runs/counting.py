"""How many gradients a model has stepped with, whichever optimizer left out the others.

A minibatch whose gradient is not finite is left out by `LocalEntropy(skip_nonfinite=True)`, or by
Keras' `LossScaleOptimizer`, which keeps no count of them. Neither advances `iterations`.
"""

from __future__ import annotations

import keras

from esgd_tf.replicas.replicas import Replicas

__all__ = ["evaluations_counted", "loss_scale", "steps_taken"]


def steps_taken(model: keras.Model) -> int:
    """Return the clock of training: of replicas, the steps of all together."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def evaluations_counted(model: keras.Model) -> int:
    """Return the gradient evaluations that were stepped with; of replicas, over all of them.

    Args:
        model: A compiled model. Of replicas in other processes, none is known to have skipped one.
    """
    steps = steps_taken(model)
    if not isinstance(model, Replicas):
        return steps
    # Of the replicas in other processes this one knows nothing between two checkpoints.
    own = [model.optimizer.replicas[a] for a in model.local]
    return steps * model.replicas - sum(steps - int(o.iterations.numpy()) for o in own)


def loss_scale(model: keras.Model) -> float | None:
    """Return the factor by which mixed_float16 scales the loss, the smallest of all replicas.

    Args:
        model: A compiled model.

    Returns:
        The factor, or None where the loss is not scaled.
    """
    members = model.members if isinstance(model, Replicas) else [model]
    scales = [
        float(keras.ops.convert_to_numpy(member.optimizer.dynamic_scale))
        for member in members
        if isinstance(member.optimizer, keras.optimizers.LossScaleOptimizer)
        and member.optimizer.built
    ]
    return min(scales, default=None)
