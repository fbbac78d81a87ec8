"""`compare`: several runs side by side, at equal cost. It never imports TensorFlow."""

from __future__ import annotations

import dataclasses
import math
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esgd_tf._files import expanded
from esgd_tf.cli.command_line import CommandLine, output_path
from esgd_tf.cli.compare_measures import correlation_tables, read_measures
from esgd_tf.cli.parsers import FlagError
from esgd_tf.cli.startup import say
from esgd_tf.cli.tables import cut, kind_of, label_of, markdown_table, place_of, plain_table
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.run_folder import RunFolder
from esgd_tf.runs.schema import is_of_walkers
from esgd_tf.runs.stored_run import StoredRun

__all__ = ["command_line", "main"]

_COLUMNS = ("run", "optimizer", "L", "error %", "loss", "grad. evals", "epochs", "time")
# Shown where runs differ in it.
_MARKS = ("model", "corrupt", "validation_images")
# Of runs of before these settings.
_ABSENT = {"model": "none", "corrupt": "none", "validation_images": 0}
_NOT_ALIKE = (
    "Runs with different --corrupt were tested on different data: their numbers do not compare."
)
_OTHER_IMAGES = (
    "Runs with different --validation_images were evaluated on different images, and trained on "
    "different ones: their numbers do not compare."
)
_SUMMARY = ("runs like", "seeds", "error %", "loss", "grad. evals", "time")


@dataclasses.dataclass(frozen=True)
class _Result:
    """The last line of a run's history, and the settings that tell runs apart."""

    run: StoredRun
    rows: Sequence[dict[str, float]]

    @property
    def last(self) -> dict[str, float]:
        return self.rows[-1]

    @property
    def error(self) -> float:
        return 100.0 * (1.0 - self.last["val_accuracy"])

    @property
    def kind(self) -> str:
        """Everything but the seed that decides the result, and how far the run has come."""
        return f"{kind_of(self.run)} {self.last['gradient_evaluations']}"

    @property
    def optimizer(self) -> str:
        return self.run.experiment["optimizer"]

    @property
    def steps(self) -> str:
        return str(self.run.experiment["langevin_steps"] or "-")

    def mark(self, name: str) -> str:
        """Return a setting that sets runs apart."""
        return str(self.run.experiment.get(name, _ABSENT[name]))

    @property
    def star(self) -> str:
        return "" if self.run.sees_all_test_images else "*"


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: sequence of str. "compare" and what follows it.

    Returns:
        The exit status.
    """
    return command_line().run(argv, _compare)


def command_line() -> CommandLine:
    """Return the command's flags and help."""
    line = CommandLine(
        "compare",
        "RUN RUN...",
        "Prints the last test error of several runs of one data set, and plots their test "
        "errors against gradient evaluations. Runs that differ in nothing but the seed are "
        "also summed up: mean and sample standard deviation.",
        ["runs/*", "RUN RUN --markdown --out wide.png", "runs/* --measures --landscape landscape"],
        at_least=2,
        at_most=None,
    )
    line.path("out", "compare.png", "PNG file for the picture, replaced if it is there")
    line.switch("markdown", False, "print Markdown tables")
    line.switch("measures", False, "rank correlations of what `landscape` measured of the runs "
                "with their test error and generalisation gap; 4 runs or more")  # fmt: skip
    line.path("landscape", "landscape", "--measures: folder that `landscape` wrote")
    return line


