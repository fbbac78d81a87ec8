#!/usr/bin/env python3
"""Two findings with walkers on 1,000 digits: spectra of the Hessian, lines between workers.

Command:          python3 results/walkers.py --raw_dir DIR    (DIR/mnist holds the archives)
Expected time:    about 50 minutes on one core; --quick, which proves nothing, 5 minutes
                  --draw plots the figures again, from numbers.json
Expected result:  results/walkers/table.md, spectrum_at_the_end.png, lines.png;
                  what was run before (runs/) is kept

(1) Sagun, Bottou and LeCun, "Eigenvalues of the Hessian in deep learning: singularity and beyond"
(2016), and Sagun et al. (2017): at the end of training nearly all eigenvalues are near zero, the
few that stick out are about as many as there are classes, and negative ones are small and shrink.
Here: all eigenvalues of nn-10-2 (8,070 weights), exactly, and the ends of its spectrum meanwhile.

(2) How high are the barriers on lines between workers, with and without elastic coupling? Here:
four workers of nn-100-2 from one start or from separate ones, alpha from 0 to 0.1, three seeds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# So that the script runs from a checkout as it is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from esgd_tf.walkers import Experiment, Problem, Settings, read_table
from results._shared import (
    COLORS,
    LINES,
    MARKERS,
    ROOT,
    figure_of,
    finish,
    machine,
    parser_of,
    read_numbers,
    rounded,
    write_numbers,
)

OUT = ROOT / "results" / "walkers"
RUNS = ROOT / "runs" / "results-walkers"
BASE = Settings(dataset="mnist", n_samples_train=1000, n_samples_test=2000, freq=50)
SEEDS = (1, 2, 3)
# The standard deviation of the noise on the common start, by the name of the start.
STARTS = {"one": 0.0, "separate": 0.05}
ALPHAS = (0.0, 0.001, 0.01, 0.1)
# Outliers are looked for among so many of the largest eigenvalues.
AMONG = 30


def run(name: str, settings: Settings, raw_dir: str | None) -> list[dict[str, Any]]:
    """Run an experiment, unless it was run before, and return its table."""
    folder = RUNS / name
    if not is_done(folder, settings):
        print(f"-- {name}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        problem = Problem.load(settings, raw_dir=raw_dir)
        Experiment(settings, folder, problem=problem, say=print).run()
    return read_table(folder)


def is_done(folder: Path, settings: Settings) -> bool:
    """Return whether a folder holds a finished experiment with these settings."""
    if not (folder / "table.jsonl").exists():
        return False
    begin, *_, end = read_table(folder)
    asked = json.loads(json.dumps({"kind": "settings", "step": 0, **settings.to_dict()}))
    return begin == asked and end["kind"] == "end"


def of_kind(table: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the rows of one kind."""
    return [row for row in table if row["kind"] == kind]


def outliers(eigenvalues: np.ndarray) -> tuple[int, int]:
    """Return how many eigenvalues stand out, by two criteria.

    The first counts those that are larger than the magnitude of every negative one, because the
    bulk around zero is roughly symmetric. The second counts those above the widest gap, by ratio,
    among the largest.
    """
    ordered = np.sort(eigenvalues)[::-1]
    top = ordered[: AMONG + 1]
    top = top[top > 0]
    return int(np.sum(ordered > -ordered[-1])), int(np.argmax(top[:-1] / top[1:])) + 1


