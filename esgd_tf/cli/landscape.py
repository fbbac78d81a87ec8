"""`landscape`: how wide the valleys are that runs of train.py ended in, side by side."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.door import reason_of, was_interrupted
from esgd_tf.cli.parsers import FlagError
from esgd_tf.cli.startup import start_tensorflow
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.stored_run import StoredRun

__all__ = ["MEASURES", "main"]

# Flag, what it measures; in the order of the report.
MEASURES = {
    "spectrum": "largest and smallest eigenvalues of the Hessian of the loss",
    "density": "density of all its eigenvalues, and their sum",
    "local_energy": "error and loss of the weights times 1 + sigma N(0, 1), train and test",
    "sharpness": "sharpness: of the ascent, Keskar's, SAM's and ASAM's",
    "local_entropy": "local entropy by Langevin chains, and by the density of eigenvalues",
    "interpolate": "lines from the first run to each of the others: loss and error",
    "plane": "loss on a plane through the weights: that of the run's kept checkpoints "
    "(train.py --keep_every), else two random filter-normalised directions",
    "random_walk": "free random walks until the loss has risen by --threshold",
}
_DEFAULT = ("spectrum", "density", "local_energy", "sharpness")


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: sequence of str. "landscape" and what follows it.

    Returns:
        The exit status.
    """
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
    for name, what in MEASURES.items():
        line.switch(name, False, what)
    line.integer("samples", 2, 2048, "images of each split that are measured on", "N")
    line.choice("split", ("train", "test"), "train", "images of all but --local_energy, which "
                "takes both")  # fmt: skip
    line.integer("eigenvalues", 1, 5, "--spectrum: how many at each end", "k")
    line.integer("probes", 1, 10, "--density: random vectors")
    line.integer("steps", 1, 100, "--density: Lanczos steps of each")
    line.text("sigmas", "0.05,0.1,0.15,0.2,0.25,0.3", "--local_energy: strengths of the noise")
    line.integer("perturbations", 2, 30, "--local_energy: samples of the noise at each strength")
    line.text("gammas", "1,10,100", "--local_entropy: scopes; the largest is the reference")
    line.integer("chain_steps", 8, 200, "--local_entropy: Langevin steps at each of its nodes")
    line.integer("points", 2, 15, "--plane and --interpolate: points along a direction")
    line.choice("path", ("linear", "spherical"), "linear", "--interpolate: kind of line")
    line.text("threshold", "0.1", "--random_walk: rise of the loss that ends a walk")
    line.text("step_size", "0.005", "--random_walk: standard deviation of a step")
    line.integer("seed", 0, 0, "of the choice of images and of all that is random")
    line.path("out", "landscape", "folder for the files, made if it is not there")
    line.checkpoint_flags()
    line.integer("batch_size", 1, 512, "images at a time: speed and memory, not the result", "b")
    line.data_flags()
    return line.run(argv, _landscape)


def numbers(flag: str, text: str, at_least: int = 1) -> list[float]:
    """Return the positive numbers of a flag's value, separated by commas.

    Raises:
        FlagError: It is something else.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if len(set(values)) < at_least or not all(math.isfinite(v) and v > 0 for v in values):
        what = "a positive number" if at_least == 1 else f"{at_least} or more positive numbers"
        raise FlagError(f"--{flag}={text}: must be {what}, separated by commas")
    return values


def _landscape(fv: Any, words: list[str]) -> None:
    chosen = [name for name in MEASURES if getattr(fv, name)] or list(_DEFAULT)
    sigmas = numbers("sigmas", fv.sigmas)
    gammas = numbers("gammas", fv.gammas, 2)
    (threshold, *more), (step_size, *rest) = (
        numbers("threshold", fv.threshold),
        numbers("step_size", fv.step_size),
    )
    if more or rest:
        raise FlagError("--threshold and --step_size are one number each")
    if "interpolate" in chosen and len(words) < 2:
        raise FlagError("--interpolate needs two runs: it measures the line between them")
    out = Path(fv.out)
    if out.exists() and not out.is_dir():
        raise FlagError(f"--out={out}: is a file; name a folder")
    runs = _open(words)
    checkpoints = [run.checkpoint(fv.checkpoint) for run in runs]
    start_tensorflow()

    from esgd_tf.cli.landscape_measures import Measures
    from esgd_tf.cli.landscape_report import Report

    pairs = [(runs[0], run) for run in runs[1:]] if "interpolate" in chosen else []
    plan = [(run.name, name) for run in runs for name in chosen if name != "interpolate"]
    plan += [(_pair(*pair), "interpolate") for pair in pairs]
    report = Report(runs, fv, plan, out)
    measures = Measures(fv, sigmas, gammas, threshold, step_size)
    report.save()  # so that a report of before is not taken for this one
    networks = []
    for run, checkpoint in zip(runs, checkpoints, strict=True):
        network = measures.load(run, checkpoint)
        networks.append(network)
        if len(networks) == 1:
            print(report.header(network))
        measures.check_fits(networks[0], network)
        for name in chosen:
            if name != "interpolate":
                _measure(report, fv, run, run.name, name, getattr(measures, name), network)
    for (first, other), network in zip(pairs, networks[1:], strict=False):
        label = _pair(first, other)
        _measure(
            report, fv, other, label, "interpolate", measures.interpolate, networks[0], network
        )
    print(report.tables())
    written = [*report.save(), *report.plot()]
    print("\nwritten:\n" + "\n".join(f"  {path}" for path in written))
    if report.failed:
        raise RunFolderError(report.failures())


def _measure(
    report: Any,
    fv: Any,
    run: StoredRun,
    label: str,
    name: str,
    function: Callable[..., Any],
    *arguments: Any,
) -> None:
    """Measure, and write down what was found, or why it was not, before anything else is done."""
    start = time.perf_counter()
    try:
        result = function(*arguments)
    except Exception as error:
        if was_interrupted():
            raise KeyboardInterrupt from None  # it was Ctrl-C that made an error of it
        # The other measures, which may have taken hours, are not to be lost by it.
        if fv.debug:
            traceback.print_exc()
        print(f"  {name:<14}{label}: failed", flush=True)
        report.fail(label, name, reason_of(error))
    else:
        print(f"  {name:<14}{label}: {time.perf_counter() - start:.0f} s", flush=True)
        report.add(run, name, result, label)
    report.save()
    if was_interrupted():
        raise KeyboardInterrupt  # it came where Python could not raise it, as in a destructor


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
