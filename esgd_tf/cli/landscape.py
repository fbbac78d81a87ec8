"""`landscape`: measure how wide the valleys are in which runs of train.py ended, side by side."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.door import reason_of, was_interrupted
from esgd_tf.cli.measures import MEASURES
from esgd_tf.cli.measures.measure import Measure
from esgd_tf.cli.parsers import FlagError
from esgd_tf.cli.startup import start_tensorflow
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.stored_run import StoredRun

if TYPE_CHECKING:
    from esgd_tf.cli.landscape_report import Report
    from esgd_tf.cli.measures.bench import Bench, Measured

__all__ = ["command_line", "main"]

_DEFAULT = [name for name, measure in MEASURES.items() if measure.is_default]


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: sequence of str. "landscape" and what follows it.

    Returns:
        The exit status.
    """
    return command_line().run(argv, _landscape)


def command_line() -> CommandLine:
    """Return the command's flags and help."""
    line = CommandLine(
        "landscape",
        "RUN [RUN...]",
        "Measures the networks of runs, at the anchor, on the same images: how wide is the "
        "valley? Prints tables that compare the runs and writes landscape.json, landscape.csv "
        "and a picture of each measure. Runs that differ in nothing but the seed get one color. "
        f"Without a measure: {', '.join('--' + name for name in _DEFAULT)}.",
        ["runs/momentum runs/entropy-sgd", "RUN RUN --density --samples 4096 --out wide",
         "RUN --plane --split test"],
        at_most=None,
        stopped="Stopped; measures that were done are in the folder of --out, where landscape.json "
        "says which are missing.",
    )  # fmt: skip
    for name, measure in MEASURES.items():
        line.switch(name, False, measure.what)
    line.integer("samples", 2, 2048, "images of each split that are measured on", "N")
    line.choice("split", ("train", "test"), "train", "images of the measures that do not say "
                "which they take")  # fmt: skip
    for measure in MEASURES.values():
        measure.define_flags(line)
    line.integer("seed", 0, 0, "of the choice of images and of all that is random")
    line.path("out", "landscape", "folder for the files, made if it is not there")
    line.checkpoint_flags()
    line.integer("batch_size", 1, 512, "images at a time: speed and memory, not the result", "b")
    line.data_flags()
    return line


def _landscape(fv: Any, words: list[str]) -> None:
    chosen = [m for name, m in MEASURES.items() if fv[name].value]
    chosen = chosen or [MEASURES[name] for name in _DEFAULT]
    for measure in MEASURES.values():
        measure.check_flags(fv)
    of_pairs = [measure for measure in chosen if measure.is_of_pairs]
    if of_pairs and len(words) < 2:
        raise FlagError(f"--{of_pairs[0].name} needs two runs: it measures the line between them")
    out = Path(fv.out)
    if out.exists() and not out.is_dir():
        raise FlagError(f"--out={out}: is a file; name a folder")
    runs = _open(words)
    checkpoints = [run.checkpoint(fv.checkpoint) for run in runs]
    start_tensorflow()

    from esgd_tf.cli.landscape_report import Report
    from esgd_tf.cli.measures.bench import Bench

    of_one = [measure for measure in chosen if not measure.is_of_pairs]
    pairs = [(runs[0], run) for run in runs[1:]] if of_pairs else []
    plan = [(run.name, measure.name) for run in runs for measure in of_one]
    plan += [(_pair(*pair), measure.name) for pair in pairs for measure in of_pairs]
    report = Report(runs, fv, plan, out)
    bench = Bench(fv)
    report.save()  # so that an earlier report is not mistaken for this one
    networks = []
    for run, checkpoint in zip(runs, checkpoints, strict=True):
        network = bench.load(run, checkpoint)
        networks.append(network)
        if len(networks) == 1:
            print(report.header(network))
        if of_pairs:
            bench.check_fits(networks[0], network)
        for measure in of_one:
            _take(report, bench, run, run.name, measure, network)
    for (first, other), network in zip(pairs, networks[1:], strict=False):
        for measure in of_pairs:
            _take(report, bench, other, _pair(first, other), measure, networks[0], network)
    print(report.tables())
    written = [*report.save(), *report.plot()]
    print("\nwritten:\n" + "\n".join(f"  {path}" for path in written))
    if report.failed:
        raise RunFolderError(report.failures())


def _take(
    report: Report,
    bench: Bench,
    run: StoredRun,
    label: str,
    measure: Measure,
    *networks: Measured,
) -> None:
    """Take a measure, and write the result or the reason for its failure at once."""
    start = time.perf_counter()
    try:
        result = measure.take(bench, *networks)
    except Exception as error:
        if was_interrupted():
            raise KeyboardInterrupt from None  # Ctrl-C caused the error
        # One failure must not lose the other measures, which may have taken hours.
        if bench.fv.debug:
            traceback.print_exc()
        report.fail(label, measure.name, reason_of(error))
        took = "failed"
    else:
        took = f"{time.perf_counter() - start:.0f} s"
        report.add(run, measure, result, label)
    report.save()
    print(f"  {measure.name:<18}{label}: {took}", flush=True)  # may fail: nobody reads it any more
    if was_interrupted():
        raise KeyboardInterrupt  # Python could not raise it, as in a destructor


def _pair(first: StoredRun, other: StoredRun) -> str:
    return f"{first.name} to {other.name}"


def _open(words: Sequence[str]) -> list[StoredRun]:
    runs: list[StoredRun] = []
    for word in words:
        run = StoredRun.open(word)
        for other in runs:
            if run.folder.path.resolve() == other.folder.path.resolve():
                raise FlagError(f"{word} is named twice")
            if run.experiment["dataset"] != other.experiment["dataset"]:
                raise RunFolderError(
                    f"{word} was trained on {run.experiment['dataset']} and {words[0]} on "
                    f"{other.experiment['dataset']}: measure runs of one data set together."
                )
        runs.append(run)
    return runs
