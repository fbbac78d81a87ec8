"""A test, made when an operator is made, of whether its products with vectors are right.

Automatic differentiation is silent about operations that can be differentiated only once. So an
operator A is tried on a few examples, along a random direction v, in float64:

    u'(A v) = v'(A u)                                        is the product symmetric?
    A v = (∇f(w + h v) - ∇f(w - h v)) / 2h                   is it the derivative of the gradient?

(For Gauss-Newton and Fisher matrices, each Jacobian in A v is replaced by its difference quotient.)
A difference quotient over a kink, as ReLU and max pooling have, is no derivative of anything. In
float64 the step can be so small, 10^-7 and 10^-9 of the size of the weights, that kinks are rarely
between w - h v and w + h v; and where they are, the quotients for the two steps differ. Only where
both agree with each other, and not with the product, is the operator refused. Rounding to float32
inside a network makes them differ too. A network that cannot be computed in float64 at all is tried
in its own precision: for symmetry, and with larger steps too if it has no operations with kinks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from esgd_tf.landscape._batch import cut_rows
from esgd_tf.landscape._types import Batch, Tensors, Vector

if TYPE_CHECKING:
    from esgd_tf.landscape._objective import Objective

__all__ = ["Trial", "few_examples", "mistake", "moved", "quotient"]

# With few examples, a kink lies more rarely between two points than with many.
_EXAMPLES = 4
_STEPS = (1e-7, 1e-9)
# A product is wrong if its relative error exceeds `_WRONG`, and its error `_TIMES` times the
# difference between the two steps. A missing term is rarely as small as that: in the variance of k
# numbers it makes up a part of 1/k.
_WRONG, _TIMES = 1e-3, 4.0
# Where the loss is constant, a product consists of rounding alone. It is taken to do so where the
# loss changes by less than this along directions of the size of the weights.
_ROUNDING = 1e-10
# The limits in single precision, for networks that cannot be computed in float64.
_WRONG_IN_FLOAT32, _NOTHING = 0.1, 1e-3
_STEPS_IN_FLOAT32 = (1e-2, 3e-3)
_REAL = {tf.float32.as_datatype_enum, tf.float64.as_datatype_enum}
_NOT_SYMMETRIC = "it is not symmetric"
# Parts of the names of operations that have kinks or may have some.
_KINKS = ("Relu", "Selu", "Max", "Min", "Abs", "Select", "Sign", "Floor", "Round", "TopK", "Sort")

Product = Callable[[Tensors, Tensors], Tensors]
Difference = Callable[[Tensors, Tensors, float], Tensors]


@dataclasses.dataclass(frozen=True)
class Trial:
    """The functions that are compared to test an operator, on a few examples.

    Attributes:
        gradient: A function of the weights: the gradient of the loss, by first derivatives only.
        product: A function of (weights, two columns [2, *shape]): the operator's products.
        difference: A function of (weights, direction, step): a difference quotient, which the
            product with that direction should equal.
    """

    gradient: Callable[[Tensors], Tensors]
    product: Product
    difference: Difference


def few_examples(objective: Objective) -> Batch:
    """Return (x, y, sample_weight) with the first few examples of the first batch."""
    return tf.nest.map_structure(
        lambda t: t if t is None else cut_rows(t, 0, _EXAMPLES), objective.first_batch()
    )


def mistake(
    trial: Trial, weights: Tensors, *, double: bool, steps: tuple[float, float] = _STEPS
) -> str | None:
    """Return a phrase that says what is wrong with a product, or None if nothing was found.

    Args:
        trial: Trial. The operator to test.
        weights: list of tensors. The weights at which it is tried.
        double: bool. Whether it is computed in float64.
        steps: pair of floats. The steps of the difference quotients, the larger one first. Defaults
            to _STEPS.
    """
    # A generator of our own, so that the state of the user's generators does not change.
    rng = np.random.default_rng(20161104)
    v, u = (_direction(rng, weights) for _ in range(2))
    both = [tf.stack(pair) for pair in zip(v, u, strict=True)]
    products = trial.product(weights, both)
    pv, pu = (_flat([p[k] for p in products]) for k in range(2))
    if not (np.isfinite(pv).all() and np.isfinite(pu).all()):
        return None
    size = _norm(_flat(u)) * _norm(pv) + _norm(_flat(v)) * _norm(pu)
    size /= np.sqrt(len(pv))
    off = abs(float(_flat(u) @ pv - _flat(v) @ pu))
    if double:
        if off > _WRONG * size and size > _ROUNDING:
            return _NOT_SYMMETRIC
        return _against_differences(trial, weights, v, pv, steps)
    return _in_float32(trial, weights, v, (pv, pu), off / max(size, 1e-300))


def _in_float32(
    trial: Trial, weights: Tensors, v: Tensors, products: tuple[Vector, Vector], off: float
) -> str | None:
    if min(map(_norm, products)) < _NOTHING * _norm(_flat(trial.gradient(weights))):
        return None
    if off > _WRONG_IN_FLOAT32:
        return _NOT_SYMMETRIC
    if _has_kinks(trial, weights):
        return None
    return _against_differences(
        trial, weights, v, products[0], _STEPS_IN_FLOAT32, _WRONG_IN_FLOAT32
    )


def _has_kinks(trial: Trial, weights: Tensors) -> bool:
    """Return whether operations of a gradient may have kinks, which a traced graph shows."""
    graph = tf.function(trial.gradient, autograph=False).get_concrete_function(weights).graph
    # The library holds the bodies of loops and branches. Only operations on real numbers count:
    # those on shapes have no derivative.
    definition = graph.as_graph_def()
    nodes = [definition.node, *(function.node_def for function in definition.library.function)]
    kinds = {node.op for part in nodes for node in part if node.attr["T"].type in _REAL}
    return any(part in kind for kind in kinds for part in _KINKS)


def _against_differences(
    trial: Trial,
    weights: Tensors,
    v: Tensors,
    product: Vector,
    steps: tuple[float, float],
    wrong: float = _WRONG,
) -> str | None:
    near, nearer = (_flat(trial.difference(weights, v, step)) for step in steps)
    if not (np.isfinite(near).all() and np.isfinite(nearer).all()):
        return None
    if not near.any() or not nearer.any():
        # The gradient is constant, or rounded to fewer bits than the steps need.
        return None
    error = min(_norm(near - product), _norm(nearer - product))
    size = max(_norm(product), _norm(nearer))
    if size * _norm(_flat(v)) < _ROUNDING * np.sqrt(len(product)):
        return None
    if error > wrong * size and error > _TIMES * _norm(near - nearer):
        return "it is not the derivative of the gradient"
    return None


def _direction(rng: np.random.Generator, weights: Tensors) -> Tensors:
    """Return a random direction, in each tensor as large as the weights are there."""
    parts = []
    for weight in weights:
        values = np.asarray(weight, np.float64)
        scale = 0.01 + np.sqrt(np.square(values).sum() / max(values.size, 1))
        parts.append(tf.constant(scale * rng.standard_normal(values.shape), weight.dtype))
    return parts


def _flat(tensors: Tensors) -> Vector:
    return np.concatenate([np.asarray(t, np.float64).ravel() for t in tensors] or [np.zeros(0)])


def _norm(vector: Vector) -> float:
    return float(np.linalg.norm(vector))


def moved(weights: Tensors, direction: Tensors, step: float) -> Tensors:
    """Return w + h v."""
    return [w + step * v for w, v in zip(weights, direction, strict=True)]


def quotient(function: Callable[[float], Tensors], step: float) -> Tensors:
    """Return (F(h) - F(-h)) / 2h."""
    return [(a - b) / (2 * step) for a, b in zip(function(step), function(-step), strict=True)]
