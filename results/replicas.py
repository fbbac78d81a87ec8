#!/usr/bin/env python3
r"""Replicas against one network, at equal numbers of gradient evaluations.

Command:          python3 results/replicas.py --raw_dir DIR    (DIR: the archives of both data sets)
Expected time:    two hours on two cores: 42 runs of one to six minutes, then measuring
                  --draw plots the figure again, from the table
Expected result:  results/replicas/table.md and methods.png: errors, distances, local energies

LeNet (lenet-10-20-128, without BatchNorm) on the full Fashion-MNIST and, for 32x32 colour images,
on CIFAR-10 without augmentation, three seeds each, eight effective epochs. A run is

    python3 train.py --preset conv-cifar10 -d DATASET -m lenet-10-20-128 -opt OPTIMIZER -e 8 \
        --lr_drops 5,7 --lr 0.05 --augmentation none -s N

with the flags of `METHODS`; runs and measurements that exist are not repeated. Local energy: the
increase of the test error under multiplicative noise, at the center (or anchor), 15 samples of the
noise, 1,024 test images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from results._shared import (
    COLORS,
    MARKERS,
    ROOT,
    figure_of,
    finish,
    history,
    machine,
    mean_and_spread,
    parser_of,
)

OUT = ROOT / "results" / "replicas"
SEEDS, EPOCHS = (1, 2, 3), 8
DATASETS = {"fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
COMMON = ("--preset", "conv-cifar10", "-m", "lenet-10-20-128", "--augmentation", "none",
          "-e", str(EPOCHS), "--lr_drops", "5,7", "--lr", "0.05")  # fmt: skip
METHODS: dict[str, tuple[str, ...]] = {
    "SGD": ("-opt", "momentum"),
    "Entropy-SGD": ("-opt", "entropy-sgd", "-L", "5", "--lr", "1", "--langevin_lr", "0.05"),
    "rSGD": ("-opt", "rsgd", "--focusing_growth", "100"),
    "EASGD": ("-opt", "easgd"),
    "Parle": ("-opt", "parle", "--lr", "1", "--langevin_lr", "0.05"),
    "rSGD x 3": ("-opt", "rsgd", "--focusing_growth", "100", "--budget", "each"),
    # What three budgets do without replicas.
    "SGD x 3": ("-opt", "momentum", "-e", str(3 * EPOCHS), "--lr_drops", "15,21"),
}
REPLICATED = ("rSGD", "EASGD", "Parle", "rSGD x 3")
SIGMAS = (0.1, 0.2, 0.3)
IMAGES = 1024


def run_name(dataset: str, method: str, seed: int) -> str:
    """Return the name of a run's folder."""
    return f"{dataset}-{method.replace(' ', '').lower()}-{seed}"


def train(runs: Path, raw_dir: str | None, data_dir: str, flags: argparse.Namespace) -> None:
    """Train the runs that do not exist yet."""
    for seed in flags.seeds:
        for dataset in flags.datasets:
            for method, own in METHODS.items():
                name = run_name(dataset, method, seed)
                if len(history(runs / name)) == EPOCHS * (3 if method == "SGD x 3" else 1):
                    continue
                command = [sys.executable, "train.py", *COMMON, *own, "-d", dataset]
                command += ["-s", str(seed), "--logdir", str(runs), "-n", name]
                command += ["--data_dir", data_dir]
                command += ["--monitor", str(IMAGES)] if method in REPLICATED else []
                command += ["--raw_dir", raw_dir] if raw_dir else []
                subprocess.run(command, cwd=ROOT, check=True)


def local_energies(runs: Path, dataset: str, data_dir: str) -> dict[str, dict[str, Any]]:
    """Return the local energy of every run of a data set; each is measured only once."""
    out = runs / f"landscape-{dataset}"
    names = [run_name(dataset, method, seed) for method in METHODS for seed in SEEDS]
    command = [sys.executable, "-m", "esgd_tf", "landscape", "--local_energy", "-N", str(IMAGES)]
    command += ["--perturbations", "15", "--sigmas", ",".join(map(str, SIGMAS))]
    command += ["--out", str(out), "--data_dir", data_dir, *(str(runs / n) for n in names)]
    if set(energies := read_energies(out)) != set(names):
        subprocess.run(command, cwd=ROOT, check=True)
        energies = read_energies(out)
    return energies


def read_energies(out: Path) -> dict[str, dict[str, Any]]:
    """Return what the landscape command wrote; nothing if it has not run yet."""
    path = out / "landscape.json"
    found = json.loads(path.read_text())["results"] if path.exists() else []
    return {r["label"]: r["result"] for r in found if r["measure"] == "local_energy"}


