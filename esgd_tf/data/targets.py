"""Targets for the cross-entropy that give weight to more than one class."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from esgd_tf.data.errors import DataError

if TYPE_CHECKING:
    import tensorflow as tf
    from numpy.typing import ArrayLike

__all__ = ["soft_labels"]


def soft_labels(labels: ArrayLike | tf.Tensor, classes: int, p: float, q: float) -> tf.Tensor:
    """Return targets for the cross-entropy: p for the class of the label and q for all others.

    The released elementary-walkers code trains with p = 0.91 and q = 0.01 for 10 classes, and
    evaluates without them. p = 1 and q = 0 give one-hot labels.

    Args:
        labels: array or tensor of integers, of shape [n]. The classes, in 0 ... K - 1.
        classes: int >= 1. K, the number of classes.
        p: float in [0, 1]. The weight of the true class.
        q: float in [0, 1]. The weight of every other class; p + (K - 1) q is 1.

    Returns:
        A float32 tensor [n, K].

    Raises:
        DataError: p and q are no probabilities. TensorFlow's cross-entropy from logits assumes
            that a target sums to 1: for any other sum, its gradient is not that of its value.
    """
    import tensorflow as tf  # noqa: PLC0415 - takes seconds

    in_range = 0 <= p <= 1 and 0 <= q <= 1
    if not in_range or not math.isclose(p + (classes - 1) * q, 1.0, abs_tol=1e-6):
        raise DataError(
            f"Soft labels must sum to 1, and {p:g} once and {q:g} {classes - 1} times do not: "
            "choose p from 0 to 1 and q = (1 - p) / (classes - 1)."
        )
    return tf.one_hot(labels, classes, on_value=float(p), off_value=float(q), dtype=tf.float32)
