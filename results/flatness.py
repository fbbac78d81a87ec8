#!/usr/bin/env python3
"""SGD against Entropy-SGD on the full Fashion-MNIST: whose valley is wider?

Command:          python3 results/flatness.py --raw_dir DIR    (DIR: the archives of Fashion-MNIST)
Expected time:    40 minutes on two cores: six runs of 4 minutes, then 15 minutes of measuring
Expected result:  results/flatness/table.md, density.png and local_energy.png

LeNet (mnistconv) by SGD with momentum and by Entropy-SGD (L = 20), three seeds each, twelve
effective epochs: 5,628 gradient evaluations for both. A run is

    python3 train.py --preset quickstart -d fashion_mnist -opt OPTIMIZER -e 12 --lr_drops 7,10 -s N

and a run that is there already is not trained again. All six are measured at their last anchor, on
the same images, by `python3 -m esgd_tf landscape`.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "flatness"
OPTIMIZERS, SEEDS, EPOCHS = ("momentum", "entropy-sgd"), (1, 2, 3), 12
MEASURES = ("--density", "--local_energy", "-N", "1024", "--probes", "4", "--steps", "50",
            "--perturbations", "15", "--sigmas", "0.1,0.2,0.3,0.4,0.5")  # fmt: skip
SIGMAS_SHOWN = (0.1, 0.3, 0.5)


def train(runs: Path, raw_dir: str | None, data_dir: str) -> None:
    """Train the runs that do not exist yet."""
    for optimizer in OPTIMIZERS:
        for seed in SEEDS:
            name = f"{optimizer}-{seed}"
            history = runs / name / "history.csv"
            if history.exists() and len(history.read_text().splitlines()) == EPOCHS + 1:
                continue
            command = [sys.executable, "train.py", "--preset", "quickstart", "-d", "fashion_mnist"]
            command += ["-opt", optimizer, "-e", str(EPOCHS), "--lr_drops", "7,10"]
            command += ["-s", str(seed), "--logdir", str(runs), "-n", name, "--data_dir", data_dir]
            command += ["-L", "20"] if optimizer == "entropy-sgd" else []
            command += ["--raw_dir", raw_dir] if raw_dir else []
            subprocess.run(command, cwd=ROOT, check=True)


def spread(values: Sequence[float], digits: int) -> str:
    """Return the mean and the sample standard deviation over the seeds."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def row(optimizer: str, runs: Path, found: list[dict[str, Any]]) -> str:
    """Return the row of one optimizer."""
    errors, losses = [], []
    for seed in SEEDS:
        with (runs / f"{optimizer}-{seed}" / "history.csv").open() as file:
            last = list(csv.DictReader(file))[-1]
        errors.append(100 * (1 - float(last["val_accuracy"])))
        losses.append(float(last["val_loss"]))
    own = [r for r in found if r["label"].rsplit("-", 1)[0] == optimizer]
    densities = [r["result"] for r in own if r["measure"] == "density"]
    energies = [r["result"] for r in own if r["measure"] == "local_energy"]
    largest = [max(d["nodes"]) for d in densities]
    smallest = [min(d["nodes"]) for d in densities]
    traces = [
        d["size"] * sum(n * w for n, w in zip(d["nodes"], d["weights"], strict=True))
        for d in densities
    ]
    cells = [optimizer, spread(errors, 2), spread(losses, 3), spread(largest, 2)]
    cells += [spread(smallest, 3), spread(traces, 1)]
    for sigma in SIGMAS_SHOWN:
        k = energies[0]["sigmas"].index(sigma)
        cells.append(spread([100 * e["increase"]["test"]["error"][k] for e in energies], 2))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Train, measure, tabulate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw_dir", help="folder with the archives of Fashion-MNIST")
    parser.add_argument("--data_dir", default="tfrecords", help="where prepared data lie")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results-flatness")
    flags = parser.parse_args()
    train(flags.runs, flags.raw_dir, flags.data_dir)
    names = [f"{optimizer}-{seed}" for optimizer in OPTIMIZERS for seed in SEEDS]
    command = [sys.executable, "-m", "esgd_tf", "landscape", *MEASURES, "--out", str(OUT)]
    command += ["--data_dir", flags.data_dir, *(str(flags.runs / name) for name in names)]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads((OUT / "landscape.json").read_text())["results"]
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
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(row(optimizer, flags.runs, found) for optimizer in OPTIMIZERS),
    ]
    (OUT / "table.md").write_text("\n".join(lines) + "\n")
    for name in ("landscape.json", "landscape.csv"):  # large, and made again by the command
        (OUT / name).unlink()
    print("\n".join(lines))


if __name__ == "__main__":
    main()
