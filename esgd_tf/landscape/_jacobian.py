"""Products with the Jacobian of a network and its transpose, in one graph.

J'u is one reverse pass and linear in u, so J v is the derivative by u of (J'u)·v: a second reverse
pass, which shares the forward pass of the network with all products by J'.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from esgd_tf.landscape._check import moved, quotient
from esgd_tf.landscape._types import Tensors
from esgd_tf.landscape.operator import stacked

__all__ = ["through_differences", "through_jacobian"]


def through_jacobian(
    outputs: Callable[[Tensors], Tensors],
    weights: Tensors,
    vectors: Tensors,
    curve: Callable[[Tensors, list[Tensors]], list[Tensors]],
) -> Tensors:
    """Return J' C J v for each of the stacked v, with J that of `outputs` by the weights.

    Args:
        outputs: callable. A function of the weights, which returns a list of tensors.
        weights: list of tensors. The weights at which it is differentiated.
        vectors: list of tensors of shape [k, *shape], one for each weight. The vectors.
        curve: callable. Given (outputs, list of J v), returns the list of C J v; each is a list of
            tensors.
    """
    columns = vectors[0].shape[0]
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as inner:
        inner.watch(weights)
        out = outputs(weights)
    # J'u is linear in u, so its derivative by u is J, wherever u is.
    u = [tf.zeros_like(part) for part in out]
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as by_u:
        by_u.watch(u)
        pulled = inner.gradient(out, weights, output_gradients=u, unconnected_gradients="zero")
    tangents = [
        by_u.gradient(
            pulled, u, output_gradients=[v[k] for v in vectors], unconnected_gradients="zero"
        )
        for k in range(columns)
    ]
    return stacked(
        inner.gradient(out, weights, output_gradients=c, unconnected_gradients="zero")
        for c in curve(out, tangents)
    )


def through_differences(
    outputs: Callable[[Tensors], Tensors],
    weights: Tensors,
    vector: Tensors,
    curve: Callable[[Tensors, Tensors, float], Tensors],
    step: float,
) -> Tensors:
    """Return J' C J v with a difference quotient for J v, as a check of `through_jacobian`.

    Args:
        outputs: callable. A function of the weights, which returns a list of tensors.
        weights: list of tensors. The weights at which it is differentiated.
        vector: list of tensors. v, one vector.
        curve: callable. Given (outputs, J v, step), returns C J v.
        step: float > 0. h of (F(w + h v) - F(w - h v)) / 2h.
    """
    tangent = quotient(lambda h: outputs(moved(weights, vector, h)), step)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(weights)
        out = outputs(weights)
    curved = curve(out, tangent, step)
    return tape.gradient(out, weights, output_gradients=curved, unconnected_gradients="zero")
