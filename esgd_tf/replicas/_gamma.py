"""The measurement of gamma_0 when training starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.replicas._arrival import after_arrival
from esgd_tf.replicas._building import copy_state, kept
from esgd_tf.replicas._exchange import Exchange
from esgd_tf.replicas._members import square

__all__ = ["GAMMA_BATCHES", "measured_gamma"]

# The number of minibatches of each replica from which its loss is estimated.
GAMMA_BATCHES = 10


def measured_gamma(
    members: Sequence[keras.Model],
    viewer: keras.Model,
    exchange: Exchange,
    batches: Sequence[Any],
) -> float:
    """Return gamma_0 = mean_a L(w^a) / mean_a |w^a - c|^2 / 2; see `focusing.py`.

    Args:
        members: sequence of keras.Model. The replicas of this process.
        viewer: keras.Model. A compiled copy, which receives their weights in turn, so that only one
            model is traced. Its own weights are restored afterwards.
        exchange: Exchange. Gives the anchors of these and of other processes' replicas.
        batches: sequence of tuples of one minibatch for each replica. The first that they are going
            to be trained on.

    Raises:
        ValueError: All replicas have the same weights, or their loss is not positive and finite.
    """

    def test_step(data: Any) -> Any:
        return after_arrival(viewer.test_step, data)

    if not viewer.run_eagerly:
        test_step = tf.function(test_step, reduce_retracing=True)
    losses, halves = [], []
    means = [m.numpy() for m in exchange.mean()]
    with kept(viewer):
        for a, member in enumerate(members):
            copy_state(member, viewer)
            viewer.reset_metrics()
            for batch in batches:
                logs = test_step(batch[a])
            losses.append(float(logs["loss"]))
            anchors = [w.numpy() for w in exchange.optimizers[a].anchors()]
            halves.append(0.5 * square(anchors, means))
    viewer.reset_metrics()
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
