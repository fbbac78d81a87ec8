"""Random vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "random_signs", "random_unit"]

Array = NDArray[np.float64]


def random_unit(rng: np.random.Generator, n: int) -> Array:
    """Return a vector [n] of length 1, uniform over directions."""
    v = rng.standard_normal(n)
    return v / np.linalg.norm(v)


def random_signs(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return an array of 1 and -1, each with probability 1/2."""
    return rng.choice([-1.0, 1.0], shape)
