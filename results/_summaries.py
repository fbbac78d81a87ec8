"""What is kept of a training of a plan: a small JSON file, whole or not at all.

    plan, run, part, method, label, seed, candidate, chosen     which training it is
    flags, command, experiment, made_by                         how it can be made again
    split       "test", or "validation" for images held out of the training images
    curve       columns against effective epochs, at most about a hundred rows
    final       the last errors and losses, on training images without augmentation too
    measures    of the last network, by the names of `MEASURES`
    missing     the measures that failed, with the reason

Errors are in %, losses in nats.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esgd_tf._files import replaced_when_whole
from esgd_tf.cli.measures import MEASURES as KNOWN
from results._jobs import Job
from results._shared import machine

__all__ = [
    "MEASURES",
    "Measure",
    "curve_of",
    "known_measures",
    "lacking",
    "make_summary",
    "measured",
    "read_summaries",
    "write_summary",
]

_ROWS = 100


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measure of `python3 -m esgd_tf landscape`, and what is kept of it.

    Args:
        flags: tuple of str. The flags that it takes beside its own switch.
        keep: mapping. By the name under which a number is kept, what it is multiplied by, and the
            way to it through the measure's part of landscape.json: keys, and positions in lists.
    """

    flags: tuple[str, ...]
    keep: Mapping[str, tuple[float, tuple[str | int, ...]]]


_SIGMAS, _BITS = (0.05, 0.1, 0.2, 0.3), (4, 3, 2)

#: The measures at the end of a training, by their names in `landscape`. One that `landscape` does
#: not know yet is left out, and taken later from the run folder if that is still there.
MEASURES: dict[str, Measure] = {
    "local_energy": Measure(
        ("--sigmas=" + ",".join(map(str, _SIGMAS)), "--perturbations=20"),
        {
            **{
                f"local energy, σ = {sigma:g}, {split} (% points)": (
                    100.0, ("increase", split, "error", k)
                )
                for k, sigma in enumerate(_SIGMAS)
                for split in ("train", "test")
            },
            # The trace of D H D with D = diag(w): the loss rises by σ²/2 of it at a small σ.
            "tr DHD, from σ = 0.05": (2 / _SIGMAS[0] ** 2, ("increase", "train", "loss", 0)),
        },
    ),
    "spectrum": Measure(
        ("--eigenvalues=1",),
        {
            "largest eigenvalue": (1.0, ("largest", "eigenvalues", 0)),
            "smallest eigenvalue": (1.0, ("smallest", "eigenvalues", 0)),
        },
    ),
    "quantization": Measure(
        ("--bits=" + ",".join(map(str, _BITS)),),
        {
            f"error at {bits} bits (%)": (100.0, ("values", "test", "error", k))
            for k, bits in enumerate(_BITS)
        },
    ),
    "pac_bayes": Measure((), {"PAC-Bayes bound (%)": (100.0, ("bound",))}),
    "norms": Measure(
        ("--probes=4", "--steps=50"),
        {
            "Fisher-Rao norm": (1.0, ("fisher_rao", "estimate")),
            "Frobenius norm": (1.0, ("frobenius", "estimate")),
            "effective dimension": (1.0, ("dimension", "values", 0)),
        },
    ),
}  # fmt: skip


def known_measures() -> list[str]:
    """Return the names of the measures that `landscape` knows."""
    return [name for name in MEASURES if name in KNOWN]


def lacking(summary: Mapping[str, Any]) -> list[str]:
    """Return the measures that `landscape` knows, and that a summary neither has nor lacks in vain.

    Args:
        summary: mapping. The summary.
    """
    tried = {*summary["measures"], *summary["missing"]}
    return [name for name in known_measures() if name not in tried]


