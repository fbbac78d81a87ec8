"""The risk that bounds speak of: a mean, over independent examples, of errors from 0 to 1."""

from __future__ import annotations

import math

from esgd_tf.landscape._objective import Objective
from esgd_tf.landscape._types import Vector

__all__ = ["checked_examples", "risk_at"]

# Fewer examples than Maurer's theorem is proven for.
_FEWEST = 8
# By how much the rounding of a mean may leave [0, 1].
_ROUNDING = 1e-6


def checked_examples(objective: Objective) -> int:
    """Return m, the number of examples.

    Raises:
        ValueError: They are too few, or weighted.
    """
    if objective.first_batch()[2] is not None:
        raise ValueError(
            "The data have sample weights, and a bound is on the error of independent examples "
            "that all count the same: leave the weights out."
        )
    m = int(objective.count)
    if not objective.has_examples or m < _FEWEST:
        raise ValueError(f"A bound needs at least {_FEWEST} examples; the data have {m}.")
    return m


def risk_at(objective: Objective, weights: Vector) -> float:
    """Return the mean error over the examples; NaN where the network gives NaN.

    Args:
        objective: Objective. Has the error as a metric; with a list of weights, as its loss.
        weights: array of shape [size]. The weights.

    Raises:
        ValueError: It is outside [0, 1].
    """
    found = objective.evaluate(weights)
    value = float(found["error"] if "error" in found else found["loss"])
    if value < -_ROUNDING or value > 1 + _ROUNDING:
        raise ValueError(
            f"A bound is on an error from 0 to 1, and the loss function gave {value:g}: give a "
            "function that returns the mean error of a batch."
        )
    return value if math.isnan(value) else min(max(value, 0.0), 1.0)
