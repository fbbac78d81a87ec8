"""Checks of constructor arguments: one clear sentence for every bad value."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def real(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> float:
    """Return `value` as a float, or raise a ValueError that names the argument and its range."""
    wanted = ["a finite number"]
    if at_least is not None:
        wanted.append(f"at least {at_least:g}")
    if above is not None:
        wanted.append(f"above {above:g}")
    if at_most is not None:
        wanted.append(f"at most {at_most:g}")
    if below is not None:
        wanted.append(f"below {below:g}")
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if (
            math.isfinite(number)
            and (at_least is None or number >= at_least)
            and (above is None or number > above)
            and (at_most is None or number <= at_most)
            and (below is None or number < below)
        ):
            return number
    raise ValueError(f"`{name}` must be {', '.join(wanted)}; got {value!r}.")


def integer(
    name: str, value: Any, *, at_least: int, at_most: int | None = None, below: int | None = None
) -> int:
    """Return `value` as an int, or raise a ValueError that names the argument and its range."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
        if (
            number >= at_least
            and (at_most is None or number <= at_most)
            and (below is None or number < below)
        ):
            return number
    wanted = f"an integer of at least {at_least}"
    if at_most is not None:
        wanted += f" and at most {at_most:,}"
    if below is not None:
        wanted += f" and below {below}"
    raise ValueError(f"`{name}` must be {wanted}; got {value!r}.")


def boolean(name: str, value: Any) -> bool:
    """Return `value` as a bool, or raise a ValueError that names the argument."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise ValueError(f"`{name}` must be True or False; got {value!r}.")


def choice(name: str, value: Any, choices: Sequence[str | None]) -> None:
    """Raise a ValueError that names the argument and the choices unless `value` is one of them."""
    # An array is no choice, and would compare entry by entry.
    if not (value is None or isinstance(value, str)) or value not in choices:
        *others, last = (str(one) for one in choices)
        wanted = f"{', '.join(others)} or {last}"
        raise ValueError(f"`{name}` must be {wanted}; got {value!r}.")


def keras_options(options: Mapping[str, Any]) -> None:
    """Check the arguments of every Keras optimizer that Keras takes without looking.

    Raises:
        ValueError: An argument is out of range.
    """
    for name in ("clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor"):
        if options.get(name) is not None:
            real(name, options[name], above=0)
    if options.get("gradient_accumulation_steps") is not None:
        integer("gradient_accumulation_steps", options["gradient_accumulation_steps"], at_least=2)
    if options.get("ema_overwrite_frequency") is not None:
        integer("ema_overwrite_frequency", options["ema_overwrite_frequency"], at_least=1)
    if "ema_momentum" in options:
        real("ema_momentum", options["ema_momentum"], at_least=0)
    if "use_ema" in options:
        boolean("use_ema", options["use_ema"])
