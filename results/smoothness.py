#!/usr/bin/env python3
"""Is the local entropy smoother than the loss, and has it fewer minima?

Command:          python3 results/smoothness.py        (--draw: figure and table, from numbers.json)
Expected time:    about 20 minutes on one core
Expected result:  results/smoothness/table.md and smoothness.png

Chaudhari et al. (2017) show under an assumption on the Hessian that the gradient of the local
entropy F changes less from place to place than that of the loss f, the less the smaller the scope.
Here both slopes are measured along lines through the weights of a run of SGD: from its initial
weights to its last ones, from the weights after two epochs to the last ones, and from the last ones
in two random directions (each filter of the size that it has in the weights).

f is the mean loss over 512 training images. At each place x(s) of a line with unit vector u, the
slope of -F is γ u·(x - ⟨x'⟩), with ⟨x'⟩ the mean over the Gibbs density, in proportion to
exp(-β (f(x') + γ/2 ‖x - x'‖²)), from four chains of Langevin dynamics with an accept step. β =
10,000 keeps x' where the loss is low, as the small noise of Entropy-SGD does. For each line and
scope the table has

    K        the largest |slope(s_{i+1}) - slope(s_i)| / |x(s_{i+1}) - x(s_i)|: along this line the
             gradient's Lipschitz constant is no smaller; its error is that of the largest pair
    minima   places where the slope changes from - to +, each by more than two standard errors

Of F, K has the noise of the chains in it, whose maximum over the pairs is above 0 even for a slope
that never changes; "K of noise" is what it would be then.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from results._shared import (
    COLORS,
    LINES,
    ROOT,
    figure_of,
    finish,
    history,
    parser_of,
    read_numbers,
    rounded,
    write_numbers,
)

Array = NDArray[np.float64]

OUT = ROOT / "results" / "smoothness"
NAME, MODEL, EPOCHS, EARLY = "lenet-1", "lenet-4-8-32", 20, 2
IMAGES, BETA, GAMMAS = 512, 1e4, (30.0, 3.0, 0.3)
PLACES, CHAINS, BURN_IN, SAMPLES = 33, 4, 60, 120
SEED = 1


def train(runs: Path) -> None:
    """Train the run, unless it is there."""
    if len(history(runs / NAME)) == EPOCHS:
        return
    command = [sys.executable, "train.py", "--preset", "quickstart", "-m", MODEL, "--dropout", "0"]
    command += ["-opt", "momentum", "-e", str(EPOCHS), "-s", "1", "--keep_every", str(EARLY)]
    command += ["--logdir", str(runs), "-n", NAME]
    subprocess.run(command, cwd=ROOT, check=True)


class Slopes:
    """The slopes of f and of -F along lines, for one model and its data."""

    def __init__(self, model: Any, loss: Any, data: Any) -> None:
        from esgd_tf.landscape._displaced import Displaced  # noqa: PLC0415 - loads TensorFlow
        from esgd_tf.landscape._objective import Objective  # noqa: PLC0415

        self.objective = Objective(model, loss, data)
        self.origin = self.objective.flatten(self.objective.start)
        self._displaced = Displaced(self.objective, CHAINS)

    def of_loss(self, points: Array, direction: Array) -> Array:
        """Return u·∇f at points, which are displacements from the model's weights."""
        found = []
        for point in points:
            _, slopes = self._displaced(np.repeat(point[None], CHAINS, axis=0))
            found.append(float(slopes[0] @ direction))
        return np.array(found)

    def of_local_entropy(
        self, points: Array, direction: Array, gamma: float, seed: int
    ) -> tuple[Array, Array]:
        """Return γ u·(x - ⟨x'⟩) at points, and its standard errors, from the chains' means."""
        from esgd_tf.landscape._chains import Chains  # noqa: PLC0415 - loads TensorFlow

        rng = np.random.default_rng(seed)
        before = points[0]
        start = np.repeat(before[None], CHAINS, axis=0)
        chains = Chains(self._target(before, gamma), start, 1.0 / (BETA * 20.0), rng)
        chains.burn_in(BURN_IN, _NoBar())
        means, errors = [], []
        for point in points:
            # From where they stand about the place before.
            chains.points += point - before
            chains.retarget(self._target(point, gamma))
            chains.burn_in(BURN_IN, _NoBar())
            before = point
            along = np.zeros((CHAINS, SAMPLES))
            for k in range(SAMPLES):
                chains.step()
                along[:, k] = (point - chains.points) @ direction
            by_chain = gamma * along.mean(axis=1)
            means.append(by_chain.mean())
            errors.append(by_chain.std(ddof=1) / np.sqrt(CHAINS))
        return np.array(means), np.array(errors)

    def _target(self, center: Array, gamma: float) -> Any:
        def energies(points: Array) -> tuple[Array, Array]:
            values, slopes = self._displaced(points)
            away = points - center
            energy = values + 0.5 * gamma * (away**2).sum(axis=1)
            return BETA * energy, BETA * (slopes + gamma * away)

        return energies


