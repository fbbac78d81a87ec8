#!/usr/bin/env python3
"""Which measures see a factor between two layers, which the network does not show?

Command:          python3 results/rescaling.py        (--draw: the table again, from numbers.json)
Expected time:    about 10 minutes on one core
Expected result:  results/rescaling/table.md

lenet-4-8-32 is trained on the quickstart's part of Fashion-MNIST, once:

    python3 train.py --preset quickstart -m lenet-4-8-32 --dropout 0 -opt momentum -s 1

and its first and third layer are multiplied by c, the second and fourth divided by c. All outputs
stay as they are. Each measure is taken of both networks, on the same 512 training images and with
the same random numbers; the table has the ratio of the two.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from results._shared import ROOT, history, parser_of, read_numbers, write_numbers

OUT = ROOT / "results" / "rescaling"
NAME, MODEL, EPOCHS = "lenet-1", "lenet-4-8-32", 20
FACTORS = (2.0, 4.0)
IMAGES = 512
# By how much a measure may differ and still be said to be the same: rounding, and for a radius that
# is found by bisection the width of its last interval.
SAME, SAME_RADIUS = 0.01, 0.03


def train(runs: Path) -> None:
    """Train the run, unless it is there."""
    if len(history(runs / NAME)) == EPOCHS:
        return
    command = [sys.executable, "train.py", "--preset", "quickstart", "-m", MODEL, "--dropout", "0"]
    command += ["-opt", "momentum", "-e", str(EPOCHS), "-s", "1"]
    command += ["--logdir", str(runs), "-n", NAME]
    subprocess.run(command, cwd=ROOT, check=True)


def measures(loss: Any, data: Any) -> dict[str, Callable[[Any], float]]:
    """Return what is measured, as functions of the model that give a number."""
    from esgd_tf import landscape as ls  # noqa: PLC0415 - loads TensorFlow

    def hessian(model: Any) -> Any:
        return ls.HessianOperator(model, loss, data)

    def gauss_newton(model: Any) -> Any:
        return ls.GaussNewtonOperator(model, loss, data)

    def energy(model: Any, noise: Any, sigma: float) -> float:
        found = ls.local_energy(
            model, data, "loss", sigmas=[sigma], samples=20, noise=noise, loss=loss
        )
        return float(found.curve()[0][0])

    def of_error(model: Any, noise: Any) -> float:
        found = ls.pac_bayes_sigma(
            model, data, "error", noise=noise, samples=10, rtol=0.01, loss=loss
        )
        return found.sigma

    def radius(model: Any, box: Any) -> float:
        return ls.worst_case_radius(model, data, box=box, epsilon=1e-9, loss=loss).radius

    def sharpness(model: Any, kind: Any, **options: Any) -> float:
        return ls.sharpness(model, loss, data, kind=kind, **options).value

    def entropy(model: Any) -> float:
        operator = hessian(model)
        found = ls.laplace_local_entropy(operator, [10.0, 100.0], num_probes=4, num_steps=40)
        # Without what a flat loss has of it, which is nearly all.
        return float(found.excess[0])

    def layer(model: Any, number: int) -> float:
        return float(ls.relative_flatness(model, loss, data, num_matvecs=30).values[number])

    return {
        "loss": lambda m: hessian(m).loss(),
        "norm of the gradient": lambda m: float(np.linalg.norm(hessian(m).gradient())),
        "largest eigenvalue of H": lambda m: float(ls.eigenpairs(hessian(m)).eigenvalues[0]),
        "trace of H": lambda m: ls.trace(hessian(m), 60).estimate,
        "Frobenius norm of H": lambda m: ls.frobenius_norm(hessian(m)).estimate,
        "effective dimension of the Gauss-Newton matrix, γ = 0.1": lambda m: float(
            ls.effective_dimension(gauss_newton(m), [0.1], num_probes=4, num_steps=40).values[0]
        ),
        "largest eigenvalue, per weight": lambda m: float(
            ls.eigenpairs(ls.RelativeOperator(hessian(m))).eigenvalues[0]
        ),
        "trace, per weight": lambda m: ls.trace(ls.RelativeOperator(hessian(m)), 60).estimate,
        "largest eigenvalue, per filter": lambda m: float(
            ls.eigenpairs(ls.RelativeOperator(hessian(m), "filter")).eigenvalues[0]
        ),
        "Fisher-Rao norm": lambda m: ls.fisher_rao_norm(gauss_newton(m)).estimate,
        "relative flatness of the first layer": lambda m: layer(m, 0),
        "relative flatness of the last layer": lambda m: layer(m, -1),
        "local energy of the loss, additive, σ = 0.01": lambda m: energy(m, "additive", 0.01),
        "local energy of the loss, multiplicative, σ = 0.1": lambda m: energy(
            m, "multiplicative", 0.1
        ),
        "σ by which the error rises by 0.1, additive": lambda m: of_error(m, "additive"),
        "σ, multiplicative": lambda m: of_error(m, "multiplicative"),
        "σ, mixed, ε = 0.001": lambda m: of_error(m, "mixed"),
        "worst-case radius, additive": lambda m: radius(m, "additive"),
        "worst-case radius, relative, ε = 1e-9": lambda m: radius(m, "relative"),
        "sharpness: SAM": lambda m: sharpness(m, "sam"),
        "sharpness: ASAM, η = 0": lambda m: sharpness(m, "asam", eta=0.0),
        "sharpness: ASAM, η = 0.01": lambda m: sharpness(m, "asam", eta=0.01),
        "sharpness: Keskar's": lambda m: sharpness(m, "epsilon"),
        "m-sharpness of SAM, m = 64": lambda m: ls.m_sharpness(m, loss, data, m=64).mean,
        "local entropy (Laplace) beyond a flat loss's, γ = 10 to 100": entropy,
    }


def measure(runs: Path) -> dict[str, Any]:
    """Measure the network and its rescaled copies."""
    import keras  # noqa: PLC0415 - loads TensorFlow

    from esgd_tf import data as sources  # noqa: PLC0415
    from esgd_tf import landscape  # noqa: PLC0415
    from esgd_tf.runs.checkpoints import load_network  # noqa: PLC0415

    model, _ = load_network(runs / NAME / "checkpoints" / "last.keras")
    images = sources.load("fashion_mnist_small")
    prepare = sources.preprocessor("meanstd", images)
    x = np.asarray(prepare(images.train_images[:IMAGES].astype("float32")))
    data = x, images.train_labels[:IMAGES]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    networks = {1.0: model} | {c: landscape.rescaled(model, c) for c in FACTORS}
    outputs = model.predict(x, verbose=0)
    found: dict[str, Any] = {}
    for c, network in networks.items():
        if not np.array_equal(network.predict(x, verbose=0), outputs):
            raise SystemExit(f"The network rescaled by {c:g} does not compute the same.")
    for name, function in measures(loss, data).items():
        found[name] = {f"{c:g}": float(function(network)) for c, network in networks.items()}
        print(f"{name}: {found[name]}", flush=True)
    weights = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    return {"weights": weights, "measures": found}


def table(numbers: dict[str, Any]) -> str:
    """Return the table."""
    header = ["measure", "of the network"]
    header += [f"ratio for c = {c:g}" for c in FACTORS] + ["moves"]
    lines = [
        "# Which measures see a factor between two layers?",
        "",
        f"{MODEL} ({numbers['weights']:,} weights), trained by SGD with momentum on the part of",
        "Fashion-MNIST that the quickstart has (one seed), and the same network with its first and",
        "third layer multiplied by c and its second and fourth divided by c. Every output is the",
        f"same, bit for bit. Measured on {IMAGES} training images, with the same random numbers",
        "for all; ratios are those to the network itself. What differs by less than",
        f"{100 * SAME:g} % counts as the same; a radius or a σ, which are bisected, if it differs",
        f"by less than {100 * SAME_RADIUS:g} %. Made by",
        "",
        "    python3 results/rescaling.py",
        "",
        f"on {numbers['made_by']}.",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
    ]
    for name, values in numbers["measures"].items():
        before = values["1"]
        ratios = [values[f"{c:g}"] / before for c in FACTORS]
        same = SAME_RADIUS if "radius" in name or name.startswith("σ") else SAME
        moves = any(abs(ratio - 1) > same for ratio in ratios)
        cells = [name, f"{before:.4g}", *(f"{ratio:.3g}" for ratio in ratios)]
        lines.append(f"| {' | '.join([*cells, 'yes' if moves else 'no'])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, measure, tabulate."""
    flags = parser_of(__doc__, runs="results-rescaling").parse_args()
    OUT.mkdir(exist_ok=True)
    if not flags.draw:
        train(flags.runs)
        write_numbers(OUT / "numbers.json", measure(flags.runs))
    (OUT / "table.md").write_text(table(read_numbers(OUT / "numbers.json")))
    print((OUT / "table.md").read_text())


if __name__ == "__main__":
    main()
