"""The rivals with settings in which each of them does something, and small models for them."""

import keras
import numpy as np

import esgd_tf
from tests.optimizers import helpers


def sgd():
    # Keras rounds numbers through float32, which leaves these as they are.
    return keras.optimizers.SGD(0.125, momentum=0.875)


MAKERS = {
    "SAM": lambda **o: esgd_tf.SAM(sgd(), rho=0.3, **o),
    "ASAM": lambda **o: esgd_tf.ASAM(sgd(), rho=0.8, **o),
    "GSAM": lambda **o: esgd_tf.GSAM(sgd(), rho=0.3, alpha=0.5, **o),
    "LPFSGD": lambda **o: esgd_tf.LPFSGD(sgd(), gamma=0.1, samples=3, seed=5, **o),
    "SWA": lambda **o: esgd_tf.SWA(sgd(), start=3, every=2, **o),
    "EMA": lambda **o: esgd_tf.EMA(sgd(), momentum=0.7, **o),
    "Lookahead": lambda **o: esgd_tf.Lookahead(sgd(), steps=3, alpha=0.6, **o),
}
#: With these arguments each is its inner optimizer.
PLAIN = {
    "SAM": lambda **o: esgd_tf.SAM(sgd(), rho=0.0, **o),
    "ASAM": lambda **o: esgd_tf.ASAM(sgd(), rho=0.0, **o),
    "GSAM": lambda **o: esgd_tf.GSAM(sgd(), rho=0.0, alpha=0.0, **o),
    "LPFSGD": lambda **o: esgd_tf.LPFSGD(sgd(), gamma=0.0, samples=1, **o),
    "SWA": lambda **o: esgd_tf.SWA(sgd(), start=1000, every=1, **o),
    "SWA of one": lambda **o: esgd_tf.SWA(sgd(), start=10, every=1000, **o),
    "EMA": lambda **o: esgd_tf.EMA(sgd(), momentum=0.0, **o),
    "Lookahead": lambda **o: esgd_tf.Lookahead(sgd(), steps=1, alpha=1.0, **o),
}


def network(optimizer, **options):
    """Return the small network of `helpers`, with the training step that its optimizer needs."""
    return esgd_tf.enable_minibatch_gradients(helpers.network(optimizer, **options))


def with_state(optimizer, **options):
    """Return a network that keeps more than weights: BatchNormalization and dropout."""
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, "tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3, seed=8),
            keras.layers.Dense(3),
        ]
    )
    model.compile(optimizer, loss="mse", metrics=["mae"], **options)
    model.optimizer.build(model.trainable_variables)
    return esgd_tf.enable_minibatch_gradients(model)


class Point(keras.Model):
    """f(w) = 1/2 Σ a_i w_i²: a network that is one weight, whatever its inputs."""

    def __init__(self, start, shape=None):
        super().__init__()
        start = np.asarray(start)
        self.w = self.add_weight(
            shape=start.shape, initializer=lambda shape, dtype: keras.ops.cast(start, dtype)
        )

    def call(self, x):
        flat = keras.ops.reshape(self.w, (1, -1))
        return keras.ops.broadcast_to(flat, (keras.ops.shape(x)[0], flat.shape[1]))


def point(optimizer, start, curvatures):
    """Return the model of f at `start`, and the data to call `train_on_batch` with."""
    a = np.asarray(curvatures).reshape(1, -1)
    model = Point(start)
    model(np.zeros((2, 1)))
    model.compile(
        optimizer, loss=lambda y, p: 0.5 * keras.ops.sum(y * p**2, axis=-1), run_eagerly=True
    )
    return esgd_tf.enable_minibatch_gradients(model), (np.zeros((2, 1)), np.repeat(a, 2, axis=0))


def numpy_sgd(steps, gradient, start, *, learning_rate=0.125, momentum=0.875):
    """Return the weights after each step of SGD with momentum, in NumPy.

    Args:
        steps: Number of steps.
        gradient: Function of (weights, step) that returns the gradient to step with.
        start: List of arrays.
        learning_rate: The step size.
        momentum: The momentum.
    """
    weights, velocity, history = list(start), [np.zeros_like(w) for w in start], []
    for step in range(steps):
        gradients = gradient(weights, step)
        velocity = [
            momentum * v - learning_rate * g for v, g in zip(velocity, gradients, strict=True)
        ]
        weights = [w + v for w, v in zip(weights, velocity, strict=True)]
        history.append(weights)
    return history


def recorded(optimizer, *, epochs=2, **options):
    """Train the small network; return the weights after each minibatch, and the model."""
    model = network(optimizer, **options)
    record = helpers.Record()
    helpers.fit(model, epochs=epochs, callbacks=[record])
    return record.weights, model


def norm(arrays):
    return np.sqrt(sum(float((a**2).sum()) for a in arrays))
