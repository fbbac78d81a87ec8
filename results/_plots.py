"""Tables and figures of a plan, from its summaries alone.

    table.md             errors, gap and measures at the end: mean and sample deviation over seeds
    curves.png           error against gradient evaluations, mean and spread, one panel a part
    bits.png             error against bits of a weight, where that was measured
    measures.png         measures against the generalisation gap, a point a training

Figures show what there is: with one seed a line has no band.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esgd_tf._files import replaced_when_whole
from esgd_tf.cli.tables import markdown_table
from results._jobs import Job, Summaries, jobs_of
from results._shared import COLORS, MARKERS, figure_of, finish, plot_mean_and_spread, style
from results._summaries import MEASURES
from results.plans import Plan

__all__ = ["draw"]

Summary = Mapping[str, Any]
# By part, and in it by method, the summaries of its seeds.
Groups = dict[str, dict[str, list[Summary]]]

_FINAL = {
    "error": "error (%)", "train_error": "train error (%)", "gap": "gap (% points)",
    "train_loss": "train loss",
}  # fmt: skip
_COLUMNS = 3
# A part may have more methods than there is room for among its curves.
_BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}


def draw(plan: Plan, name: str, summaries: Summaries, out: Path) -> list[Path]:
    """Write the tables and figures of a plan, and return their paths.

    Args:
        plan: Plan. The plan.
        name: str. Its name.
        summaries: mapping. The summaries, by the names of their runs.
        out: Path. The folder for the files.

    Raises:
        SystemExit: There is no summary of a result yet.
    """
    jobs = jobs_of(plan, summaries)
    groups = _groups(jobs, summaries)
    if not groups:
        raise SystemExit(f"run.py: No result of {name} has a summary yet: train it first.")
    written = [_write_table(plan, name, jobs, groups, summaries, out / "table.md")]
    written.append(_curves(groups, out / "curves.png"))
    for plot, file in ((_bits, "bits.png"), (_measures, "measures.png")):
        if (path := plot(groups, out / file)) is not None:
            written.append(path)
    return written


def _groups(jobs: Sequence[Job], summaries: Summaries) -> Groups:
    groups: Groups = {}
    for job in jobs:
        if not job.candidate and job.is_done(summaries):
            of_part = groups.setdefault(job.part, {})
            of_part.setdefault(job.method, []).append(summaries[job.name])
    return groups


# ---- the table ------------------------------------------------------------------------------


def _write_table(
    plan: Plan, name: str, jobs: Sequence[Job], groups: Groups, summaries: Summaries, path: Path
) -> Path:
    done = sum(job.is_done(summaries) for job in jobs)
    machines = sorted({summaries[job.name]["made_by"] for job in jobs if job.is_done(summaries)})
    lines = [
        f"# {plan.title}", "", "Made by", "", f"    python3 results/run.py {name} --cores 1",
        f"    python3 results/run.py {name} --draw", "", "on", "",
        *(f"- {machine}" for machine in machines), "",
        f"{done} of {len(jobs)} trainings are done. Mean ± sample standard deviation over seeds.",
        "Settings were chosen by the error on training images that were held out, with seed 0.",
    ]  # fmt: skip
    for part, methods in groups.items():
        columns = _measured(methods)
        header = ["method", "chosen", "seeds", *_FINAL.values(), "gradient evaluations"]
        rows, measures = [], []
        for runs in methods.values():
            first = runs[0]
            rows.append(
                [
                    first["label"],
                    first["chosen"].partition(", ")[2] or "-",
                    " ".join(str(run["seed"]) for run in runs),
                    *(_spread([run["final"][key] for run in runs]) for key in _FINAL),
                    f"{first['final']['gradient_evaluations']:,}",
                ]
            )
            values = (_spread(_values(runs, column)) for column in columns)
            measures.append([first["label"], *values])
        lines += ["", f"## {part}", "", markdown_table(header, rows)]
        if columns:
            lines += ["", markdown_table(["method", *columns], measures)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_when_whole(path) as partial:
        partial.write_text("\n".join(lines) + "\n")
    return path


def _measured(methods: Mapping[str, Sequence[Summary]]) -> list[str]:
    """Return the names of the numbers that some training has, in the order of `MEASURES`."""
    names = [name for measure in MEASURES.values() for name in measure.keep]
    return [name for name in names if any(_values(runs, name) for runs in methods.values())]


def _values(runs: Sequence[Summary], name: str) -> list[float]:
    """Return a number of the measures, of those trainings that have it."""
    found = []
    for run in runs:
        numbers = {k: v for measure in run["measures"].values() for k, v in measure.items()}
        if name in numbers:
            found.append(float(numbers[name]))
    return found


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.4g}"
    spread = statistics.stdev(values)
    return f"{statistics.mean(values):.4g} ± {spread:.2g}"


# ---- figures --------------------------------------------------------------------------------


def _curves(groups: Groups, path: Path) -> Path:
    """Plot error against gradient evaluations."""
    figure = figure_of(11.0, 4.0 * len(groups))
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axis, (part, methods) in zip(panels, groups.items(), strict=True):
        for number, runs in enumerate(methods.values()):
            x = runs[0]["curve"]["gradient_evaluations"]
            # Runs that were interrupted inside an epoch have the same epochs all the same.
            errors = [r["curve"]["error"] for r in runs if len(r["curve"]["error"]) == len(x)]
            if len(errors) > 1:
                plot_mean_and_spread(axis, x, errors, number, runs[0]["label"])
            else:
                axis.plot(x, errors[0], **style(number), lw=2, label=runs[0]["label"])
        ends = [run["final"]["error"] for runs in methods.values() for run in runs]
        split = next(iter(methods.values()))[0]["split"]
        # What matters is told apart at the end; the first epochs would flatten it.
        axis.set(title=part, xlabel="gradient evaluations", ylabel=f"{split} error (%)",
                 ylim=(0.9 * min(ends), 1.5 * max(ends)))  # fmt: skip
        axis.legend(**_BESIDE)
    finish(figure, path)
    return path


def _bits(groups: Groups, path: Path) -> Path | None:
    """Plot error against the bits of a weight; return None where none was measured."""
    names = list(MEASURES["quantization"].keep)
    shown = {
        part: {m: runs for m, runs in methods.items() if _values(runs, names[0])}
        for part, methods in groups.items()
    }
    shown = {part: methods for part, methods in shown.items() if methods}
    if not shown:
        return None
    figure = figure_of(11.0, 4.0 * len(shown))
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axis, (part, methods) in zip(panels, shown.items(), strict=True):
        for number, runs in enumerate(methods.values()):
            values = [_values(runs, name) for name in names]
            spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
            # Side by side: the bars of several methods would hide each other.
            x = [k + 0.05 * (number - (len(methods) - 1) / 2) for k in range(len(names))]
            axis.errorbar(x, [statistics.mean(v) for v in values], spread,
                          **style(number),
                          marker=MARKERS[number % len(MARKERS)], capsize=3,
                          label=runs[0]["label"])  # fmt: skip
        axis.set_xticks(range(len(names)), [name.split()[2] for name in names])
        axis.set(title=part, xlabel="bits of a weight", ylabel="error (%)")
        axis.legend(**_BESIDE)
    finish(figure, path)
    return path


def _measures(groups: Groups, path: Path) -> Path | None:
    """Plot each measure against the gap; return None where nothing was measured."""
    methods = {m: runs for of_part in groups.values() for m, runs in of_part.items()}
    names = _measured(methods)
    if not names:
        return None
    labels = list(dict.fromkeys(runs[0]["label"] for runs in methods.values()))
    rows = -(-len(names) // _COLUMNS)
    figure = figure_of(13.0, 3.6 * rows)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axis, name in zip(panels, names, strict=False):
        for runs in methods.values():
            number = labels.index(runs[0]["label"])
            pairs = [(v, run["final"]["gap"]) for run in runs for v in _values([run], name)]
            marker = MARKERS[(number + number // len(COLORS)) % len(MARKERS)]
            axis.plot([v for v, _ in pairs], [gap for _, gap in pairs], ls="", marker=marker,
                      color=style(number)["color"], label=runs[0]["label"])  # fmt: skip
        axis.set(xlabel=name, ylabel="gap (% points)")
    for axis in panels[len(names) :]:
        axis.set_axis_off()
    handles = dict(
        zip(*reversed(panels[0].get_legend_handles_labels()), strict=True)
    )  # one of each label
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    finish(figure, path)
    return path