class _NoBar:
    """A progress bar that shows nothing."""

    def update(self, steps: int) -> None:
        """Do nothing."""


def lines(initial: Array, early: Array, shapes: Any, last: Array) -> dict[str, tuple[Array, Array]]:
    """Return both ends of each line, as displacements from the last weights."""
    rng = np.random.default_rng(SEED)
    found = {
        "initial to last weights": (initial - last, 0.25 * (last - initial)),
        "after two epochs to last": (early - last, 0.5 * (last - early)),
    }
    for k in (1, 2):
        parts, at = [], 0
        for shape in shapes:
            size = int(np.prod(shape))
            w = last[at : at + size].reshape(shape)
            z = rng.standard_normal(shape)
            axes = tuple(range(len(shape) - 1)) if len(shape) > 1 else None
            norm = np.sqrt((w**2).sum(axis=axes, keepdims=True))
            parts.append((z / np.sqrt((z**2).sum(axis=axes, keepdims=True)) * norm).ravel())
            at += size
        direction = np.concatenate(parts)
        found[f"random direction {k}"] = (-direction, direction)
    return found


def measure(runs: Path) -> dict[str, Any]:
    """Measure all lines."""
    import keras  # noqa: PLC0415 - loads TensorFlow

    from esgd_tf import data, load_model  # noqa: PLC0415
    from esgd_tf.runs.initial_weights import read_initial_weights  # noqa: PLC0415
    from esgd_tf.runs.stored_run import StoredRun  # noqa: PLC0415

    images = data.load("fashion_mnist_small", data_dir=str(ROOT / "tfrecords"))
    scale = data.preprocessor("meanstd", images)
    x = np.asarray(scale(images.train_images[:IMAGES]))
    y = images.train_labels[:IMAGES]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    folder = runs / NAME
    model = load_model(folder / "checkpoints" / "last.keras")
    slopes = Slopes(model, loss, (x, y))
    stored = read_initial_weights(StoredRun.open(folder), [w.shape for w in model.weights])
    initial = np.concatenate([w.ravel() for w in stored])
    early_model = load_model(folder / "checkpoints" / "kept" / f"epoch-{EARLY:05d}.keras")
    early = np.concatenate([w.ravel() for w in early_model.get_weights()])
    found: dict[str, Any] = {}
    for name, (begin, end) in lines(initial, early, slopes.objective.shapes, slopes.origin).items():
        length = float(np.linalg.norm(end - begin))
        u = (end - begin) / length
        s = np.linspace(0.0, 1.0, PLACES)
        points = begin + s[:, None] * (end - begin)
        entry: dict[str, Any] = {
            "length": length,
            "s": rounded(s),
            "f": rounded(slopes.of_loss(points, u)),
            "F": {},
        }
        for gamma in GAMMAS:
            means, errors = slopes.of_local_entropy(points, u, gamma, SEED)
            entry["F"][f"{gamma:g}"] = {"slope": rounded(means), "error": rounded(errors)}
        found[name] = entry
        print(f"{name}: done", flush=True)
    return {"lines": found}