def table(runs: Path, dataset: str, energies: dict[str, dict[str, Any]]) -> list[str]:
    """Return the table of one data set."""
    header = ["method", "gradient evaluations", "test error (%)", "test loss", "train loss"]
    header += ["mean error of the replicas (%)", "error of the ensemble (%)", "distance / 10⁻⁴"]
    header += [f"local energy, σ = {sigma:g} (% points)" for sigma in SIGMAS]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for method in METHODS:
        last = [history(runs / run_name(dataset, method, seed))[-1] for seed in SEEDS]

        def numbers(name: str, rows: Sequence[dict[str, str]] = last) -> list[float]:
            return [float(row[name]) for row in rows]

        def errors(name: str, rows: Sequence[dict[str, str]] = last) -> list[float]:
            return [100 * (1 - float(row[name])) for row in rows]

        cells = [method, f"{numbers('gradient_evaluations')[0]:,.0f}"]
        cells += [
            mean_and_spread(errors("val_accuracy"), 2),
            mean_and_spread(numbers("val_loss"), 3),
        ]
        cells.append(mean_and_spread(numbers("loss"), 3))
        if method in REPLICATED:
            of_replicas = [
                statistics.mean(errors(f"test_replica{a}_accuracy", [row])[0] for a in range(3))
                for row in last
            ]
            cells += [
                mean_and_spread(of_replicas, 2),
                mean_and_spread(errors("test_ensemble_accuracy"), 2),
            ]
            cells.append(mean_and_spread([1e4 * d for d in numbers("distance")], 2))
        else:
            cells += ["", "", ""]
        own = [energies[run_name(dataset, method, seed)] for seed in SEEDS]
        for sigma in SIGMAS:
            k = own[0]["sigmas"].index(sigma)
            cells.append(mean_and_spread([100 * e["increase"]["test"]["error"][k] for e in own], 2))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def read_table(dataset: str) -> dict[str, dict[str, str]]:
    """Return the cells of a data set's table, by method and column."""
    section = (OUT / "table.md").read_text().split(f"## {dataset}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|") and not line.startswith("|--")
    ]
    header, *body = rows
    return {row[0]: dict(zip(header, row, strict=True)) for row in body}


def plot(datasets: Sequence[str]) -> None:
    """Plot the test error and the local energy of each method, as the table has them."""
    columns = {
        "test error (%)": "test error (%)",
        f"local energy, σ = {SIGMAS[-1]:g} (% points)": (
            f"local energy (% points)\nat σ = {SIGMAS[-1]:g}"
        ),
    }
    figure = figure_of(9.0, 6.0)
    axes = figure.subplots(len(columns), len(datasets), sharey=True, squeeze=False)
    for row, (column, label) in zip(axes, columns.items(), strict=True):
        for axis, dataset in zip(row, datasets, strict=True):
            cells = read_table(dataset)
            for n, method in enumerate(METHODS):
                mean, deviation = map(float, cells[method][column].split(" ± "))
                axis.errorbar(
                    mean, n, xerr=deviation, fmt=MARKERS[method in REPLICATED], ms=8, lw=2,
                    capsize=4, color=COLORS[method in REPLICATED],
                )  # fmt: skip
            axis.set(xlabel=label)
            axis.set_yticks(range(len(METHODS)), METHODS)
            if column == next(iter(columns)):
                axis.set_title(DATASETS[dataset])
    axes[0, 0].invert_yaxis()
    finish(figure, OUT / "methods.png")


def main() -> None:
    """Train, measure, tabulate, plot."""
    parser = parser_of(__doc__, data="Fashion-MNIST and CIFAR-10", runs="results-replicas")
    parser.add_argument("--datasets", nargs="+", choices=list(DATASETS), default=list(DATASETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="for --train_only")
    parser.add_argument("--train_only", action="store_true", help="measure later")
    flags = parser.parse_args()
    if flags.draw:
        plot(flags.datasets)
        return
    train(flags.runs, flags.raw_dir, flags.data_dir, flags)
    if flags.train_only:
        return
    OUT.mkdir(exist_ok=True)
    lines = [
        "# Replicas against one network",
        "",
        "LeNet (lenet-10-20-128), eight effective epochs; mean and sample standard deviation over",
        "seeds 1, 2, 3. Test error and loss are at the center of the replicas, or the anchor;",
        f"errors of replicas and ensemble on {IMAGES:,} test images. Made by",
        "",
        "    python3 results/replicas.py --raw_dir DIR",
        "",
        f"on {machine()}.",
        "",
    ]
    for dataset in flags.datasets:
        energies = local_energies(flags.runs, dataset, flags.data_dir)
        lines += [f"## {dataset}", "", *table(flags.runs, dataset, energies), ""]
    (OUT / "table.md").write_text("\n".join(lines))
    plot(flags.datasets)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
