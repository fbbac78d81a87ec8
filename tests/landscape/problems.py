"""Losses whose Hessians are known without differentiating twice, and small networks."""

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.landscape import HessianOperator
from esgd_tf.landscape.operator import CurvatureOperator

# A bulk, and outliers on both sides.
SPECTRUM = np.concatenate([[-3.0, -1.0], np.linspace(-0.1, 0.1, 34), [1.0, 2.0, 4.0, 8.0]])


def symmetric(eigenvalues, seed=0):
    """Return a symmetric matrix with the given eigenvalues."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (q * np.asarray(eigenvalues)) @ q.T


def quadratic(matrix, slope=None, dtype="float64"):
    """Return weights at 0 and the loss 1/2 w'A w + b'w, in two parts of different shapes."""
    n = len(matrix)
    a = tf.constant(matrix, dtype)
    b = tf.zeros([n], dtype) if slope is None else tf.constant(slope, dtype)
    weights = [np.zeros((2, n // 4), dtype), np.zeros(n - 2 * (n // 4), dtype)]

    def loss(weights):
        w = tf.concat([tf.reshape(part, [-1]) for part in weights], 0)
        return 0.5 * tf.tensordot(w, tf.linalg.matvec(a, w), 1) + tf.tensordot(b, w, 1)

    return weights, loss


def examples(n=40, features=3, classes=4, seed=0, dtype="float64"):
    """Return inputs [n, features] and classes [n]."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, features)).astype(dtype), rng.integers(0, classes, n)


def mlp(features=3, hidden=5, classes=4, activation="tanh", batch_norm=False, seed=0):
    """Return a small built network with float weights that are not at any special place."""
    layers = [keras.Input((features,)), keras.layers.Dense(hidden, activation, name="first")]
    if batch_norm:
        layers.append(keras.layers.BatchNormalization(name="norm"))
    layers += [keras.layers.Dropout(0.5), keras.layers.Dense(classes, name="last")]
    model = keras.Sequential(layers)
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if "seed" in variable.path:
            continue
        values = rng.normal(size=variable.shape, scale=0.7)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
    return model


def cross_entropy(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def state(model):
    """Return all that a measurement must not change."""
    flags = [v.trainable for v in model.variables] + [layer.trainable for layer in model.layers]
    return [v.numpy() for v in model.variables], flags


def same_state(one, other):
    return one[1] == other[1] and all(
        a.tobytes() == b.tobytes() for a, b in zip(one[0], other[0], strict=True)
    )


def flat(arrays):
    return np.concatenate([np.ravel(a) for a in arrays])


def central_hessian(function, w, step=1e-5):
    """Return the Hessian from central differences of a GRADIENT function [n] -> [n]."""
    n = len(w)
    columns = [(function(w + step * e) - function(w - step * e)) / (2 * step) for e in np.eye(n)]
    matrix = np.stack(columns, axis=1)
    return (matrix + matrix.T) / 2


def mlp_loss(w, x, y, hidden=5, classes=4):
    """The mean cross entropy of `mlp` in NumPy, without autodiff: w [n] float64."""
    features = x.shape[1]
    sizes = [(features, hidden), (hidden,), (hidden, classes), (classes,)]
    parts, at = [], 0
    for shape in sizes:
        parts.append(w[at : at + int(np.prod(shape))].reshape(shape))
        at += int(np.prod(shape))
    logits = np.tanh(x @ parts[0] + parts[1]) @ parts[2] + parts[3]
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -log_p[np.arange(len(y)), y].mean()


def softmax_regression_hessian(w, x, classes, y=None):
    """The Hessian of mean cross entropy of logits x @ W: 1/N Σ (x x') ⊗ (diag p - p p')."""
    logits = x @ w
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    blocks = np.stack([np.diag(q) - np.outer(q, q) for q in p])
    hessian = np.einsum("ni,nj,nab->iajb", x, x, blocks) / len(x)
    size = x.shape[1] * classes
    return hessian.reshape(size, size)


def hessian(eigenvalues=SPECTRUM, dtype="float64"):
    """Return the operator of a quadratic with the given eigenvalues."""
    return HessianOperator(*quadratic(symmetric(eigenvalues), dtype=dtype))


class MatrixOperator(CurvatureOperator):
    """A matrix with the face of a curvature operator, for what needs hundreds of runs.

    It is that of a quadratic with some gradient at some point, by default both 0.
    """

    def __init__(self, matrix, slope=None, point=None):
        self.matrix = np.asarray(matrix, np.float64)
        self.point = np.zeros(len(self.matrix)) if point is None else point
        self.slope = np.zeros(len(self.matrix)) if slope is None else slope
        self.shape, self.matvecs = self.matrix.shape, 0

    def _columns(self, rows):
        self.matvecs += len(rows)
        with np.errstate(invalid="ignore"):
            return rows @ self.matrix

    def weights(self):
        return self.point

    def loss(self):
        return 0.0

    def gradient(self):
        return self.slope


def not_finite(n=40, value=np.nan):
    """Return an operator whose products are not finite."""
    matrix = np.eye(n)
    matrix[3, 3] = value
    return MatrixOperator(matrix)


def held(values, errors, truth):
    """Return the fraction of estimates that two of their standard errors hold the truth of."""
    values, errors = np.asarray(values), np.asarray(errors)
    return np.mean(np.abs(values - truth) <= 2 * errors)


def rectified(*, bias=True, batch_norm=False, dtype="float64", seed=0):
    """Return a small built network of three layers with ReLU between them."""
    layers = [keras.Input((3,), dtype=dtype)]
    for k, units in enumerate((5, 4), start=1):
        layers.append(keras.layers.Dense(units, use_bias=bias, dtype=dtype, name=f"dense_{k}"))
        if batch_norm:
            layers.append(keras.layers.BatchNormalization(dtype=dtype, name=f"norm_{k}"))
        layers.append(keras.layers.ReLU(dtype=dtype, name=f"relu_{k}"))
    layers.append(keras.layers.Dense(4, use_bias=bias, dtype=dtype, name="last"))
    model = keras.Sequential(layers)
    randomize(model, seed)
    return model


def randomize(model, seed=0):
    """Give a model weights that are not at any special place, and positive variances."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        values = rng.normal(size=variable.shape, scale=0.7)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