def steepest(slope: Any, error: Any, step: float) -> tuple[float, float, float]:
    """Return K, its standard error, and what K would be by the noise alone."""
    slope, error = np.asarray(slope), np.asarray(error)
    changes = np.abs(np.diff(slope)) / step
    spread = np.sqrt(error[1:] ** 2 + error[:-1] ** 2) / step
    at = int(np.argmax(changes))
    # The mean of the largest of so many normal numbers, by simulation.
    noise = np.abs(np.random.default_rng(0).standard_normal((2000, len(spread)))) * spread
    return float(changes[at]), float(spread[at]), float(noise.max(axis=1).mean())


def minima(slope: Any, error: Any) -> int:
    """Return how often the slope goes from - to +, where it is known by two standard errors."""
    slope, error = np.asarray(slope), np.asarray(error)
    signs = np.sign(slope)[np.abs(slope) > 2 * error]
    return int(((signs[:-1] < 0) & (signs[1:] > 0)).sum())


def table(numbers: dict[str, Any]) -> str:
    """Return the table."""
    rows = ["| line | function | K | K of noise | minima |", "|---|---|---|---|---|"]
    for name, line in numbers["lines"].items():
        step = line["length"] / (len(line["s"]) - 1)
        none = np.zeros(len(line["s"]))
        k, _, _ = steepest(line["f"], none, step)
        rows.append(f"| {name} | f | {k:.3g} | 0 | {minima(line['f'], none)} |")
        for gamma, found in line["F"].items():
            k, error, noise = steepest(found["slope"], found["error"], step)
            rows.append(
                f"| | -F, γ = {gamma} | {k:.3g} ± {error:.2g} | {noise:.2g} "
                f"| {minima(found['slope'], found['error'])} |"
            )
    return (
        "# Is the local entropy smoother than the loss?\n\n"
        f"{MODEL} (5,370 weights), {IMAGES} training images of the quickstart's part of\n"
        f"Fashion-MNIST, β = {BETA:,.0f}, {PLACES} places a line, {CHAINS} chains of {SAMPLES} "
        "samples at each, one seed.\n"
        "What K, its error and the minima are, the script says. Made by\n\n"
        "    python3 results/smoothness.py\n\n"
        f"on {numbers['made_by']}.\n\n" + "\n".join(rows) + "\n"
    )


def plot(numbers: dict[str, Any]) -> None:
    """Plot f and -F along each line, integrated from their slopes."""
    figure = figure_of(10.0, 7.6)
    axes = figure.subplots(2, 2).ravel()
    for axis, (name, line) in zip(axes, numbers["lines"].items(), strict=True):
        at = np.asarray(line["s"]) * line["length"]
        curves = {"f": line["f"]}
        curves |= {f"-F, γ = {gamma}": found["slope"] for gamma, found in line["F"].items()}
        for k, (label, values) in enumerate(curves.items()):
            slope = np.asarray(values)
            rise = np.concatenate([[0.0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(at))])
            axis.plot(at, rise - rise.min(), color=COLORS[k], ls=LINES[k], lw=2, label=label)
        axis.set(
            title=name, xlabel="distance along the line", ylabel="height over its lowest place"
        )
    axes[0].legend()
    finish(figure, OUT / "smoothness.png")


def main() -> None:
    """Train and measure what is missing, tabulate, and plot."""
    flags = parser_of(__doc__, runs="results-smoothness").parse_args()
    OUT.mkdir(exist_ok=True)
    if not flags.draw:
        train(flags.runs)
        write_numbers(OUT / "numbers.json", measure(flags.runs))
    numbers = read_numbers(OUT / "numbers.json")
    (OUT / "table.md").write_text(table(numbers))
    plot(numbers)
    print((OUT / "table.md").read_text())


if __name__ == "__main__":
    main()
