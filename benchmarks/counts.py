"""How many gradients, products and evaluations the measures take, for docs/measure/index.md.

Command:   python3 benchmarks/counts.py
Expected:  about 3 minutes on 2 CPU cores. Counts do not depend on what else runs.
Result:    one line for each measure whose count its arguments do not fix, for the two networks of
           benchmarks/landscape.py at their trained weights.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# So that the script runs from a checkout as it is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import tensorflow as tf

from benchmarks.landscape import examples, loss, network
from esgd_tf.landscape import HessianOperator, eigenpairs, pac_bayes_sigma, sharpness

_SAMPLES = 10


def evaluations_of_pac_bayes(model: keras.Model, data: tuple[object, object]) -> int:
    """Return how many times `pac_bayes_sigma` evaluates the network on the data."""
    counter = tf.Variable(0)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def counting(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([counter.assign_add(1)]):
            return tf.identity(cross_entropy(y_true, y_pred))

    pac_bayes_sigma(model, data, counting, samples=_SAMPLES, batch_size=512)
    return int(counter.numpy())


def main() -> None:
    """Count, and print."""
    data = examples()
    for name in ("lenet", "mlp"):
        model = network(name)
        print(f"{name}, {model.count_params():,} weights")
        hessian = HessianOperator(model, loss(), data, batch_size=512)
        products = eigenpairs(hessian, 1, "LA", seed=1).matvecs
        print(f"  the largest eigenvalue: {products} products", flush=True)
        products = eigenpairs(hessian, 1, "SA", seed=1).matvecs
        print(f"  the smallest eigenvalue: {products} products", flush=True)
        for kind in ("sam", "asam", "epsilon", "ascent"):
            steps = sharpness(model, loss(), data, kind=kind, batch_size=512).gradient_evaluations
            print(f"  sharpness, {kind}: {steps} gradients", flush=True)
        times = evaluations_of_pac_bayes(model, data) / _SAMPLES
        print(f"  pac_bayes_sigma: {times:.1f} times `samples` evaluations", flush=True)


if __name__ == "__main__":
    main()
