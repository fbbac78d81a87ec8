"""`compare --measures`: do the measures of `landscape` rank runs as their test errors do?

It reads landscape.json, in which `landscape` keeps what it measured of each run. No TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from esgd_tf._files import expanded
from esgd_tf.cli.rank_correlation import RESAMPLES, Correlation, correlation
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.stored_run import StoredRun

__all__ = ["correlation_tables", "read_measures"]

_FEWEST = 4
_SEED = 0
_HEADER = ("measure", "test error", "95 %", "gap", "95 %")

#: (measure, split, metric, at): what tells a number of a run from its others.
_Key = tuple[str, str, str, str]


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What `landscape` found of a run.

    Attributes:
        numbers: Its numbers, by measure, split, metric and place.
        gap: Its test error less its training error in percent, both by the network at one place;
            None if no measure took both.
    """

    numbers: Mapping[_Key, float]
    gap: float | None


def read_measures(runs: Sequence[StoredRun], folder: str) -> list[_Measured]:
    """Return what `landscape` found of each run.

    Args:
        runs: sequence of StoredRun. The runs.
        folder: str. The folder that it wrote.

    Raises:
        RunFolderError: The runs are too few, or one has no measures there.
    """
    if len(runs) < _FEWEST:
        raise RunFolderError(
            f"--measures needs {_FEWEST} runs or more to rank, and there are {len(runs)}."
        )
    path = Path(expanded(folder)) / "landscape.json"
    entries = _entries(path)
    measured = []
    for run in runs:
        own = [e for e in entries if _is_of(e, run)]
        if not own:
            raise RunFolderError(
                f"{path} has no measures of {run.name}: measure all runs together by `python3 -m "
                "esgd_tf landscape`, and name its --out by --landscape."
            )
        numbers = {
            (e["measure"], str(split), str(metric), _place(at)): float(value)
            for e in own
            for split, metric, at, value, _ in e["numbers"]
            if value is not None
        }
        measured.append(_Measured(numbers, _gap(own)))
    if not set.intersection(*(set(m.numbers) for m in measured)):
        raise RunFolderError(
            f"{path} has no measure that was taken of all these runs: measure them together."
        )
    return measured


def correlation_tables(
    measured: Sequence[Any],
    errors: Sequence[float],
    training: Sequence[float],
    show: Callable[[Sequence[str], Sequence[Sequence[str]]], str],
) -> str:
    """Return the table of rank correlations, with words above and below it.

    Args:
        measured: sequence. What `read_measures` returned.
        errors: sequence of floats. The test error of each run, in percent.
        training: sequence of floats. The training error of each run as history.csv has it, in
            percent; NaN where it has none.
        show: callable. Makes a table of a header and rows.
    """
    gaps = [m.gap for m in measured]
    if all(gap is not None for gap in gaps):
        how = "the gap is that of the images that `landscape` measured on, at one network"
    else:
        gaps = [test - train for test, train in zip(errors, training, strict=True)]
        how = (
            "the gap takes the training error of the last epoch from history.csv, a mean over its "
            "steps (for that of the trained network let `landscape` take --local_energy)"
        )
    common = [
        key for key in measured[0].numbers if all(key in m.numbers for m in measured)
    ]  # in the order of the report
    rows, constant = [], 0
    for key in common:
        values = [m.numbers[key] for m in measured]
        against = [correlation(values, other, seed=_SEED) for other in (errors, gaps)]
        if all(math.isnan(c.tau) for c in against):
            constant += 1
            continue
        rows.append((_words(key), *(cell for c in against for cell in _cells(c))))
    title = (
        f"Kendall's tau of each measure with test error and generalisation gap over "
        f"{len(measured)} runs: 1 where it ranks them alike, -1 in opposite order; {how}"
    )
    below = (
        f"95 %: percentiles of {RESAMPLES:,} samples of the runs with replacement, seed {_SEED}. "
        "Runs that differ in the seed alone are not independent evidence for a measure."
    )
    if constant:
        below += f" Left out: {constant} numbers that are the same in all runs."
    left = len(set().union(*(m.numbers for m in measured))) - len(common)
    if left:
        below += f" Left out: {left} numbers that not all runs have."
    words = (textwrap.fill(part, 80) for part in (title, below))
    return "\n\n".join([next(words), show(_HEADER, rows), next(words)])


def _entries(path: Path) -> list[dict[str, Any]]:
    """Return the results in landscape.json, but for those of pairs of runs.

    Raises:
        RunFolderError: It is not there, damaged, or of another version.
    """
    try:
        results = json.loads(path.read_text())["results"]
    except FileNotFoundError:
        raise RunFolderError(
            f"There is no {path}: measure the runs by `python3 -m esgd_tf landscape`, and name its "
            "--out by --landscape."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunFolderError(f"{path} is damaged ({reason}).") from None
    needed = {"run", "label", "seed", "optimizer", "measure", "result", "numbers"}
    if not isinstance(results, list) or not all(
        isinstance(e, dict) and needed <= set(e) and _has_rows(e["numbers"]) for e in results
    ):
        raise RunFolderError(
            f"{path} was written by another version of `landscape`: measure the runs again."
        )
    return results


def _has_rows(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(
        isinstance(row, list)
        and len(row) == 5
        and (row[3] is None or isinstance(row[3], int | float))
        for row in numbers
    )


def _is_of(entry: Mapping[str, Any], run: StoredRun) -> bool:
    """Whether a result is of a run: of the same folder, or of one of its name that has moved."""
    stored = Path(entry["run"])
    if stored.exists() and stored.resolve() != run.folder.path.resolve():
        return False
    known = (entry["label"], entry["seed"], entry["optimizer"])
    return known == (run.name, run.run["seed"], run.experiment["optimizer"])


def _gap(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the generalisation gap in percent, from a measure that took both splits."""
    for entry in entries:
        try:
            reference = entry["result"]["reference"]
            return 100.0 * (reference["test"]["error"] - reference["train"]["error"])
        except (KeyError, TypeError):
            continue
    return None


def _place(at: Any) -> str:
    return f"{at:g}" if isinstance(at, int | float) else str(at)


def _words(key: _Key) -> str:
    """Return what a number is called, in short."""
    measure, split, metric, at = key
    return ", ".join(part for part in (measure, split, metric, at) if part)


def _cells(found: Correlation) -> tuple[str, str]:
    if math.isnan(found.tau):
        return "-", "-"
    return f"{found.tau:+.2f}", f"{found.low:+.2f} {found.high:+.2f}"
