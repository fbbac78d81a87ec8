"""Checks of constructor arguments: one clear sentence for every bad value."""

from __future__ import annotations

import math
import numbers
from typing import Any


def real(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Return `value` as a float, or raise a ValueError that names the argument and its range."""
    wanted = ["a finite number"]
    if at_least is not None:
        wanted.append(f"at least {at_least:g}")
    if above is not None:
        wanted.append(f"above {above:g}")
    if below is not None:
        wanted.append(f"below {below:g}")
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if (
            math.isfinite(number)
            and (at_least is None or number >= at_least)
            and (above is None or number > above)
            and (below is None or number < below)
        ):
            return number
    raise ValueError(f"`{name}` must be {', '.join(wanted)}; got {value!r}.")


def integer(name: str, value: Any, *, at_least: int, below: int | None = None) -> int:
    """Return `value` as an int, or raise a ValueError that names the argument and its range."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
        if number >= at_least and (below is None or number < below):
            return number
    wanted = f"an integer of at least {at_least}"
    if below is not None:
        wanted += f" and below {below}"
    raise ValueError(f"`{name}` must be {wanted}; got {value!r}.")
