"""The files of a walkers run: CSV as the original wrote it, one table of everything, the state.

    NAME-metadata.csv          names of the settings, and their values
    NAME-results.csv           losses of every worker
    NAME-interpolations.csv    lines; l / resolution is the coefficient of worker i
    NAME-distances.csv         distances between all workers, one line per measurement
    NAME-explorations.csv      random walks: their first and their last point
    NAME-sharpness.csv         te, tr, then the worker, the step and the steps of the ascent
    NAME-eigenvalues_K_right.csv, ..._left.csv     of worker K, from the end inward
    table.jsonl                everything, one JSON object per line with "kind" and "step"

Headers are the original's, letter by letter. (Its sharpness and eigenvalues had no headers; the
eigenvalues here have none either. "opt.lr" is the learning rate, and "evalCounter" the steps.)

A measurement's lines reach a file by one call of the system, and `state.npz`, which is replaced
when it is whole, knows how long each file was: what a killed run wrote after it is cut off when the
run goes on, and is measured again. This module loads no TensorFlow.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esgd_tf.data.npz import open_npz
from esgd_tf.runs.errors import DamagedCheckpointError, RunFolderError
from esgd_tf.runs.run_folder import replaced_when_whole

__all__ = ["STATE_FILE", "Records", "read_table"]

#: The file in a run's folder from which it is resumed.
STATE_FILE = "state.npz"

_STATS = ("cost_tr", "norm_tr", "corr_tr", "cost_te", "norm_te", "corr_te")
_RESULTS = ("i", "opt.lr", "evalCounter", "normWeights", "tr_cost", "tr_normGrad", "tr_correct",
            "te_cost", "te_normGrad", "te_correct")  # fmt: skip
_LINES = ("i", "j", "l", "k", "params[l]:norm()", *_STATS)
_WALKS = ("for the worker ", "threshold", "step_size", "W:norm()", *_STATS)
_SHARPNESS = ("te", "tr", "i", "k", "steps")
_TABLE = "table.jsonl"

Row = Mapping[str, Any]


class Records:
    """Writes the rows of an experiment, each to the table and to the CSV file of its kind.

    Args:
        folder: Path. The folder of the run.
        name: str. The beginning of the names of CSV files.
        n_workers: int >= 0. The number n of stochastic workers; workers are numbered 0 ... n.
        resolution: int >= 1. Points of a line per unit of its coefficient.
    """

    def __init__(self, folder: Path, name: str, n_workers: int, resolution: int) -> None:
        self._folder, self._name = folder, name
        self._n_workers, self._resolution = n_workers, resolution
        self.state_file = folder / STATE_FILE

    # ---- rows ---------------------------------------------------------------------------------

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Remove the files of an earlier run of this name, and write the settings."""
        for path in self._files():
            path.unlink()
        self.state_file.unlink(missing_ok=True)
        with replaced_when_whole(self._csv("metadata")) as partial:
            partial.write_text(_lines([list(settings), list(settings.values())]))
        self.add([{"kind": "settings", "step": 0, **settings}])

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows to the table, and to the CSV files.

        Args:
            rows: sequence of dicts. The rows, each with "kind" and "step".

        Raises:
            OSError: A file cannot be written; it keeps its former length.
        """
        parts: dict[str, list[list[Any]]] = {}
        for row in rows:
            for stem, cells in self._cells(row):
                parts.setdefault(stem, []).append(cells)
        for stem, lines in parts.items():
            path = self._csv(stem)
            header = [] if path.exists() else self._header(stem)
            _append(path, _lines([*header, *lines]))
        text = "".join(json.dumps(_plain(row)) + "\n" for row in rows)
        _append(self._folder / _TABLE, text)

    def _header(self, stem: str) -> list[list[str]]:
        if stem == "distances":
            ids = range(self._n_workers + 1)
            return [[f"{j}_to_{i}" for i in ids for j in ids]]
        known = {
            "results": _RESULTS,
            "interpolations": _LINES,
            "explorations": _WALKS,
            "sharpness": _SHARPNESS,
        }
        return [list(known[stem])] if stem in known else []

    def _cells(self, row: Row) -> Iterator[tuple[str, list[Any]]]:
        """Yield the CSV lines of a row, each with the file it belongs to."""
        kind, step = row["kind"], row["step"]
        if kind == "stats":
            yield "results", [row["worker"], row["lr"], step, row["norm"], *_six(row)]
        elif kind == "distances":
            yield "distances", [d for line in row["distances"] for d in line]
        elif kind == "line" and row["line"] == row["main_line"]:
            for n, c in enumerate(row["coefficients"]):
                at = {s: {k: row[s][k][n] for k in _KEYS} for s in ("train", "test")}
                number = round(c * self._resolution)
                yield (
                    "interpolations",
                    [row["i"], row["j"], number, step, row["norm"][n], *_six(at)],
                )
        elif kind == "walk":
            for point in (row["start"], row["end"]):
                cells = [row["worker"], row["threshold"], row["step_size"], point["norm"]]
                yield "explorations", [*cells, *_six(point)]
        elif kind == "sharpness":
            cells = [row["test"], row["train"], row["worker"], step, row["steps"]]
            yield "sharpness", cells
        elif kind == "spectrum":
            for side in ("right", "left"):
                for value in row[side]:
                    yield f"eigenvalues_{row['worker']}_{side}", [value]

    # ---- state --------------------------------------------------------------------------------

    def save(self, arrays: Sequence[NDArray[Any]], extra: Mapping[str, Any]) -> None:
        """Write the state from which the run can be resumed.

        Args:
            arrays: sequence of arrays. The state of the workers.
            extra: mapping of JSON values. The rest of the state.
        """
        note = {**extra, "lengths": {p.name: p.stat().st_size for p in self._files()}}
        text = np.frombuffer(json.dumps(note).encode(), np.uint8)
        named = {f"array_{k}": np.asarray(a) for k, a in enumerate(arrays)}
        with replaced_when_whole(self.state_file) as partial:
            np.savez(partial, note=text, **named)  # type: ignore[arg-type]

    def restore(self) -> tuple[list[NDArray[Any]], dict[str, Any]]:
        """Return the last saved state, and cut off what was written after it.

        Raises:
            RunFolderError: No state was saved, or a file has become shorter since.
            DamagedCheckpointError: The state is damaged.
        """
        if not self.state_file.exists():
            raise RunFolderError(
                f"{self._folder} holds no state to go on from: start the run without -rl."
            )
        try:
            with open_npz(self.state_file) as stored:
                note = json.loads(stored["note"].tobytes())
                arrays = [stored[f"array_{k}"] for k in range(len(stored.files) - 1)]
            lengths = dict(note.pop("lengths"))
        except (OSError, ValueError, KeyError, RecursionError, AttributeError, TypeError) as error:
            raise DamagedCheckpointError(f"{self.state_file} is damaged ({error}).") from None
        for path in self._files():
            length = lengths.pop(path.name, 0)
            if path.stat().st_size < length:
                lengths[path.name] = length
                break
            if length:
                os.truncate(path, length)
            else:
                path.unlink()
        if lengths:
            raise RunFolderError(
                f"{self._folder / next(iter(lengths))} has lost lines that the state counts on: "
                "start the run anew."
            )
        return arrays, note

    def _csv(self, stem: str) -> Path:
        return self._folder / f"{self._name}-{stem}.csv"

    def _files(self) -> list[Path]:
        found = sorted(self._folder.glob(f"{_escaped(self._name)}-*.csv"))
        table = self._folder / _TABLE
        return [*found, table] if table.exists() else found


def read_table(folder: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a run's table.

    Raises:
        RunFolderError: The table is missing or damaged.
    """
    path = Path(folder) / _TABLE
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if not all(isinstance(row, dict) and {"kind", "step"} <= row.keys() for row in rows):
            raise ValueError("a line is no row of measurements")
        return rows
    except FileNotFoundError:
        raise RunFolderError(f"{folder} is no walkers run: it has no {_TABLE}.") from None
    except NotADirectoryError:
        raise RunFolderError(f"{folder} is a file, not the folder of a walkers run.") from None
    except RecursionError:
        raise RunFolderError(f"{path} is damaged (a line is nested too deep).") from None
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged ({error}).") from None


_KEYS = ("loss", "gradient_norm", "correct")


def _six(row: Row) -> list[Any]:
    return [row[split][key] for split in ("train", "test") for key in _KEYS]


def _lines(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """Return a value that strict JSON can hold: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _append(path: Path, text: str) -> None:
    """Append to a file completely or not at all."""
    content = text.encode()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        length = os.fstat(file).st_size
        try:
            written = os.write(file, content)
        except OSError as error:
            error.filename = str(path)
            raise
        if written < len(content):
            os.ftruncate(file, length)
            raise OSError(28, "No space left on device", str(path))
    finally:
        os.close(file)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
