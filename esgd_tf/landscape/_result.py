"""What every measurement returns: a frozen record that can be written down and drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Result", "axes"]


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The base of all results. Arrays in them are read-only."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value = value.copy() if value.flags.writeable and not value.flags.owndata else value
                value.setflags(write=False)
                object.__setattr__(self, field.name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as numbers, strings, lists and dictionaries, as JSON wants them."""
        return {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.metadata.get("written", True)
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the result.

        Args:
            ax: Matplotlib axes to draw on; None makes new ones.

        Returns:
            The axes.
        """
        raise NotImplementedError


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def axes(ax: Axes | None) -> Axes:
    """Return `ax`, or new axes on a figure of their own."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    return ax
