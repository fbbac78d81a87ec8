#!/usr/bin/env python3
"""The Hessian of a small LeNet on MNIST: the spectrum of Chaudhari et al. (2017), figure 1.

Command:          python3 results/hessian.py --raw_dir DIR      (DIR: the archives of MNIST)
Expected time:    half an hour on two cores: 9 minutes for density and extremes of the larger
                  network, 16 for the exact spectrum of the smaller
Expected result:  results/hessian/table.md and spectrum.png: nearly all eigenvalues are tiny, a few
                  are large and positive, the negative ones are small; density and exact spectrum of
                  the smaller network agree

Networks: lenet-10-20-128, the paper's small-LeNet (47,658 weights), and lenet-4-10-50 (9,674),
small enough to form its matrix. Both are trained by Adam (1e-3) with minibatches of 128, without
dropout, until the test error is below the paper's 2.4 %. The Hessian is that of the mean cross
entropy on the first 4,096 training images (1,024 for the exact spectrum).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from esgd_tf import data, models
from esgd_tf.landscape import (
    FullSpectrum,
    HessianOperator,
    SpectralDensity,
    eigenpairs,
    full_spectrum,
    spectral_density,
    trace,
)

OUT = Path(__file__).resolve().parent / "hessian"
SEED = 1
LARGE, SMALL = "lenet-10-20-128", "lenet-4-10-50"
THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1)


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw_dir", help="folder with the archives of MNIST")
    parser.add_argument("--columns", type=Path, help="keep the exact matrix here meanwhile")
    flags = parser.parse_args()
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
    plot(large, small, exact)
    head = [
        "# The Hessian of a small LeNet on MNIST",
        "",
        "Made by",
        "",
        "    python3 results/hessian.py --raw_dir DIR",
        "",
        f"on {os.cpu_count()} cores, Python {platform.python_version()}, TensorFlow "
        f"{tf.__version__}, Keras {keras.__version__}, seed {SEED}.",
        "",
    ]
    text = "\n".join([*head, *lines])
    (OUT / "table.md").write_text(text)
    print(text)


def plot(large: SpectralDensity, small: SpectralDensity, exact: FullSpectrum) -> None:
    """Plot the density of the large network beside density and exact spectrum of the small one."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    large.plot(ax=left)
    left.set_title("lenet-10-20-128: 47,658 weights", fontsize="medium")
    width = exact.eigenvalues[-1] - exact.eigenvalues[0]
    bandwidth = 0.01 * width
    small.plot(ax=right, bandwidth=bandwidth)
    right.lines[-1].set_label("density (10 probes)")
    grid = right.lines[-1].get_xdata()
    bells = np.zeros_like(grid)
    for part in np.array_split(exact.eigenvalues, 50):
        z = (grid[:, None] - part) / bandwidth
        bells += np.exp(-0.5 * z**2).sum(axis=1)
    bells /= len(exact.eigenvalues) * bandwidth * np.sqrt(2 * np.pi)
    floor = right.get_ylim()[0]
    right.plot(grid, np.maximum(bells, floor), "k--", lw=1, label="all eigenvalues")
    right.set_title("lenet-4-10-50: 9,674 weights", fontsize="medium")
    right.legend()
    for ax in (left, right):
        ax.grid(alpha=0.3)
    figure.savefig(OUT / "spectrum.png", dpi=130)


if __name__ == "__main__":
    main()