def _compare(fv: Any, words: list[str]) -> None:
    out = output_path("--out", fv.out, ".png", may_be_in_new_folder=True)
    results = _read(words)
    # A setting that does not differ needs no column.
    measured = read_measures([r.run for r in results], fv.landscape) if fv.measures else None
    marks = [name for name in _MARKS if len({r.mark(name) for r in results}) > 1]
    # Their columns replace the last columns, which matter least.
    columns = _COLUMNS[: len(_COLUMNS) - len(marks)]
    table = []
    for r in results:
        cells = (
            r.run.name,
            r.optimizer,
            r.steps,
            f"{r.error:.2f}{r.star}",
            f"{r.last['val_loss']:.4f}",
            f"{r.last['gradient_evaluations']:,.0f}",
            f"{r.last['epoch']:.4g}",
            _duration(r.last["seconds"]),
        )
        marked = [cut(r.mark(name), 14 if len(marks) < 2 else 10) for name in marks]
        table.append((cells[0], *marked, *cells[1 : len(columns)]))
    columns = (columns[0], *marks, *columns[1:])
    show = markdown_table if fv.markdown else plain_table
    dataset = results[0].run.experiment["dataset"]
    where = " or ".join(sorted({place_of(r.run) for r in results}))
    splits = " or ".join(sorted({r.run.split for r in results}))
    title = f"{dataset}: {splits} error and loss at the {where}, after the last epoch"
    print(textwrap.fill(title, 80) + "\n")
    print(show(columns, table))
    if "corrupt" in marks:
        print("\n" + textwrap.fill(_NOT_ALIKE, 80))
    if "validation_images" in marks:
        print("\n" + textwrap.fill(_OTHER_IMAGES, 80))
    if any(r.star for r in results):
        print("\n* on a part of the images only (--limit_steps)")
    groups = _seeds(results)
    if groups:
        rows = [_summary(group) for group in groups]
        print("\nmean ± sample standard deviation over seeds\n\n" + show(_SUMMARY, rows))
    if measured is not None:
        errors = [r.error for r in results]
        training = [100.0 * (1.0 - r.last.get("accuracy", math.nan)) for r in results]
        print("\n" + correlation_tables(measured, errors, training, show))

    from esgd_tf.runs.figures import plot_comparison

    labels = {group[0].kind: label_of(group[0].run) for group in groups}
    if len(set(labels.values())) < len(labels):  # the same optimizer, with other numbers
        labels = {group[0].kind: f"like {group[0].run.name}" for group in groups}
    curves = [
        (
            labels.get(r.kind, r.run.name),
            [row["gradient_evaluations"] for row in r.rows],
            [100.0 * (1.0 - row["val_accuracy"]) for row in r.rows],
        )
        for r in results
    ]
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    plot_comparison(curves, out, dataset, splits)
    print(f"\nwritten: {out}")


def _read(paths: Sequence[str]) -> list[_Result]:
    results: list[_Result] = []
    seen: dict[Path, str] = {}
    for path in _trainings(paths):
        run = StoredRun.open(path)
        real = run.folder.path.resolve()
        if real in seen:
            raise FlagError(f"{path} is {seen[real]} again: name each run once")
        seen[real] = path
        rows = run.history()
        if not rows:
            raise RunFolderError(
                f"{path} has no line in history.csv: its first epoch is not over, so there is "
                "nothing to compare yet."
            )
        results.append(_Result(run, rows))
    datasets = [r.run.experiment["dataset"] for r in results]
    for result, dataset in zip(results, datasets, strict=True):
        if dataset != datasets[0]:
            raise RunFolderError(
                f"{result.run.folder.path} was trained on {dataset} and "
                f"{results[0].run.folder.path} on {datasets[0]}: compare runs of one data set."
            )
    return results


def _trainings(paths: Sequence[str]) -> list[str]:
    """Return the runs of train.py among the folders, and say which runs of walkers are left out.

    Raises:
        RunFolderError: No run of train.py is left.
    """
    trainings = []
    for path in paths:
        folder = RunFolder(Path(expanded(path)))
        if folder.config.is_file() and is_of_walkers(folder.read_config()):
            say(f"esgd_tf compare: {path} is a run of walkers: passed over.")
        else:
            trainings.append(path)
    if not trainings:
        raise RunFolderError("None of these is a run of train.py: there is nothing to compare.")
    return trainings


def _seeds(results: Sequence[_Result]) -> list[list[_Result]]:
    """Return the groups of two or more different seeds of one experiment."""
    groups: dict[str, list[_Result]] = {}
    for result in results:
        group = groups.setdefault(result.kind, [])
        # Two runs with the same seed are the same run, and tell nothing about the spread.
        if all(result.run.run["seed"] != other.run.run["seed"] for other in group):
            group.append(result)
    return [group for group in groups.values() if len(group) > 1]


def _summary(group: Sequence[_Result]) -> tuple[str, ...]:
    def spread(values: Sequence[float], digits: int) -> str:
        return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    first = group[0]
    return (
        first.run.name,
        " ".join(str(r.run.run["seed"]) for r in group) if len(group) < 6 else str(len(group)),
        spread([r.error for r in group], 2) + first.star,
        spread([r.last["val_loss"] for r in group], 4),
        f"{first.last['gradient_evaluations']:,.0f}",
        _duration(statistics.mean(r.last["seconds"] for r in group)),
    )


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
