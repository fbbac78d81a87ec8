#!/usr/bin/env python3
"""SGD against Entropy-SGD on the full Fashion-MNIST: whose valley is wider?

Command:          python3 results/flatness.py --raw_dir DIR    (DIR: the archives of Fashion-MNIST)
                  python3 results/flatness.py --draw           (figures again, from numbers.json)
Expected time:    40 minutes on two cores: six runs of 4 minutes, then 15 minutes of measuring
Expected result:  results/flatness/table.md, density.png and local_energy.png

LeNet (mnistconv) by SGD with momentum and by Entropy-SGD (L = 20), three seeds each, twelve
effective epochs: 5,628 gradient evaluations for both. A run is

    python3 train.py --preset quickstart -d fashion_mnist -opt OPTIMIZER -e 12 --lr_drops 7,10 -s N

and a run that is there already is not trained again. All six are measured at their last anchor, on
the same images, by `python3 -m esgd_tf landscape`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from esgd_tf import _density
from results._shared import (
    COLORS,
    LINES,
    MARKERS,
    ROOT,
    figure_of,
    finish,
    history,
    mean_and_spread,
    parser_of,
    read_numbers,
    rounded,
    write_numbers,
)

OUT = ROOT / "results" / "flatness"
OPTIMIZERS = {"momentum": "SGD-Nesterov", "entropy-sgd": "Entropy-SGD, L = 20"}
SEEDS, EPOCHS = (1, 2, 3), 12
MEASURES = ("--density", "--local_energy", "-N", "1024", "--probes", "4", "--steps", "50",
            "--perturbations", "16", "--sigmas", "0.1,0.2,0.3,0.4,0.5")  # fmt: skip
SIGMAS_SHOWN = (0.1, 0.3, 0.5)
# Standard deviation of the Gaussian that smooths the densities, in units of the eigenvalues.
BANDWIDTH = 0.02


def train(runs: Path, raw_dir: str | None, data_dir: str) -> None:
    """Train the runs that do not exist yet."""
    for optimizer in OPTIMIZERS:
        for seed in SEEDS:
            name = f"{optimizer}-{seed}"
            if len(history(runs / name)) == EPOCHS:
                continue
            command = [sys.executable, "train.py", "--preset", "quickstart", "-d", "fashion_mnist"]
            command += ["-opt", optimizer, "-e", str(EPOCHS), "--lr_drops", "7,10"]
            command += ["-s", str(seed), "--logdir", str(runs), "-n", name, "--data_dir", data_dir]
            command += ["-L", "20"] if optimizer == "entropy-sgd" else []
            command += ["--raw_dir", raw_dir] if raw_dir else []
            subprocess.run(command, cwd=ROOT, check=True)


def measure(runs: Path, data_dir: str) -> dict[str, Any]:
    """Measure all runs, and return what the table and the figures need of each."""
    out = runs / "landscape"
    names = [f"{optimizer}-{seed}" for optimizer in OPTIMIZERS for seed in SEEDS]
    command = [sys.executable, "-m", "esgd_tf", "landscape", *MEASURES, "--out", str(out)]
    command += ["--data_dir", data_dir, *(str(runs / name) for name in names)]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads((out / "landscape.json").read_text())["results"]
    by = {(r["label"], r["measure"]): r["result"] for r in found}
    numbers: dict[str, Any] = {}
    for name in names:
        last = history(runs / name)[-1]
        density, energy = by[name, "density"], by[name, "local_energy"]
        numbers[name] = {
            "error": 100 * (1 - float(last["val_accuracy"])),
            "loss": float(last["val_loss"]),
            "sigmas": energy["sigmas"],
            "increase of the test error": rounded(
                [100 * v for v in energy["increase"]["test"]["error"]]
            ),
            "size": density["size"],
            "nodes": rounded(density["nodes"], 7),
            "weights": rounded(density["weights"], 7),
        }
    return {"runs": numbers}


def table(numbers: dict[str, Any]) -> str:
    """Return the table."""
    header = ["optimizer", "test error (%)", "test loss", "largest eigenvalue", "smallest", "trace"]
    header += [f"increase of the test error at σ = {sigma:g} (% points)" for sigma in SIGMAS_SHOWN]
    lines = [
        "# SGD against Entropy-SGD: how wide are the valleys?",
        "",
        "LeNet (mnistconv, 132,220 weights) on Fashion-MNIST, 5,628 gradient evaluations; mean and",
        "sample standard deviation over seeds 1, 2, 3. Hessian of the mean cross entropy on 1,024",
        "training images; local energy under multiplicative noise on 1,024 test images. Made by",
        "",
        "    python3 results/flatness.py --raw_dir DIR",
        "",
        f"on {numbers['made_by']}.",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
    ]
    for optimizer in OPTIMIZERS:
        runs = [numbers["runs"][f"{optimizer}-{seed}"] for seed in SEEDS]
        traces = [run["size"] * np.dot(run["nodes"], run["weights"]) for run in runs]
        cells = [
            optimizer,
            mean_and_spread([run["error"] for run in runs], 2),
            mean_and_spread([run["loss"] for run in runs], 3),
            mean_and_spread([max(run["nodes"]) for run in runs], 2),
            mean_and_spread([min(run["nodes"]) for run in runs], 3),
            mean_and_spread(traces, 1),
        ]
        for sigma in SIGMAS_SHOWN:
            k = runs[0]["sigmas"].index(sigma)
            cells.append(mean_and_spread([r["increase of the test error"][k] for r in runs], 2))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot_local_energy(numbers: dict[str, Any]) -> None:
    """Plot the rise of the test error under noise, mean and spread per optimizer."""
    figure = figure_of(7.0, 4.2)
    axis = figure.subplots()
    for n, (optimizer, label) in enumerate(OPTIMIZERS.items()):
        runs = [numbers["runs"][f"{optimizer}-{seed}"] for seed in SEEDS]
        values = np.array([run["increase of the test error"] for run in runs])
        axis.errorbar(
            runs[0]["sigmas"], values.mean(axis=0), yerr=values.std(axis=0, ddof=1), ls=LINES[n],
            marker=MARKERS[n], color=COLORS[n], lw=2, capsize=4, label=label,
        )  # fmt: skip
    axis.set(
        xlabel="σ of multiplicative noise on the weights",
        ylabel="increase of the test error (% points)",
        title=f"mean ± sample standard deviation of {len(SEEDS)} seeds",
    )
    axis.legend()
    finish(figure, OUT / "local_energy.png")


def plot_density(numbers: dict[str, Any]) -> None:
    """Plot the densities of eigenvalues, mean per optimizer, with the ends of every seed."""
    figure = figure_of(7.0, 4.2)
    axis = figure.subplots()
    all_nodes = np.concatenate([run["nodes"] for run in numbers["runs"].values()])
    size = next(iter(numbers["runs"].values()))["size"]
    grid = _density.grid_for(all_nodes, 4000)
    floor = 0.1 / size / BANDWIDTH
    for n, (optimizer, label) in enumerate(OPTIMIZERS.items()):
        runs = [numbers["runs"][f"{optimizer}-{seed}"] for seed in SEEDS]
        density = np.mean(
            [_density.bells(run["nodes"], grid, BANDWIDTH) @ run["weights"] for run in runs], axis=0
        )
        axis.plot(
            grid, np.where(density > floor, density, np.nan), color=COLORS[n], ls=LINES[n], lw=1.5,
            label=label,
        )  # fmt: skip
        ends = [end(run["nodes"]) for run in runs for end in (min, max)]
        axis.plot(ends, [floor * 2.0 ** (n + 1)] * len(ends), MARKERS[n], color=COLORS[n], ms=7)
    axis.set(
        xlabel=f"eigenvalue of the Hessian (smoothed by a Gaussian of σ = {BANDWIDTH})",
        ylabel="density of eigenvalues", yscale="log", ylim=(floor, None),
        title=f"mean of {len(SEEDS)} seeds; marks: smallest and largest of each",
    )  # fmt: skip
    axis.legend()
    finish(figure, OUT / "density.png")


def main() -> None:
    """Train, measure, tabulate, plot."""
    flags = parser_of(__doc__, data="Fashion-MNIST", runs="results-flatness").parse_args()
    if not flags.draw:
        train(flags.runs, flags.raw_dir, flags.data_dir)
        write_numbers(OUT / "numbers.json", measure(flags.runs, flags.data_dir))
    numbers = read_numbers(OUT / "numbers.json")
    (OUT / "table.md").write_text(table(numbers))
    plot_local_energy(numbers)
    plot_density(numbers)
    print((OUT / "table.md").read_text())


if __name__ == "__main__":
    main()
