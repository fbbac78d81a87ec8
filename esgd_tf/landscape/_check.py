"""Whether the products of an operator are right, found out when it is made.

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

# Of so many examples is a kink more rarely between two points than of all.
_EXAMPLES = 4
_STEPS = (1e-7, 1e-9)
# A product is wrong if it is off by this part of itself, and by so many times what two steps differ
# by. A term that is missing is rarely as small: of the variance of k numbers it is a part of 1/k.
_WRONG, _TIMES = 1e-3, 4.0
# By so much the loss changes along directions of the size of the weights if all that there is in a
# product is rounding, as where the loss is constant.
_ROUNDING = 1e-10
# Of single precision, where nothing better can be had.
_WRONG_IN_FLOAT32, _NOTHING = 0.1, 1e-3
_STEPS_IN_FLOAT32 = (1e-2, 3e-3)
_REAL = {tf.float32.as_datatype_enum, tf.float64.as_datatype_enum}
_NOT_SYMMETRIC = "it is not symmetric"
# Parts of the names of operations that have kinks, or may have.
_KINKS = ("Relu", "Selu", "Max", "Min", "Abs", "Select", "Sign", "Floor", "Round", "TopK", "Sort")

Product = Callable[[Tensors, Tensors], Tensors]
Difference = Callable[[Tensors, Tensors, float], Tensors]


@dataclasses.dataclass(frozen=True)
class Trial:
    """An operator at one place, on a few examples.

    Attributes:
        gradient: Of (weights); that of the loss. Asks for first derivatives only.
        product: Of (weights, two columns [2, *shape]); the operator's.
        difference: Of (weights, direction, step); what the product should be for that direction.
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
    """Say what is wrong with a product; None if nothing was found.

    Args:
        trial: Trial. What is tried.
        weights: list of tensors. The weights at which it is tried.
        double: bool. Whether it is computed in float64.
        steps: pair of floats. The steps of the difference quotients, the larger one first. Defaults
            to _STEPS.
    """
    # The signs are those of a generator of our own: seeds of the user's stay where they are.
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
    """Whether operations of a gradient may have kinks. It takes a trace to know."""
    graph = tf.function(trial.gradient, autograph=False).get_concrete_function(weights).graph
    # Also inside of loops and branches. What is done with shapes does not count.
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
        # Constant, or rounded to fewer bits than the steps need.
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
