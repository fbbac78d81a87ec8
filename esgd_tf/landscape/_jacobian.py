"""Products with the Jacobian of a network and its transpose, in one graph.

J'u is one reverse pass and linear in u, so J v is the derivative by u of (J'u)·v: a second reverse
pass, which shares the forward pass of the network with all products by J'.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from esgd_tf.landscape.operator import stacked

__all__ = ["through_jacobian"]


def through_jacobian(outputs: Any, weights: Any, vectors: Any, curve: Any) -> list[tf.Tensor]:
    """Return J' C J v for each of the stacked v, with J that of `outputs` by the weights.

    Args:
        outputs: A function of the weights.
        weights: Where.
        vectors: [k, *shape] for each weight.
        curve: Of (outputs, list of J v); returns the list of C J v.
    """
    columns = vectors[0].shape[0]
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as inner:
        inner.watch(weights)
        out = outputs(weights)
    # J'u is linear in u, so its derivative by u is J, wherever u is.
    u = tf.zeros_like(out)
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as by_u:
        by_u.watch(u)
        pulled = inner.gradient(out, weights, output_gradients=u, unconnected_gradients="zero")
    tangents = [
        by_u.gradient(pulled, u, output_gradients=[v[k] for v in vectors]) for k in range(columns)
    ]
    return stacked(
        inner.gradient(out, weights, output_gradients=c, unconnected_gradients="zero")
        for c in curve(out, tangents)
    )
