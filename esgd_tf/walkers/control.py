"""Hyperparameters that can change during a run, and schedules of such changes.

A change is (step, name, value): after that many steps, the value takes effect.

    lr, momentum, alpha     as in `Settings`
    n_steps                 the total number of steps of the run
    walk                    the number of a worker, from which one random walk is measured
    quit                    true: the run ends after its final measurements

This module loads no TensorFlow.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from esgd_tf.walkers.settings import MOST, highest_alpha

__all__ = ["HELD", "NAMES", "Change", "ControlError", "checked", "parsed", "read_schedule"]

#: Names with a value at every step; "walk" and "quit" are requests that act once.
HELD = ("lr", "momentum", "alpha", "n_steps")
NAMES = (*HELD, "walk", "quit")


class ControlError(ValueError):
    """A change is invalid; the message is one sentence without its full stop."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of a hyperparameter.

    Attributes:
        name: One of `NAMES`.
        value: Its new value.
        source: Its origin: "schedule", "control.json" or "prompt".
    """

    name: str
    value: Any
    source: str


def checked(name: str, value: Any, *, n_workers: int, coupling: str = "elastic") -> Any:
    """Check the value of a change and convert it to the right type.

    Args:
        name: str. One of `NAMES`.
        value: float, bool or str. A number, a boolean, or the text of either.
        n_workers: int >= 0. The number n of stochastic workers; workers are numbered 0 ... n.
        coupling: str. The coupling of the workers, which decides the largest alpha. Defaults
            to 'elastic'.

    Raises:
        ControlError: There is no such name, or the value is out of range.
    """
    if name not in NAMES:
        raise ControlError(f"there is no {name!r}; there are {', '.join(NAMES)}")
    if name == "quit":
        if value in (True, "true", "yes", "1", "") and value is not None:
            return True
        if value in (False, "false", "no", "0"):
            return False
        raise ControlError(f"quit must be true or false, not {value!r}")
    number = _number(name, value)
    if name in ("n_steps", "walk"):
        if number != int(number) or abs(number) > MOST:
            raise ControlError(f"{name} must be a whole number, at most {MOST}, not {value}")
        number = int(number)
    if name == "walk" and not 0 <= number <= n_workers:
        raise ControlError(f"walk must name a worker, 0 ... {n_workers}, not {value}")
    if name == "n_steps" and number < 1:
        raise ControlError(f"n_steps must be at least 1, not {value}")
    if name == "lr" and number <= 0:
        raise ControlError(f"lr must be above 0, not {value}")
    if name == "momentum" and not 0 <= number < 1:
        raise ControlError(f"momentum must be at least 0 and below 1, not {value}")
    if name == "alpha":
        most = highest_alpha(coupling, n_workers)
        if not 0 <= number <= most:
            limit = f" and at most {most:g}" if most < math.inf else ""
            raise ControlError(f"alpha must be at least 0{limit}, not {value}")
    return number


def read_schedule(path: str | Path) -> tuple[tuple[int, str, Any], ...]:
    """Read a schedule of changes.

    A `.json` file holds a list of [step, name, value] or of {"step": ..., "name": ..., "value":
    ...}; any other is CSV with the columns step, name, value (a first line that names them may be
    left out).

    Returns:
        The changes by step; changes at one step are in the order of the file.

    Raises:
        ControlError: The file is missing or an entry is invalid; the message says which entry.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text()
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ControlError(f"{path} is no text") from None
    rows = _json_rows(path, text) if path.suffix == ".json" else _csv_rows(path, text)
    changes = []
    for place, (step, name, value) in rows:
        try:
            at = _number("step", step)
            if at < 0 or at != int(at):
                raise ControlError(f"step must be a whole number, 0 or more, not {step}")
            if at > MOST:
                raise ControlError(f"step must be at most {MOST}, not {step}")
            if name not in NAMES:
                raise ControlError(f"there is no {name!r}; there are {', '.join(NAMES)}")
            # Checks that depend on the workers and the coupling follow later, when these are known.
            good = checked(name, value, n_workers=10**9, coupling="rsgd")
        except ControlError as error:
            raise ControlError(f"{path}, {place}: {error}") from None
        changes.append((int(at), str(name), good))
    return tuple(sorted(changes, key=lambda change: change[0]))


def parsed(text: str) -> Any:
    """Parse a JSON text.

    Args:
        text: str. The JSON.

    Raises:
        ValueError: The text is not valid JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _json_rows(path: Path, text: str) -> list[tuple[str, tuple[Any, Any, Any]]]:
    try:
        entries = parsed(text)
    except ValueError as error:
        raise ControlError(f"{path} is no JSON ({error})") from None
    if not isinstance(entries, list):
        raise ControlError(f"{path} must hold a list of changes")
    rows = []
    for number, given in enumerate(entries, start=1):
        named = isinstance(given, dict) and set(given) == {"step", "name", "value"}
        entry = [given["step"], given["name"], given["value"]] if named else given
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[1], str):
            raise ControlError(f"{path}, entry {number}: must have a step, a name and a value")
        rows.append((f"entry {number}", (entry[0], entry[1], entry[2])))
    return rows


def _csv_rows(path: Path, text: str) -> list[tuple[str, tuple[Any, Any, Any]]]:
    rows = []
    for number, line in enumerate(csv.reader(text.splitlines()), start=1):
        cells = [cell.strip() for cell in line]
        if not any(cells) or (number == 1 and cells == ["step", "name", "value"]):
            continue
        if len(cells) != 3:
            raise ControlError(f"{path}, line {number}: must have a step, a name and a value")
        rows.append((f"line {number}", (cells[0], cells[1], cells[2])))
    return rows


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ControlError(f"{name} must be a number, not {value!r}")
    return number
