"""Hessian products, eigenvalues and densities: against a gradient, and against PyTorch's tools.

Command:   python3 benchmarks/landscape.py            (the figures to report)
           python3 benchmarks/landscape.py --quick    (products only, two periods)
Expected:  about 12 minutes on 2 quiet CPU cores, 1 with --quick. Nothing else should run.
Result:    a Hessian-vector product takes at most 2.5 times a gradient evaluation; five eigenvalues
           and a density of 10 probes and 100 steps take no longer than with hessian-eigenthings,
           and five eigenvalues no longer than with PyHessian, at the same residuals.

The comparisons need `pip install torch pyhessian hessian-eigenthings`, best in an environment of
their own; without, they are left out. PyHessian's density is not compared: it calls `torch.eig`,
which PyTorch removed in 1.13.

Networks: lenet-10-20-128 (47,658 weights) on images of 28x28, and an MLP of three layers,
784-128-128-10 (118,282 weights), in float32, with the same weights and the same 512 examples, one
batch, on both sides; the script checks that the two losses and one product agree. The data
are noise around ten class means, which the networks are trained on first, so that the Hessian has
outliers as that of a trained network does.

Contenders take turns in one process; a period gives one ratio, and the median of periods is the
figure (20 periods for products, 3 for eigenvalues, 1 for densities, which take minutes).
PyHessian's eigenvalues are those of power iteration with deflation: it runs to the same residual as
the others, by the tolerance that first reaches it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# So that the script runs from a checkout as it is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
import tensorflow as tf

from benchmarks._measure import Stepper, hardware, measure, report_ratio, torch
from esgd_tf import models
from esgd_tf.landscape import HessianOperator, eigenpairs, spectral_density

_EXAMPLES, _BATCH, _CLASSES = 512, 512, 10
_K, _TOL = 5, 1e-3
_PROBES, _STEPS = 10, 100


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Noise around ten class means: images [n, 28, 28, 1] and labels [n]."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(_CLASSES, 28, 28, 1))
    labels = rng.integers(0, _CLASSES, _EXAMPLES)
    images = 0.3 * means[labels] + rng.normal(size=(_EXAMPLES, 28, 28, 1))
    # One label in ten is wrong: with all of them right the loss, and its Hessian, would vanish.
    wrong = rng.random(_EXAMPLES) < 0.1
    labels = np.where(wrong, rng.integers(0, _CLASSES, _EXAMPLES), labels)
    return images.astype("float32"), labels


def network(name: str) -> keras.Model:
    """A trained network."""
    if name == "mlp":
        layers = [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(_CLASSES),
        ]
        model = keras.Sequential(layers)
    else:
        model = models.build("lenet-10-20-128", (28, 28, 1), _CLASSES, seed=0)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss(), jit_compile=False)
    model.fit(*examples(), epochs=1 if name == "mlp" else 6, batch_size=64, verbose=0)
    return model


def loss() -> keras.losses.Loss:
    """Cross entropy of logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# ---- the product, over a gradient -------------------------------------------------------------


def gradient(operator: HessianOperator) -> Callable[[], Any]:
    """One gradient over all the data: what `fit` computes, on the data of the operator."""
    return operator.gradient


def forward_over_reverse(model: keras.Model) -> Callable[[], None]:
    """The other way to a product, for comparison."""
    criterion = loss()
    weights = [v.value for v in model.trainable_variables]
    tangents = [tf.ones_like(w) for w in weights]

    @tf.function(autograph=False)
    def product(x: tf.Tensor, y: tf.Tensor) -> list[tf.Tensor]:
        tensors = [tf.identity(w) for w in weights]
        with tf.autodiff.ForwardAccumulator(tensors, tangents) as forward:
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                out = model.stateless_call(tensors, [], x, training=False)[0]
                value = criterion(y, out)
            slopes = tape.gradient(value, tensors)
        return [forward.jvp(s) for s in slopes]

    x, y = examples()
    batches = [
        (tf.constant(x[i : i + _BATCH]), tf.constant(y[i : i + _BATCH]))
        for i in range(0, _EXAMPLES, _BATCH)
    ]

    def run() -> None:
        for batch in batches:
            for part in product(*batch):
                part.numpy()

    return run


def repeated(function: Callable[[], Any]) -> Stepper:
    """A stepper that calls a function n times."""

    def step(count: int) -> None:
        for _ in range(count):
            function()

    return step


# ---- the same network in PyTorch --------------------------------------------------------------


