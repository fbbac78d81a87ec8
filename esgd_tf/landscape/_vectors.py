"""Random vectors, a check that products are finite, and standard errors of means."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Array", "finite", "random_signs", "random_unit", "standard_error", "student_factor"]

Array = NDArray[np.float64]


def random_unit(rng: np.random.Generator, n: int) -> Array:
    """Return a vector [n] of length 1, uniform over directions."""
    v = rng.standard_normal(n)
    return v / np.linalg.norm(v)


def random_signs(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return an array of 1 and -1, each with probability 1/2."""
    return rng.choice([-1.0, 1.0], shape)


def finite(products: Array) -> Array:
    """Return products of a curvature operator as they are, or refuse them.

    Raises:
        ValueError: One of the numbers is NaN or infinite.
    """
    if not np.all(np.isfinite(products)):
        raise ValueError(
            "A product with the curvature operator is not finite (NaN or infinite), though the "
            "loss is: a layer or the loss has no finite second derivative at these weights (a "
            "root, a norm or a logarithm at 0?), or its numbers overflow; leave it out with "
            "`variables`, or move away from there with `at`."
        )
    return products


@functools.cache
def student_factor(count: int) -> float:
    """Return by how much the error of a mean of few numbers is widened.

    The standard deviation of m normal numbers is itself uncertain, so that two standard errors of
    their mean hold the truth in 95.4 of 100 only for m → ∞ (in 70 for m = 2). With Student's t,

        factor = t(0.977, m - 1) / 2,

    two widened errors hold it in 95.4 of 100 for every m. It is 7.0, 2.3, 1.3 and 1.05 for m = 2,
    3, 6 and 30. Numbers that are skewed, such as squares of few normal ones, are held less often.

    Args:
        count: int >= 0. m. Fewer than two samples have no error: NaN.
    """
    from scipy.stats import t

    if count < 2:
        return math.nan
    return float(t.ppf((1 + math.erf(math.sqrt(2))) / 2, count - 1)) / 2


def standard_error(values: ArrayLike, axis: int = 0) -> Any:
    """Return the standard error of the mean along an axis, widened by `student_factor`.

    Args:
        values: array. Independent samples along the axis; NaN in them makes NaN, and so does a
            single one.
        axis: int. The axis of the samples. Defaults to 0.
    """
    values = np.asarray(values, np.float64)
    count = values.shape[axis]
    if count < 2:
        return np.full(np.delete(values.shape, axis), np.nan)[()]
    return student_factor(count) * values.std(axis=axis, ddof=1) / math.sqrt(count)
