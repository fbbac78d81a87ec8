"""The Gaussian-smoothed density of nodes, which measures and stored tables share."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def bandwidth_for(nodes: ArrayLike) -> float:
    """Return the standard deviation of the Gaussian: 1 % of the range of the nodes."""
    return float(0.01 * np.ptp(nodes)) or 1e-3


def bells(nodes: ArrayLike, grid: ArrayLike, bandwidth: float) -> Array:
    """Return the density of each node at each point of the grid, [points, nodes]."""
    z = (np.asarray(grid, np.float64)[:, None] - np.asarray(nodes, np.float64)) / bandwidth
    return np.exp(-0.5 * z**2) / (bandwidth * np.sqrt(2 * np.pi))


def grid_for(nodes: ArrayLike, points: int = 1000, *, margin: float = 0.05) -> Array:
    """Return a grid over the nodes.

    Args:
        nodes: array. Where the density has its nodes.
        points: int >= 2. The number of points. Defaults to 1000.
        margin: float >= 0. The part of the grid beyond the nodes on either side, as a fraction of
            their range. Defaults to 0.05.
    """
    beyond = margin * np.ptp(nodes)
    if margin > 0 and beyond == 0:
        beyond = 1e-2
    return np.linspace(np.min(nodes) - beyond, np.max(nodes) + beyond, points)


def floor_for(nodes: ArrayLike, size: int) -> float:
    """Return the density below which a plot ends: a tenth of one of `size` eigenvalues."""
    return float(0.1 / size / max(np.ptp(nodes), 1e-12))