def in_torch(name: str, model: keras.Model) -> Any:
    """The same network, with the same weights, on images [n, 1, 28, 28]."""
    nn = torch.nn
    if name == "mlp":
        sizes = [nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
        twin = nn.Sequential(*sizes, nn.Linear(128, _CLASSES))
    else:
        twin = nn.Sequential(
            nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Flatten(), nn.Linear(320, 128), nn.ReLU(), nn.Linear(128, _CLASSES),
        )  # fmt: skip
    with torch.no_grad():
        for theirs, ours in zip(twin.parameters(), model.trainable_variables, strict=True):
            value = ours.numpy()
            if value.ndim == 4:
                value = value.transpose(3, 2, 0, 1)
            elif value.shape == (320, 128):  # rows are (h, w, c) here and (c, h, w) there
                value = value.reshape(4, 4, 20, 128).transpose(2, 0, 1, 3).reshape(320, 128).T
            elif value.ndim == 2:
                value = value.T
            theirs.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return twin.eval()


def torch_batches() -> list[tuple[Any, Any]]:
    """The examples as a list of batches, which both tools take as a data loader."""
    x, y = examples()
    images, labels = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y)
    return [(images[i : i + _BATCH], labels[i : i + _BATCH]) for i in range(0, _EXAMPLES, _BATCH)]


def torch_gradient(twin: Any, batches: list[tuple[Any, Any]]) -> Callable[[], None]:
    """One gradient over all the data in PyTorch."""
    parameters = list(twin.parameters())

    def run() -> None:
        for x, y in batches:
            value = torch.nn.functional.cross_entropy(twin(x), y)
            torch.autograd.grad(value, parameters)

    return run


# ---- the runs ---------------------------------------------------------------------------------


def products(name: str, periods: int) -> dict[str, Any]:
    """Compare one product with one gradient, here and there."""
    model = network(name)
    operator = HessianOperator(model, loss(), examples(), batch_size=_BATCH)
    n = operator.shape[0]
    vector = np.random.default_rng(1).standard_normal(n)
    block = np.random.default_rng(2).standard_normal((n, 8))
    steppers = {
        "gradient": repeated(gradient(operator)),
        "product": repeated(lambda: operator @ vector),
        "8 products": repeated(lambda: operator @ block),
        "forward over reverse": repeated(forward_over_reverse(model)),
    }
    if torch:
        from hessian_eigenthings import HessianOperator as Theirs  # noqa: PLC0415
        from hessian_eigenthings import supervised_loss  # noqa: PLC0415

        twin, batches = in_torch(name, model), torch_batches()
        criterion = torch.nn.CrossEntropyLoss()
        theirs = Theirs(twin, batches, supervised_loss(criterion))
        probe = torch.from_numpy(vector.astype("float32"))
        steppers["torch gradient"] = repeated(torch_gradient(twin, batches))
        steppers["hessian-eigenthings product"] = repeated(lambda: theirs.matvec(probe))
        there = np.mean([criterion(twin(x), y).item() for x, y in batches])
        print(f"{name}: {n:,} weights, loss {operator.loss():.6f} here, {there:.6f} in PyTorch")
    for stepper in steppers.values():
        stepper(2)
    seconds = measure(steppers, turn=2, turns=2, periods=periods, at_most=3 * periods)
    for contender, taken in seconds.items():
        print(f"  {contender:30s} {1000 * np.median(taken[:, 0]):8.1f} ms")
    seconds["one of 8 products"] = seconds["8 products"] / 8
    lines = [
        report_ratio(seconds, "product", "gradient", "2.5 or less"),
        report_ratio(seconds, "one of 8 products", "gradient", ""),
        report_ratio(seconds, "forward over reverse", "product", ""),
    ]
    if torch:
        lines += [
            report_ratio(seconds, "product", "hessian-eigenthings product", "1.0 or less"),
            report_ratio(seconds, "hessian-eigenthings product", "torch gradient", ""),
        ]
    return {"network": name, "weights": n, "ratios": lines}


