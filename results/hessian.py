#!/usr/bin/env python3
"""The Hessian of a small LeNet on MNIST: the spectrum of Chaudhari et al. (2017), figure 1.

Command:          python3 results/hessian.py --raw_dir DIR      (DIR: the archives of MNIST)
Expected time:    half an hour on two cores: 9 minutes for density and extremes of the larger
                  network, 16 for the exact spectrum of the smaller
Expected result:  results/hessian/table.md and spectrum.png: nearly all eigenvalues are tiny, a few
                  are large and positive, the negative ones are small; density and exact spectrum of
                  the smaller network agree; --draw plots again, from numbers.json

Networks: lenet-10-20-128, the paper's small-LeNet (47,658 weights), and lenet-4-10-50 (9,674),
small enough to form its matrix. Both are trained by Adam (1e-3) with minibatches of 128, without
dropout, until the test error is below the paper's 2.4 %. The Hessian is that of the mean cross
entropy on the first 4,096 training images (1,024 for the exact spectrum).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
import tensorflow as tf

from esgd_tf import _density, data, models
from esgd_tf.landscape import (
    FullSpectrum,
    HessianOperator,
    SpectralDensity,
    eigenpairs,
    full_spectrum,
    spectral_density,
    trace,
)
from results._shared import (
    COLORS,
    LINES,
    figure_of,
    finish,
    machine,
    parser_of,
    read_numbers,
    rounded,
    write_numbers,
)

OUT = Path(__file__).resolve().parent / "hessian"
SEED = 1
LARGE, SMALL = "lenet-10-20-128", "lenet-4-10-50"
THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1)
# Standard deviation of the Gaussian that smooths the spectra, in units of the eigenvalues.
BANDWIDTH = 0.05


def mnist(raw_dir: str | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return MNIST with pixels from 0 to 1."""
    found = data.load("mnist", raw_dir=raw_dir)
    return {
        "train": (found.train_images.astype("float32") / 255, found.train_labels),
        "test": (found.test_images.astype("float32") / 255, found.test_labels),
    }


def trained(name: str, splits: dict[str, Any]) -> tuple[keras.Model, float, int]:
    """Train until the test error falls below 2.4 %; return model, test error and steps."""
    keras.utils.set_random_seed(SEED)
    model = models.build(name, (28, 28, 1), 10, seed=SEED)
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    x, y = splits["train"]
    batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(y), seed=SEED).repeat()
    iterator = iter(batches.batch(128))
    steps = 0
    while True:
        for _ in range(50):
            model.train_on_batch(*next(iterator))
        steps += 50
        accuracy = model.evaluate(*splits["test"], batch_size=1000, verbose=0)[1]
        if accuracy > 1 - 0.024 or steps >= 5000:
            return model, 100 * (1 - accuracy), steps


def share(spectrum: FullSpectrum | SpectralDensity, magnitude: float) -> str:
    """Return the share of eigenvalues below a magnitude, in %, with any standard error."""
    found = spectrum.fraction_below(magnitude)
    if isinstance(found, tuple):
        return f"{100 * found[0]:.1f} ± {100 * found[1]:.1f}"
    return f"{100 * found:.1f}"