def spectrum(raw_dir: str | None, quick: bool, numbers: dict[str, Any]) -> list[str]:
    """Tabulate the first finding, on spectra of the Hessian; add to the numbers of the figures."""
    settings = dataclasses.replace(
        BASE, n_workers=0, n_hidden=10, n_steps=200 if quick else 3000, hessian=True,
        n_eigenvalues=12, density_probes=0, full_spectrum=True, freq_h=100 if quick else 500,
        lines="none",
    )  # fmt: skip
    tables = {
        seed: run(f"spectrum-seed-{seed}", dataclasses.replace(settings, seed=seed), raw_dir)
        for seed in (SEEDS[:1] if quick else SEEDS)
    }
    lines = [
        "## 1. The spectrum of nn-10-2, 8,070 weights",
        "",
        "One network, trained by SGD. Its Hessian on the way (the ends of the spectrum):",
        "",
        "| seed | step | training loss | test error (%) | largest | smallest | "
        "-smallest / largest |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, table in tables.items():
        losses = {row["step"]: row for row in of_kind(table, "stats")}
        for row in of_kind(table, "spectrum"):
            at = losses[row["step"]]
            error = 100 * (1 - at["test"]["correct"] / settings.n_samples_test)
            largest, smallest = row["right"][0], row["left"][0]
            lines.append(
                f"| {seed} | {row['step']} | {at['train']['loss']:.4f} | {error:.1f} | "
                f"{largest:.3g} | {smallest:.2g} | {-smallest / largest:.2g} |"
            )
    lines += [
        "",
        "At the end, all eigenvalues: how many are negative, how many small against the largest "
        "λ1 (by\nmagnitude), and how many stand out: those above minus the smallest, and those "
        f"above the widest gap\n(by ratio, among the {AMONG} largest). There are 10 classes.",
        "",
        "| seed | negative | below λ1 / 1000 | below λ1 / 100 | above minus the smallest | "
        "above the widest gap | the 12 largest |",
        "|---|---|---|---|---|---|---|",
    ]
    spectra = {
        seed: np.sort(of_kind(table, "full_spectrum")[-1]["eigenvalues"])[::-1]
        for seed, table in tables.items()
    }
    for seed, values in spectra.items():
        shares = [np.mean(values < 0)] + [
            np.mean(np.abs(values) < t * values[0]) for t in (1e-3, 1e-2)
        ]
        cells = [f"{100 * share:.1f} %" for share in shares]
        cells += [*map(str, outliers(values)), " ".join(f"{v:.3g}" for v in values[:12])]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    numbers["spectra"] = {
        str(seed): {
            "eigenvalues": rounded(spectra[seed], 4),
            "steps": [row["step"] for row in of_kind(table, "spectrum")],
            "largest": rounded([row["right"][0] for row in of_kind(table, "spectrum")]),
            "smallest": rounded([row["left"][0] for row in of_kind(table, "spectrum")]),
        }
        for seed, table in tables.items()
    }
    return [*lines, ""]


def between(raw_dir: str | None, quick: bool, numbers: dict[str, Any]) -> list[str]:
    """Tabulate the second finding, on lines between workers; add to the numbers of the figures."""
    lines = [
        "## 2. Barriers between four workers of nn-100-2",
        "",
        "Training loss above the straight line between the two workers, in nats: mean over the six "
        "pairs,\nand the largest; mean ± sample standard deviation over seeds 1, 2, 3.",
        "",
        "| start | alpha | distance | linear: mean | linear: largest | spherical: mean | "
        "spherical: largest | training loss | center's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    numbers["lines"] = {}
    for start, std in STARTS.items():
        for alpha in ALPHAS:
            found: list[list[float]] = []
            losses: list[list[float]] = []
            for seed in SEEDS[:1] if quick else SEEDS:
                settings = dataclasses.replace(
                    BASE, n_workers=4, alpha=alpha, weight_init_std=std, lines="both", seed=seed,
                    freq_i=0, n_steps=100 if quick else 1000,
                )  # fmt: skip
                table = run(f"{start}-alpha-{alpha:g}-seed-{seed}", settings, raw_dir)
                pairs = [row for row in of_kind(table, "line") if row["j"] > 0]
                by = {
                    kind: [r["train"]["barrier"] for r in pairs if r["line"] == kind]
                    for kind in ("linear", "spherical")
                }
                last = of_kind(table, "stats")[-5:]
                found.append(
                    [
                        float(np.mean([r["distance"] for r in pairs])),
                        *(f(by[k]) for k in ("linear", "spherical") for f in (np.mean, max)),
                        float(np.mean([r["train"]["loss"] for r in last[1:]])),
                        last[0]["train"]["loss"],
                    ]
                )
                losses += [rounded(r["train"]["loss"]) for r in pairs if r["line"] == "linear"]
            numbers["lines"][f"{start} {alpha:g}"] = {
                "coefficients": rounded(pairs[0]["coefficients"]),
                # Of all pairs of all seeds.
                "losses": losses,
            }
            mean = np.mean(found, axis=0)
            spread = np.zeros_like(mean) if quick else np.std(found, axis=0, ddof=1)
            cells = [f"{m:.3g} ± {s:.1g}" for m, s in zip(mean, spread, strict=True)]
            if not alpha:
                cells[-1] = "(full-batch GD) " + cells[-1]
            lines.append(f"| {start} | {alpha:g} | {' | '.join(cells)} |")
    return [*lines, ""]


def plot_spectra(numbers: dict[str, Any]) -> None:
    """Plot the largest eigenvalues by rank, and the ends of the spectrum over time."""
    figure = figure_of(9.0, 4.2)
    left, right = figure.subplots(1, 2)
    for n, (seed, found) in enumerate(numbers["spectra"].items()):
        look = {"color": COLORS[n], "marker": MARKERS[n], "ms": 5}
        left.plot(range(1, 41), found["eigenvalues"][:40], ls="", label=f"seed {seed}", **look)
        right.plot(found["steps"], found["largest"], ls="-", **look)
        right.plot(found["steps"], np.negative(found["smallest"]), ls="--", **look)
    left.axvline(10, color="0.5", ls=":", lw=1.5)
    left.set(xlabel="rank (dotted: 10, the classes)", ylabel="eigenvalue at the end", yscale="log")
    left.legend()
    right.set(xlabel="minibatch steps", ylabel="magnitude of the eigenvalue", yscale="log")
    right.plot([], [], "k-", label="largest")
    right.plot([], [], "k--", label="most negative")
    right.legend()
    finish(figure, OUT / "spectrum_at_the_end.png")


def plot_lines(numbers: dict[str, Any]) -> None:
    """Plot the training loss on lines between workers: median and range of pairs and seeds."""
    figure = figure_of(9.0, 4.2)
    panels = figure.subplots(1, len(STARTS), sharey=True)
    for panel, start in zip(panels, STARTS, strict=True):
        for n, alpha in enumerate(ALPHAS):
            found = numbers["lines"][f"{start} {alpha:g}"]
            at, losses = found["coefficients"], np.array(found["losses"])
            panel.plot(
                at, np.median(losses, axis=0), color=COLORS[n], ls=LINES[n], lw=2,
                label=f"α = {alpha:g}",
            )  # fmt: skip
            panel.fill_between(
                at, losses.min(axis=0), losses.max(axis=0), color=COLORS[n], alpha=0.2, lw=0
            )
        panel.set(xlabel="from one worker (0) to the other (1)", yscale="log")
        panel.set_title("one start" if start == "one" else "separate starts")
    panels[0].set_ylabel("training loss (nats)")
    panels[0].legend()  # where there is room
    finish(figure, OUT / "lines.png")


def plot(numbers: dict[str, Any]) -> None:
    """Plot both findings."""
    plot_spectra(numbers)
    plot_lines(numbers)


def main() -> None:
    """Run, tabulate, plot."""
    parser = parser_of(__doc__, data="MNIST")
    parser.add_argument("--quick", action="store_true", help="few steps, one seed: to try it out")
    flags = parser.parse_args()
    if flags.draw:
        plot(read_numbers(OUT / "numbers.json"))
        return
    OUT.mkdir(exist_ok=True)
    head = [
        "# Walkers on 1,000 digits",
        "",
        "Made by",
        "",
        f"    python3 results/walkers.py --raw_dir DIR{' --quick' if flags.quick else ''}",
        "",
        f"on {machine()}.\nSGD, lr {BASE.lr:g}, momentum "
        f"{BASE.momentum:g}, minibatches of {BASE.batch_size}.",
        "",
    ]
    numbers: dict[str, Any] = {}
    lines = spectrum(flags.raw_dir, flags.quick, numbers)
    lines += between(flags.raw_dir, flags.quick, numbers)
    text = "\n".join([*head, *lines])
    (OUT / "table.md").write_text(text)
    write_numbers(OUT / "numbers.json", numbers)
    plot(numbers)
    print(text)


if __name__ == "__main__":
    main()