def residuals_there(operator: Any, values: Any, vectors: Any) -> float:
    """Largest ‖H v - λ v‖ / λ_max of what another tool found, by its own product."""
    worst = 0.0
    for value, vector in zip(values, vectors, strict=True):
        v = vector / torch.linalg.norm(vector)
        worst = max(worst, float(torch.linalg.norm(operator.matvec(v) - value * v)))
    return worst / float(max(values))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def spectra(name: str, periods: int) -> dict[str, Any]:
    """Compare eigenvalues and densities, in turns."""
    from hessian_eigenthings import HessianOperator as Theirs  # noqa: PLC0415
    from hessian_eigenthings import lanczos, supervised_loss  # noqa: PLC0415
    from hessian_eigenthings import spectral_density as their_density  # noqa: PLC0415
    from pyhessian import hessian as PyHessian  # noqa: N812, PLC0415

    model = network(name)
    operator = HessianOperator(model, loss(), examples(), batch_size=_BATCH)
    twin, batches = in_torch(name, model), torch_batches()
    criterion = torch.nn.CrossEntropyLoss()
    theirs = Theirs(twin, batches, supervised_loss(criterion))

    def ours() -> Any:
        return eigenpairs(operator, _K, tol=_TOL, progress=False)

    operator @ np.ones((operator.shape[0], 8))  # traced before it is timed
    pairs = ours()
    reached = float(pairs.residuals.max() / pairs.eigenvalues.max())
    print(
        f"{name}: eigenvalues {np.round(pairs.eigenvalues, 3).tolist()}, residual {reached:.1e}, "
        f"{pairs.matvecs} products"
    )

    # The fewest Lanczos steps, and the loosest tolerance, that reach the same residual.
    steps = 2 * _K
    while True:
        found = lanczos(theirs, k=_K, max_iter=steps, which="LA", seed=0, reorthogonalize=True)
        there = residuals_there(theirs, found.eigenvalues, found.eigenvectors)
        if there <= max(reached, _TOL) or steps > 200:
            break
        steps += 5
    print(f"  hessian-eigenthings: {steps} steps, residual {there:.1e}")
    tolerance, iterations = _TOL, 1000

    def power() -> Any:
        return PyHessian(twin, criterion, dataloader=batches, cuda=False).eigenvalues(
            maxIter=iterations, tol=tolerance, top_n=_K
        )

    while True:
        torch.manual_seed(0)
        values, vectors = power()
        flat = [torch.cat([p.reshape(-1) for p in v]) for v in vectors]
        by_power = residuals_there(theirs, values, flat)
        if by_power <= max(reached, _TOL) or tolerance < 1e-8:
            break
        tolerance /= 10
    print(f"  PyHessian: tolerance {tolerance:.0e}, residual {by_power:.1e}")

    contenders = {
        "five eigenvalues, esgd_tf": ours,
        "five eigenvalues, hessian-eigenthings": lambda: lanczos(
            theirs, k=_K, max_iter=steps, which="LA", seed=0, reorthogonalize=True
        ),
        "five eigenvalues, PyHessian": power,
        "density, esgd_tf": lambda: spectral_density(operator, _PROBES, _STEPS, progress=False),
        "density, hessian-eigenthings": lambda: their_density(
            theirs, num_runs=_PROBES, lanczos_steps=_STEPS, seed=0
        ),
    }
    seconds: dict[str, np.ndarray] = {}
    taken: dict[str, list[list[float]]] = {c: [] for c in contenders}
    for period in range(periods):
        for contender, function in contenders.items():
            if period and contender.startswith("density"):
                continue  # a thousand products: minutes, so once
            processor = time.process_time()
            wall, _ = timed(function)
            taken[contender].append([wall, time.process_time() - processor])
    for contender, rows in taken.items():
        seconds[contender] = np.array(rows)
        print(f"  {contender:40s} {np.median(seconds[contender][:, 0]):8.2f} s")
    lines = [
        report_ratio(seconds, f"{what}, esgd_tf", f"{what}, {tool}", "1.0 or less")
        for what, tool in (
            ("five eigenvalues", "hessian-eigenthings"),
            ("five eigenvalues", "PyHessian"),
            ("density", "hessian-eigenthings"),
        )
    ]
    return {"network": name, "residuals": [reached, there, by_power], "ratios": lines}


def main() -> None:
    """Reads the flags and runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=("lenet", "mlp"), default=["lenet", "mlp"])
    parser.add_argument("--quick", action="store_true", help="products only, two periods")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    flags = parser.parse_args()
    machine = hardware()
    print(machine, flush=True)
    keras.utils.set_random_seed(0)
    results = [products(name, 2 if flags.quick else 20) for name in flags.networks]
    if torch and not flags.quick:
        results += [spectra(name, 3) for name in flags.networks]
    if flags.json:
        flags.json.write_text(json.dumps({"hardware": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
