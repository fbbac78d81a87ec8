"""What `landscape` shows and writes: tables in 80 columns, JSON, CSV and pictures."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from esgd_tf._files import replaced_when_whole
from esgd_tf.cli.landscape_measures import Measured
from esgd_tf.cli.landscape_pictures import Shown, picture
from esgd_tf.cli.landscape_rows import ROWS
from esgd_tf.cli.tables import kind_of, label_of, plain_table
from esgd_tf.landscape import Result
from esgd_tf.runs.figures import literal
from esgd_tf.runs.stored_run import StoredRun

__all__ = ["Report"]

_COLUMNS = ("run", "measure", "split", "metric", "at", "value", "standard_error")


@dataclasses.dataclass(frozen=True)
class _Entry:
    run: StoredRun
    label: str
    measure: str
    result: Any  # a Result, or several by name


class Report:
    """Collects results; runs that differ in nothing but the seed share a color.

    Args:
        runs: sequence of StoredRun. The runs that are measured.
        fv: flags.FlagValues. The flags.
        plan: sequence of pairs of str. What is going to be measured: the label of a run or of two,
            and the measure.
        out: Path. The folder for the files.

    Attributes:
        failed: What could not be measured or plotted: its label, the measure, and why.
    """

    def __init__(
        self, runs: Sequence[StoredRun], fv: Any, plan: Sequence[tuple[str, str]], out: Path
    ) -> None:
        self._runs, self._fv, self._plan, self._out = list(runs), fv, list(plan), out
        self._entries: list[_Entry] = []
        self.failed: list[tuple[str, str, str]] = []
        self._kinds = list(dict.fromkeys(kind_of(run) for run in runs))

    def add(self, run: StoredRun, measure: str, result: Any, label: str) -> None:
        """Add what was measured of a run."""
        self._entries.append(_Entry(run, label, measure, result))

    def fail(self, label: str, measure: str, reason: str) -> None:
        """Take note of a measure that failed."""
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
        """Say what is measured, before it is."""
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
            entries = [e for e in self._entries if e.measure == measure]
            parts.append(getattr(self, f"_{measure}_table")(entries))
        return "\n" + "\n\n".join(parts)

    def _spectrum_table(self, entries: list[_Entry]) -> str:
        rows = []
        for e in entries:
            ends = e.result["largest"].eigenvalues, e.result["smallest"].eigenvalues[::-1]
            bad = sum(int((~pairs.converged).sum()) for pairs in e.result.values())
            shown = [" ".join(f"{v:.3g}" for v in end[:3]) for end in ends]
            rows.append((e.label, *shown, str(bad) if bad else "-"))
        title = "eigenvalues of the Hessian (the first three at each end)"
        return _titled(title, ("run", "largest", "smallest", "not converged"), rows)

    def _density_table(self, entries: list[_Entry]) -> str:
        rows = []
        for e in entries:
            density = e.result
            mean, error = density.mean(lambda t: t)
            small, spread = density.fraction_below(0.01 * density.largest)
            rows.append(
                (
                    e.label,
                    f"{density.largest:.3g}",
                    f"{density.smallest:.3g}",
                    f"{density.size * mean:.4g} ± {density.size * error:.2g}",
                    f"{100 * small:.1f} ± {100 * spread:.1f}",
                )
            )
        title = (
            "density of eigenvalues (± standard error over probes)\n"
            "% small: of the eigenvalues, those below 1 % of the largest in magnitude"
        )
        return _titled(title, ("run", "largest", "smallest", "trace", "% small"), rows)

    def _local_energy_table(self, entries: list[_Entry]) -> str:
        sigmas = entries[0].result.sigmas
        # At most four columns of width.
        chosen = sorted({round(k * (len(sigmas) - 1) / 3) for k in range(4)})
        rows = []
        for e in entries:
            for split in e.result.increase:
                value, error = e.result.curve(split, "error")
                cells = [f"{100 * value[k]:.2f} ± {100 * error[k]:.2f}" for k in chosen]
                rows.append((e.label, split, *cells))
        header = ("run", "split", *(f"{sigmas[k]:g}" for k in chosen))
        title = "local energy: increase of the error in % points, by sigma (± standard error)"
        return _titled(title, header, rows)

    def _sharpness_table(self, entries: list[_Entry]) -> str:
        kinds = list(entries[0].result)
        rows = [(e.label, *(f"{e.result[k].value:.3g}" for k in kinds)) for e in entries]
        return _titled("sharpness", ("run", *kinds), rows)

    def _local_entropy_table(self, entries: list[_Entry]) -> str:
        rows = []
        for e in entries:
            for method, found in e.result.items():
                cells = [
                    f"{v:.3g} ± {s:.1g}"
                    for v, s in zip(found.excess[:-1], found.standard_errors, strict=False)
                ]
                rows.append((e.label, method + ("" if found.converged else "*"), *cells))
        gammas = entries[0].result["langevin"].gammas
        header = ("run", "method", *(f"{g:g}" for g in gammas[:-1]))
        title = (
            f"local entropy relative to that of a flat loss and to gamma = {gammas[-1]:g}, by gamma"
        )
        table = _titled(title, header, rows)
        if any(not e.result["langevin"].converged for e in entries):
            table += "\n* the chains have not converged: raise --chain_steps or --gammas"
        return table

    def _interpolate_table(self, entries: list[_Entry]) -> str:
        rows = [
            (
                e.label,
                f"{e.result.distance:.4g}",
                *(f"{e.result.barrier(split, 'loss'):.4f}" for split in ("train", "test")),
                *(f"{100 * e.result.barrier(s, 'error'):.2f}" for s in ("train", "test")),
            )
            for e in entries
        ]
        header = ("line", "distance", "loss, train", "test", "error %, train", "test")
        return _titled(f"barriers on {self._fv.path} lines", header, rows)

    def _plane_table(self, entries: list[_Entry]) -> str:
        rows = []
        for e in entries:
            (values,) = e.result.values.values()
            middle = values["loss"].shape[0] // 2
            what = "random" if e.result.trajectory is None else "checkpoints"
            center = values["loss"][middle, middle]
            rows.append((e.label, what, f"{center:.4f}", f"{values['loss'].max():.4g}"))
        return _titled("planes", ("run", "directions", "loss near the center", "largest"), rows)

    def _random_walk_table(self, entries: list[_Entry]) -> str:
        rows = []
        for e in entries:
            walk = e.result
            mean, error = walk.mean_escape_step
            escaped = f"{mean:.1f} ± {error:.1f}" if math.isfinite(mean) else "not all escaped"
            rows.append((e.label, escaped, f"{walk.threshold:.4f}"))
        return _titled("random walks", ("run", "escape step", "threshold"), rows)

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
        # Counted, for two runs may have the same name.
        missing = list(
            (Counter(self._plan) - Counter((e.label, e.measure) for e in self._entries)).elements()
        )
        document = {
            "settings": {k: v for k, v in flags.items() if k not in ("help", "out", "debug")},
            # So that half a report does not look whole.
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
                    "measure": e.measure,
                    "result": _plain(e.result),
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
                writer.writerows((e.label, e.measure, *row) for row in ROWS[e.measure](e.result))
        return written

    def plot(self) -> list[Path]:
        """Write a picture of each measure.

        Returns:
            The paths.
        """
        written = []
        for measure in dict.fromkeys(e.measure for e in self._entries):
            path = self._out / f"{measure}.png"
            entries = [e for e in self._entries if e.measure == measure]
            try:
                figure = picture(measure, list(self._shown(entries)))
            except ValueError as error:  # no number that could be plotted
                self.fail("the picture", measure, str(error))
                continue
            with replaced_when_whole(path) as partial:
                figure.savefig(partial, dpi=150)
            written.append(path)
        return written

    def _shown(self, entries: list[_Entry]) -> Iterator[Shown]:
        """Yield results with a color for each kind of run, and a label for the first of it."""
        named: set[str] = set()
        interpolations = entries[0].measure == "interpolate"
        for number, e in enumerate(entries):
            kind = e.label if interpolations else kind_of(e.run)
            of_kind = [r for r in self._runs if kind_of(r) == kind]
            label = e.label
            if len(of_kind) > 1:
                label = f"{label_of(e.run)} ({len(of_kind)} seeds)"
            index = number if interpolations else self._kinds.index(kind)
            shown = None if kind in named else literal(label)
            yield Shown(e.result, f"C{index % 10}", shown, literal(e.label))
            named.add(kind)


def _plain(result: Any) -> Any:
    if isinstance(result, Result):
        return result.to_dict()
    return {name: part.to_dict() for name, part in result.items()}


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for both."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return value


def _titled(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"{title}\n\n{plain_table(header, rows)}"