def measured(report: Mapping[str, Any]) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Return what is kept of a landscape.json of one run, and why the rest is missing.

    Args:
        report: mapping. What landscape.json holds.
    """
    kept: dict[str, dict[str, float]] = {}
    missing = {each["measure"]: each["reason"] or "not measured" for each in report["missing"]}
    for found in report["results"]:
        name = found["measure"]
        measure = MEASURES[name]
        try:
            kept[name] = {
                label: _rounded(scale * _at(found["result"], way))
                for label, (scale, way) in measure.keep.items()
            }
        except (KeyError, IndexError, TypeError) as error:
            missing[name] = f"landscape.json has it in another form ({error!r})"
    return kept, missing


def curve_of(history: Sequence[Mapping[str, str]]) -> dict[str, list[float]]:
    """Return the columns of a summary's curve.

    Args:
        history: sequence of mappings. The lines of history.csv, at least one.
    """
    step = -(-len(history) // _ROWS)
    rows = [row for k, row in enumerate(history, 1) if k % step == 0 or k == len(history)]

    def column(name: str, *, is_accuracy: bool = False) -> list[float]:
        values = [float(row[name]) for row in rows]
        return [_rounded(100 * (1 - value) if is_accuracy else value) for value in values]

    return {
        "epoch": column("epoch"),
        "gradient_evaluations": [int(float(row["gradient_evaluations"])) for row in rows],
        "error": column("val_accuracy", is_accuracy=True),
        "loss": column("val_loss"),
        # Of the minibatches of the epoch, where the gradients were taken.
        "running_train_error": column("accuracy", is_accuracy=True),
        "running_train_loss": column("loss"),
        "seconds": column("seconds"),
    }


def make_summary(
    plan: str,
    job: Job,
    config: Mapping[str, Any],
    history: Sequence[Mapping[str, str]],
    train: Mapping[str, Any],
    report: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the summary of a training.

    Args:
        plan: str. The name of the plan.
        job: Job. The training.
        config: mapping. Its config.json.
        history: sequence of mappings. The lines of its history.csv.
        train: mapping. What `evaluate --split train --json` wrote.
        report: mapping. What `landscape` wrote; {} if nothing was measured.
    """
    curve = curve_of(history)
    measures, missing = measured(report) if report else ({}, {})
    final = {
        "error": curve["error"][-1],
        "loss": curve["loss"][-1],
        "train_error": _rounded(100 * train["error"]),
        "train_loss": _rounded(train["loss"]),
        "gap": _rounded(curve["error"][-1] - 100 * train["error"]),
        "gradient_evaluations": curve["gradient_evaluations"][-1],
        "seconds": curve["seconds"][-1],
    }
    return {
        "plan": plan, "run": job.name, "part": job.part, "method": job.method, "label": job.label,
        "seed": job.seed, "candidate": job.candidate, "chosen": job.chosen,
        "split": "validation" if job.flags.get("validation_images") else "test",
        "made_by": machine(), "command": " ".join(["python3", "train.py", *job.words]),
        "flags": dict(job.flags), "experiment": config["experiment"], "final": final,
        "measures": measures, "missing": missing, "curve": curve,
    }  # fmt: skip


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write a summary, which appears when it is whole, and return its path.

    Args:
        folder: Path. The folder of the summaries, which is made if it is not there.
        summary: mapping. The summary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{summary['run']}.json"
    parts = {name: json.dumps(value) for name, value in summary.items() if name != "curve"}
    columns = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in summary["curve"].items())
    lines = ",\n".join(f"{json.dumps(name)}: {text}" for name, text in parts.items())
    with replaced_when_whole(path) as partial:
        partial.write_text(f'{{\n{lines},\n"curve": {{\n{columns}\n}}\n}}\n')
    return path


def read_summaries(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the summaries of a folder, by the names of their runs.

    Args:
        folder: Path. The folder; it need not exist.

    Raises:
        SystemExit: A file is no summary.
    """
    found = {}
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            summary = json.loads(path.read_text())
            for name in ("flags", "final", "measures", "missing", "curve", "label", "made_by"):
                summary[name]
        except (ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path} is no summary ({error!r}): remove it.") from None
        found[path.stem] = summary
    return found


def _at(result: Any, way: Sequence[str | int]) -> float:
    for step in way:
        result = result[step]
    return float(result)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
