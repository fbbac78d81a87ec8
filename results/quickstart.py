#!/usr/bin/env python3
"""The quickstart with each optimizer and several seeds, at equal gradient evaluations.

Command:          python3 results/quickstart.py        (--draw: the figure again, from numbers.json)
Expected time:    about 12 minutes on two cores
Expected result:  results/quickstart/table.md; all three between 87 and 89 % test accuracy, SGD with
                  momentum ahead; and curves.png, the test error on the way

Every run is `python3 train.py --preset quickstart -opt OPTIMIZER -s SEED`, and what is reported is
the last epoch's accuracy on the test set, not the best one's. A run that is there already is not
trained again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from results._shared import (
    ROOT,
    figure_of,
    finish,
    history,
    mean_and_spread,
    parser_of,
    plot_mean_and_spread,
    read_numbers,
    rounded,
    write_numbers,
)

OUT = ROOT / "results" / "quickstart"
OPTIMIZERS = {"entropy-sgd": "Entropy-SGD, L = 20", "momentum": "SGD-Nesterov", "adam": "Adam"}
SEEDS, EPOCHS = (1, 2, 3), 20


def train(runs: Path) -> None:
    """Train the runs that do not exist yet."""
    for optimizer in OPTIMIZERS:
        for seed in SEEDS:
            name = f"{optimizer}-{seed}"
            if len(history(runs / name)) == EPOCHS:
                continue
            command = [sys.executable, "train.py", "--preset", "quickstart", "-opt", optimizer]
            command += ["-s", str(seed), "--logdir", str(runs), "-n", name]
            command += ["-L", "20"] if optimizer == "entropy-sgd" else []
            subprocess.run(command, cwd=ROOT, check=True)


def collect(runs: Path) -> dict[str, Any]:
    """Return the numbers of each run: test error and loss after each epoch, and what it cost."""
    found: dict[str, Any] = {}
    for optimizer in OPTIMIZERS:
        for seed in SEEDS:
            rows = history(runs / f"{optimizer}-{seed}")
            found[f"{optimizer}-{seed}"] = {
                "gradient_evaluations": [int(float(r["gradient_evaluations"])) for r in rows],
                "error": rounded([100 * (1 - float(r["val_accuracy"])) for r in rows]),
                "loss": rounded([float(r["val_loss"]) for r in rows]),
                "outer_updates": int(float(rows[-1]["outer_updates"])),
            }
    return {"runs": found}


def table(numbers: dict[str, Any]) -> str:
    """Return the table."""
    lines = [
        "| optimizer | test error (%) | test loss | gradient evaluations | outer updates |",
        "|---|---|---|---|---|",
    ]
    for optimizer in OPTIMIZERS:
        runs = [numbers["runs"][f"{optimizer}-{seed}"] for seed in SEEDS]
        lines.append(
            f"| {optimizer} | {mean_and_spread([run['error'][-1] for run in runs], 2)} "
            f"| {mean_and_spread([run['loss'][-1] for run in runs], 3)} "
            f"| {runs[0]['gradient_evaluations'][-1]:,} | {runs[0]['outer_updates']:,} |"
        )
    return (
        "# The quickstart, by optimizer\n\n"
        "LeNet with BatchNorm on the embedded subset of Fashion-MNIST (8,750 training and 1,750\n"
        "test images), 20 effective epochs. Mean and sample standard deviation over seeds "
        f"{', '.join(map(str, SEEDS))},\nat the end of the last epoch. Made by\n\n"
        f"    python3 results/quickstart.py\n\non {numbers['made_by']}.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def plot(numbers: dict[str, Any]) -> None:
    """Plot the test error on the way, mean and spread per optimizer."""
    figure = figure_of(7.0, 4.2)
    axis = figure.subplots()
    for n, (optimizer, label) in enumerate(OPTIMIZERS.items()):
        runs = [numbers["runs"][f"{optimizer}-{seed}"] for seed in SEEDS]
        steps = runs[0]["gradient_evaluations"]
        plot_mean_and_spread(axis, steps, [run["error"] for run in runs], n, label)
    axis.set(
        xlabel="gradient evaluations", ylabel="test error (%)", ylim=(10, 25), xlim=(0, None),
        title=f"mean ± sample standard deviation of {len(SEEDS)} seeds",
    )  # fmt: skip
    axis.legend()
    finish(figure, OUT / "curves.png")


def main() -> None:
    """Train what is missing, tabulate, and plot."""
    flags = parser_of(__doc__, runs="results-quickstart").parse_args()
    if not flags.draw:
        train(flags.runs)
        write_numbers(OUT / "numbers.json", collect(flags.runs))
    numbers = read_numbers(OUT / "numbers.json")
    (OUT / "table.md").write_text(table(numbers))
    plot(numbers)
    print((OUT / "table.md").read_text())


if __name__ == "__main__":
    main()
