"""A tiny problem and tiny networks for the walkers."""

import keras
import numpy as np

from esgd_tf.walkers import Experiment, Problem, Settings

# 24 examples of 3 numbers in 2 classes; 3 minibatches of 8 a pass.
TINY = {
    "batch_size": 8, "n_steps": 6, "freq": 2, "freq_i": 0, "freq_h": 0, "lines": "none",
    "lr": 0.2, "momentum": 0.5,
}  # fmt: skip


def problem(seed=0, n=24):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + 12, 3)).astype("float32")
    y = (x[:, 0] + 0.3 * rng.normal(size=n + 12) > 0).astype(int)
    return Problem.from_labels((x[:n], y[:n]), (x[n:], y[n:]), 2)


def linear(seed):
    """Softmax regression: 8 weights, traced in no time."""
    inputs = keras.Input((3,))
    uniform = keras.initializers.RandomUniform(-0.5, 0.5, seed=seed + 1)
    return keras.Model(inputs, keras.layers.Dense(2, kernel_initializer=uniform)(inputs))


def experiment(folder=None, options=None, **settings):
    return Experiment(
        Settings(**{**TINY, **settings}), folder, problem=problem(), build=linear,
        **(options or {}),
    )  # fmt: skip


def of_kind(exp, kind):
    return [row for row in exp.rows if row["kind"] == kind]


def weights_of(exp, k):
    return [w.numpy() for w in exp.network(k).trainable_variables]


def gradient(weights, x, y):
    """Of the mean cross entropy of softmax regression, by hand."""
    kernel, bias = weights
    logits = x @ kernel + bias
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    off = (probabilities - y[:, :-1]) / len(y)
    return [x.T @ off, off.sum(axis=0)]
