"""gamma_0, measured where training starts."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.replicas._exchange import Exchange
from esgd_tf.replicas._members import square

__all__ = ["measured_gamma"]

# Minibatches of each replica from which its loss is estimated.
_BATCHES = 10


def measured_gamma(
    members: Sequence[keras.Model],
    viewer: keras.Model,
    exchange: Exchange,
    batches: tf.data.Dataset,
) -> float:
    """Return gamma_0 = mean_a L(w^a) / mean_a |w^a - c|^2 / 2; see `focusing.py`.

    Args:
        members: The replicas of this process.
        viewer: A compiled copy, which takes their weights in turn: one trace, not one for each.
        exchange: Knows their anchors, and the replicas of other processes.
        batches: What they are going to be trained on: tuples of one minibatch each.

    Raises:
        ValueError: The replicas are at one point, or their loss is not positive and finite.
    """
    few = batches.take(_BATCHES)
    losses, halves = [], []
    means = [m.numpy() for m in exchange.mean()]
    for a, member in enumerate(members):
        own = few.map(lambda *parts, a=a: parts[a])
        viewer.set_weights(member.get_weights())
        losses.append(viewer.evaluate(own, verbose=0, return_dict=True)["loss"])
        anchors = [w.numpy() for w in exchange.optimizers[a].anchors()]
        halves.append(0.5 * square(anchors, means))
    loss = exchange.mean_numbers(losses)
    distance = exchange.mean_numbers(halves)
    if distance == 0:
        raise ValueError(
            "Replicas that start at one point have no distance to measure gamma_0 by: give "
            "Focusing a `gamma`, or start them independently."
        )
    if not np.isfinite(loss) or loss <= 0:
        raise ValueError(
            f"The mean loss at the start is {loss}, which gives no gamma_0: give Focusing a "
            "`gamma`."
        )
    return loss / distance
