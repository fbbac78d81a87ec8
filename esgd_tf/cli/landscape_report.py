"""Output of `landscape`: tables in 80 columns, JSON, CSV and pictures."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esgd_tf._files import replaced_when_whole
from esgd_tf.cli.measures.bench import Measured
from esgd_tf.cli.measures.measure import Entry, Found, Measure, Shown
from esgd_tf.cli.tables import kind_of, label_of
from esgd_tf.landscape import Result, Row
from esgd_tf.runs.figures import literal
from esgd_tf.runs.stored_run import StoredRun

__all__ = ["Report"]

_COLUMNS = ("run", "measure", "split", "metric", "at", "value", "standard_error")


class Report:
    """Collects results; runs that differ only in the seed share a color.

    Args:
        runs: sequence of StoredRun. The runs that are measured.
        fv: flags.FlagValues. The flags.
        plan: sequence of pairs of str. The measurements to take: the label of a run or of two,
            and the measure.
        out: Path. The folder for the files.

    Attributes:
        failed: The label, the measure and the reason for each failed measurement or plot.
    """

    def __init__(
        self, runs: Sequence[StoredRun], fv: Any, plan: Sequence[tuple[str, str]], out: Path
    ) -> None:
        self._runs, self._fv, self._plan, self._out = list(runs), fv, list(plan), out
        self._entries: list[Entry] = []
        self.failed: list[tuple[str, str, str]] = []
        self._kinds = list(dict.fromkeys(kind_of(run) for run in runs))

    def add(self, run: StoredRun, measure: Measure, result: Found, label: str) -> None:
        """Add a result of a run."""
        self._entries.append(Entry(run, label, measure, result))

    def fail(self, label: str, measure: str, reason: str) -> None:
        """Record a measure that failed."""
        self.failed.append((label, measure, reason))

    def failures(self) -> str:
        """Return a sentence about what failed."""
        (label, measure, reason), *more = self.failed
        others = f" {len(more)} more failed." if more else ""
        return (
            f"--{measure} of {label} failed: {reason.rstrip('.')}.{others} The other measures are "
            f"in {self._out}."
        )

    def header(self, network: Measured) -> str:
        """Return the lines about the data of the coming measurements."""
        data = network.network.images.name
        count = {split: len(y) for split, (_, y) in network.data.items()}
        return (
            f"{data}: {count['train']:,} training and {count['test']:,} test images, mean cross "
            f"entropy;\nHessian, sharpness and paths on the {self._fv.split}ing images"
        ).replace("testing", "test")

    # ---- tables -------------------------------------------------------------------------------

    def tables(self) -> str:
        """Return a table for each measure."""
        parts = []
        for measure in dict.fromkeys(e.measure for e in self._entries):
            entries = [e for e in self._entries if e.measure is measure]
            parts.append(measure.table(entries, self._fv))
        return "\n" + "\n\n".join(parts)

    # ---- files --------------------------------------------------------------------------------

    def save(self) -> list[Path]:
        """Write landscape.json and landscape.csv, with what has been measured so far.

        Returns:
            The paths.
        """
        self._out.mkdir(parents=True, exist_ok=True)
        written = [self._out / "landscape.json", self._out / "landscape.csv"]
        flags = {name: self._fv[name].value for name in self._fv}
        reasons = {(label, measure): reason for label, measure, reason in self.failed}
        # They are counted, since two runs may have the same name.
        done = Counter((e.label, e.measure.name) for e in self._entries)
        missing = list((Counter(self._plan) - done).elements())
        document = {
            "settings": {k: v for k, v in flags.items() if k not in ("help", "out", "debug")},
            # The missing measures are listed, so that half a report does not look whole.
            "missing": [
                {"label": label, "measure": measure, "reason": reasons.get((label, measure))}
                for label, measure in missing
            ],
            "results": [
                {
                    "run": str(e.run.folder.path),
                    "label": e.label,
                    "seed": e.run.run["seed"],
                    "optimizer": e.run.experiment["optimizer"],
                    "measure": e.measure.name,
                    "result": _plain(e.result),
                    # For `compare --measures`, which knows nothing of measures.
                    "numbers": [list(_python(row)) for row in e.measure.numbers(e)],
                }
                for e in self._entries
            ],
        }
        with replaced_when_whole(written[0]) as partial:
            partial.write_text(json.dumps(_without_nan(document), indent=1, allow_nan=False) + "\n")
        with replaced_when_whole(written[1]) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for e in self._entries:
                writer.writerows((e.label, e.measure.name, *row) for row in e.measure.rows(e))
        return written

    def plot(self) -> list[Path]:
        """Write a picture of each measure.

        Returns:
            The paths.
        """
        written = []
        for measure in dict.fromkeys(e.measure for e in self._entries):
            path = self._out / f"{measure.name}.png"
            entries = [e for e in self._entries if e.measure is measure]
            try:
                figure = measure.figure(list(self._shown(entries)))
            except ValueError as error:  # there is no number to plot
                self.fail("the picture", measure.name, str(error))
                continue
            with replaced_when_whole(path) as partial:
                figure.savefig(partial, dpi=150)
            written.append(path)
        return written

    def _shown(self, entries: list[Entry]) -> Iterator[Shown]:
        """Yield results with a color for each kind of run, and a label for the first of it."""
        named: set[str] = set()
        of_pairs = entries[0].measure.is_of_pairs
        for number, e in enumerate(entries):
            kind = e.label if of_pairs else kind_of(e.run)
            of_kind = [r for r in self._runs if kind_of(r) == kind]
            label = e.label
            if len(of_kind) > 1:
                label = f"{label_of(e.run)} ({len(of_kind)} seeds)"
            index = number if of_pairs else self._kinds.index(kind)
            shown = None if kind in named else literal(label)
            yield Shown(e.result, f"C{index % 10}", shown, literal(e.label))
            named.add(kind)


def _plain(result: Any) -> Any:
    if isinstance(result, Result):
        return result.to_dict()
    return {name: part.to_dict() for name, part in result.items()}


def _python(row: Row) -> Iterator[Any]:
    """Yield the cells of a row without NumPy's types, which JSON does not know."""
    for cell in row:
        yield cell.item() if isinstance(cell, np.generic) else cell


def _without_nan(value: Any) -> Any:
    """Return a value with null for NaN and infinity, which JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return value
