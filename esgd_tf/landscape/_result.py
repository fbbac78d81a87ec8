"""What every measurement returns: a frozen record that can be written down and plotted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from esgd_tf._extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["STYLES", "Result", "Row", "axes"]

#: Of the curves of several splits, in their order.
STYLES = (".-", ".--", ".:")


class Row(NamedTuple):
    """One number of a result, for long and tidy tables.

    Attributes:
        split: The name of the data; "" where there are no several.
        metric: What the number is.
        at: Where it was measured: a sigma, a rank, a step, two coordinates. "" where there is none.
        value: The number.
        standard_error: Its standard error; of an eigenvalue the residual. "" where there is none.
    """

    split: str
    metric: str
    at: float | str
    value: float
    standard_error: float | str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The base of all results. Arrays in them are read-only.

    Attributes:
        measured_at: Whose weights were measured: "weights", those that the model held or that were
            given; "anchor", of a model that `EntropySGD` trains and that is between two outer
            updates; "mean", inside `evaluate_at(model, "mean")`; "center", of `Replicas`.
    """

    measured_at: str = dataclasses.field(default="weights", kw_only=True)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))

    def to_dict(self) -> dict[str, Any]:
        """Return the result as numbers, strings, lists and dictionaries.

        What was not measured is NaN in it, for which JSON proper has no word.
        """
        return {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.metadata.get("written", True)
        }

    def rows(self) -> Iterator[Row]:
        """Yield the numbers of the result, one a row; what was not measured has none."""
        raise NotImplementedError

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot the result.

        Args:
            ax: matplotlib.axes.Axes. What to plot on. Defaults to None, which makes new ones.
            color: str. A color of Matplotlib's. Defaults to None, which takes the next ones.
            label: str. A name for the legend. Defaults to None, which shows only what tells the
                parts of the result from each other.

        Returns:
            The axes.
        """
        raise NotImplementedError


def _frozen(value: Any) -> Any:
    """Return a value with read-only arrays; its own, since the caller may write to theirs."""
    if isinstance(value, np.ndarray):
        if value.flags.writeable or not value.flags.owndata:
            value = value.copy(order="K")
            value.setflags(write=False)
        return value
    if isinstance(value, dict):
        return {k: _frozen(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_frozen(v) for v in value)
    return value


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
        require("A plot", "landscape", "matplotlib")
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    return ax