def main() -> None:
    """Train, measure, tabulate, plot."""
    parser = parser_of(__doc__, data="MNIST")
    parser.add_argument("--columns", type=Path, help="keep the exact matrix here meanwhile")
    flags = parser.parse_args()
    if flags.draw:
        plot(read_numbers(OUT / "numbers.json"))
        return
    splits = mnist(flags.raw_dir)
    OUT.mkdir(exist_ok=True)
    x, y = splits["train"]
    lines = []

    model, error, steps = trained(LARGE, splits)
    start = time.perf_counter()
    hessian = HessianOperator(model, None, (x[:4096], y[:4096]), batch_size=1024)
    large = spectral_density(hessian, num_probes=6, num_steps=100, seed=SEED)
    low = eigenpairs(hessian, 1, "SA", tol=1e-3, max_matvecs=200, seed=SEED)
    high = eigenpairs(hessian, 10, "LA", tol=1e-3, max_matvecs=200, seed=SEED)
    total = trace(hessian, 60, seed=SEED)
    minutes = (time.perf_counter() - start) / 60
    lines += [
        "## lenet-10-20-128, 47,658 weights, 4,096 images",
        "",
        f"Adam, {steps} steps of 128 images: test error {error:.2f} %. Density (6 probes of 100 "
        f"steps), extreme\neigenvalues and trace took {minutes:.1f} minutes.",
        "",
        "| | here | the paper |",
        "|---|---|---|",
        f"| test error (%) | {error:.2f} | 2.4 |",
        f"| largest eigenvalue | {high.eigenvalues[0]:.2f} (residual {high.residuals[0]:.1g}) "
        "| about 40 |",
        f"| smallest eigenvalue | {low.eigenvalues[-1]:.3f} (residual {low.residuals[-1]:.1g}) "
        "| -0.46 |",
        f"| the ten largest | {', '.join(f'{v:.1f}' for v in high.eigenvalues)} | |",
        f"| trace | {total.estimate:.1f} ± {total.standard_error:.1f} | |",
        "| share below 1e-4 in magnitude (%) | not resolved by 100 steps; see below | about 94 |",
        f"| share below 0.1 in magnitude (%) | {share(large, 0.1)} | |",
        "",
    ]

    model, error, steps = trained(SMALL, splits)
    hessian = HessianOperator(model, None, (x[:1024], y[:1024]), batch_size=1024)
    small = spectral_density(hessian, num_probes=10, num_steps=100, seed=SEED)
    start = time.perf_counter()
    exact = full_spectrum(hessian, path=flags.columns)
    minutes = (time.perf_counter() - start) / 60
    moments = []
    for power in range(1, 5):
        truth = np.mean(exact.eigenvalues**power)
        value, spread = small.mean(lambda t, p=power: t**p)
        moments.append(
            f"| mean of λ^{power} | {truth:.4g} | {value:.4g} ± {spread:.1g} "
            f"({(value - truth) / spread:+.1f} std. err.) |"
        )
    lines += [
        "## lenet-4-10-50, 9,674 weights, 1,024 images",
        "",
        f"Adam, {steps} steps: test error {error:.2f} %. The exact spectrum took {minutes:.1f} "
        "minutes.",
        "",
        "| | exact | density, 10 probes of 100 steps |",
        "|---|---|---|",
        f"| largest eigenvalue | {exact.eigenvalues[-1]:.3f} | {small.largest:.3f} |",
        f"| smallest eigenvalue | {exact.eigenvalues[0]:.4f} | {small.smallest:.4f} |",
        *moments,
        *(
            f"| share below {t:g} in magnitude (%) | {share(exact, t)} | {share(small, t)} |"
            for t in THRESHOLDS
        ),
        "",
        f"Asymmetry of the matrix, from rounding: {exact.asymmetry:.1g} of its largest entry.",
        "",
    ]
    kept = {
        "nodes": rounded(small.nodes, 6),
        "weights": rounded(small.weights, 6),
        "eigenvalues": rounded(exact.eigenvalues, 4),
    }
    write_numbers(OUT / "numbers.json", kept)
    plot(kept)
    head = [
        "# The Hessian of a small LeNet on MNIST",
        "",
        "Made by",
        "",
        "    python3 results/hessian.py --raw_dir DIR",
        "",
        f"on {machine()};\nseed {SEED}.",
        "",
    ]
    text = "\n".join([*head, *lines])
    (OUT / "table.md").write_text(text)
    print(text)


def plot(numbers: dict[str, Any]) -> None:
    """Plot the density and all eigenvalues of the small network, smoothed alike."""
    nodes, exact = np.array(numbers["nodes"]), np.array(numbers["eigenvalues"])
    grid = _density.grid_for(exact, 4000)
    floor = 0.1 / len(exact) / BANDWIDTH
    curves = {
        "all eigenvalues": _density.bells(exact, grid, BANDWIDTH).mean(axis=1),
        "density, 10 probes of 100 steps": _density.bells(nodes, grid, BANDWIDTH)
        @ np.array(numbers["weights"]),
    }
    figure = figure_of(7.0, 4.2)
    axis = figure.subplots()
    for n, (label, density) in enumerate(curves.items()):
        shown = np.where(density > floor, density, np.nan)
        axis.plot(grid, shown, color=COLORS[n], ls=LINES[n], lw=1.5, label=label)
    ends = [exact.min(), exact.max()]
    axis.plot(ends, [2 * floor] * 2, "^k", ms=8, ls="", label="smallest and largest")
    axis.set(
        xlabel=f"eigenvalue of the Hessian (smoothed by a Gaussian of σ = {BANDWIDTH})",
        ylabel="density of eigenvalues", yscale="log", ylim=(floor, None),
    )  # fmt: skip
    axis.legend()
    finish(figure, OUT / "spectrum.png")


if __name__ == "__main__":
    main()
