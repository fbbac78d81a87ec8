"""Closed forms on quadratics: where the inner loop goes, how far it scatters, and its limits."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.optimizers import EntropySGD, LocalEntropy
from tests.optimizers import helpers

SIZE = 6


def problem():
    """f(x) = 1/2 x'Ax + b'x, and a start."""
    generator = np.random.default_rng(11)
    basis, _ = np.linalg.qr(generator.normal(size=(SIZE, SIZE)))
    A = basis @ np.diag(np.linspace(0.2, 2.0, SIZE)) @ basis.T
    return A, generator.normal(size=SIZE), generator.normal(size=SIZE)


class Quadratic(keras.Model):
    """The weights are one vector, the output is the loss."""

    def __init__(self, A, b, x):
        super().__init__()
        self.A, self.b = tf.constant(A), tf.constant(b)
        self.w = self.add_weight(
            shape=x.shape, initializer=lambda shape, dtype: tf.constant(x, dtype), name="w"
        )

    def call(self, inputs):
        w = tf.convert_to_tensor(self.w)
        loss = 0.5 * tf.tensordot(w, tf.linalg.matvec(self.A, w), 1) + tf.tensordot(self.b, w, 1)
        return loss + 0.0 * inputs


def chain(optimizer, start, steps, gradient):
    """Run steps of the optimizer in one compiled loop; return the variable."""
    variable = keras.Variable(start, dtype="float64")
    optimizer.build([variable])

    @tf.function
    def loop(steps):
        for _ in tf.range(steps):
            optimizer.apply([gradient(tf.convert_to_tensor(variable))], [variable])

    loop(tf.constant(steps))
    return variable


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.8, False), (0.8, True)])
def test_inner_loop_converges_to_the_mean_of_the_gibbs_measure(float64, momentum, nesterov):
    A, b, x = problem()
    gamma = 0.5
    optimizer = EntropySGD(
        langevin_steps=10_000,
        langevin_learning_rate=0.2,
        gamma=gamma,
        scoping=0.0,
        noise=0.0,
        momentum=momentum,
        nesterov=nesterov,
    )
    variable = chain(optimizer, x, 600, lambda w: tf.linalg.matvec(A, w) + b)
    # Momentum amplifies the gradient and not the pull: it acts like a smaller gamma.
    gamma *= 1 - momentum
    expected = np.linalg.solve(A + gamma * np.eye(SIZE), gamma * x - b)
    np.testing.assert_allclose(variable.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(optimizer._loop.means[0].numpy(), expected, atol=1e-12)
    np.testing.assert_array_equal(optimizer._loop.anchors[0].numpy(), x)


def test_long_inner_loops_are_the_proximal_point_method(float64):
    # x <- x - lr (x - (A + gamma I)^-1 (gamma x - b)), through `fit`.
    A, b, x = problem()
    gamma, lr = 0.7, 0.6
    model = Quadratic(A, b, x)
    optimizer = EntropySGD(
        lr, langevin_steps=250, langevin_learning_rate=0.35, gamma=gamma, scoping=0.0, noise=0.0,
        momentum=0.0,
    )  # fmt: skip
    model.compile(optimizer, loss=lambda _, loss: tf.reduce_mean(loss), steps_per_execution=250)
    zeros = np.zeros((1000, 1))
    record = helpers.Record()
    model.fit(zeros, zeros, batch_size=1, verbose=0, callbacks=[record])
    assert len(record.weights) == 4
    for (weights,) in record.weights:
        x = x - lr * (x - np.linalg.solve(A + gamma * np.eye(SIZE), gamma * x - b))
        np.testing.assert_allclose(weights, x, atol=1e-10)


def test_outer_loop_converges_to_the_minimum(float64):
    A, b, x = problem()
    optimizer = EntropySGD(
        langevin_steps=5, langevin_learning_rate=0.3, gamma=0.1, scoping=1e-3, noise=0.0,
        momentum=0.5,
    )  # fmt: skip
    variable = chain(optimizer, x, 1500, lambda w: tf.linalg.matvec(A, w) + b)
    np.testing.assert_allclose(variable.numpy(), -np.linalg.solve(A, b), atol=1e-9)


def test_gamma_sets_the_local_entropy_gradient(float64):
    # gamma (x - <x'>) = (A + gamma I)^-1 gamma (A x + b): that of the smoothed loss.
    A, b, x = problem()
    gamma = 0.9
    optimizer = EntropySGD(
        1.0, langevin_steps=400, langevin_learning_rate=0.3, gamma=gamma, scoping=0.0, noise=0.0,
        momentum=0.0, gamma_in_outer_step=True,
    )  # fmt: skip
    variable = chain(optimizer, x, 400, lambda w: tf.linalg.matvec(A, w) + b)
    gradient = gamma * np.linalg.solve(A + gamma * np.eye(SIZE), A @ x + b)
    np.testing.assert_allclose(x - variable.numpy(), gradient, atol=1e-12)


def stationary_covariance(transition, noise):
    """Solve S = M S M' + N."""
    n = len(transition)
    vector = np.linalg.solve(
        np.eye(n * n) - np.kron(transition, transition), np.reshape(noise, n * n)
    )
    return vector.reshape(n, n)


@pytest.mark.few(1)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.6, False), (0.6, True)])
def test_stationary_variance_of_langevin_dynamics(float64, momentum, nesterov):
    """Many independent coordinates of one curvature: their scatter estimates the variance.

    Without momentum x'_{k+1} = (1 - eta' (a + gamma)) x'_k + eta' gamma x + sqrt(2 eta') eps n has
    the variance 2 eta' eps^2 / (1 - (1 - eta' (a + gamma))^2).
    """
    a, gamma, rate, noise, alpha, m = 0.8, 0.4, 0.1, 0.7, 0.75, momentum
    size, steps = 100_000, 150
    x = 2.0
    optimizer = LocalEntropy(
        keras.optimizers.SGD(1.0),
        langevin_steps=10 * steps,
        langevin_learning_rate=rate,
        gamma=gamma,
        scoping=0.0,
        noise=noise,
        averaging=alpha,
        momentum=m,
        nesterov=nesterov,
        seed=99,
    )
    variable = chain(optimizer, np.full(size, x), steps, lambda w: a * w)
    weights = variable.numpy()
    gradient = tf.constant(a * weights)
    optimizer.apply([gradient], [variable])
    later, mean = variable.numpy(), optimizer._loop.means[0].numpy()

    # The state (x', v, mean) around its fixed point, linear in itself:
    lookahead = 1 + m if nesterov else 1  # s = q + m v' or v', with v' = m v + q and q = a x'
    to_weights = [1 - rate * (lookahead * a + gamma), -rate * m * (m if nesterov else 1), 0.0]
    transition = np.array(
        [
            to_weights,
            [a, m, 0.0],
            [(1 - alpha) * to_weights[0], (1 - alpha) * to_weights[1], alpha],
        ]
    )
    variance = 2 * rate * noise**2
    direction = np.array([1.0, 0.0, 1 - alpha])
    covariance = stationary_covariance(transition, variance * np.outer(direction, direction))
    if m == 0.0:
        formula = variance / (1 - (1 - rate * (a + gamma)) ** 2)
        assert covariance[0, 0] == pytest.approx(formula, rel=1e-12)

    center = gamma * x / (a + gamma) if m == 0 else gamma * x / (a / (1 - m) + gamma)
    for sample, expected in ((later, covariance[0, 0]), (mean, covariance[2, 2])):
        assert abs(sample.mean() - center) < 4 * np.sqrt(expected / size)
        assert abs(sample.var() - expected) < 4 * expected * np.sqrt(2 / size)
    # Successive steps have independent noise.
    lag = (transition @ covariance)[0, 0]
    measured = np.mean((weights - center) * (later - center))
    assert abs(measured - lag) < 4 * np.sqrt((covariance[0, 0] ** 2 + lag**2) / size)


# ---- limits -------------------------------------------------------------------------------------


def test_limit_of_plain_sgd(float64):
    limit = EntropySGD(
        1.0, langevin_steps=1, langevin_learning_rate=0.3, gamma=0.0, noise=0.0, averaging=0.0,
        momentum=0.0,
    )  # fmt: skip
    weights = helpers.start_weights()
    for held, expected in zip(
        helpers.run(limit, weights, 8),
        helpers.run(keras.optimizers.SGD(0.3), weights, 8),
        strict=True,
    ):
        helpers.assert_close(held, expected, atol=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
def test_limit_of_an_endless_inner_loop_is_sgd_with_momentum(float64, nesterov):
    # gamma = 0 and no outer update: the inner loop alone is SGD with momentum.
    limit = EntropySGD(
        langevin_steps=10_000, langevin_learning_rate=0.3, gamma=0.0, noise=0.0,
        momentum=0.5, nesterov=nesterov,
    )  # fmt: skip
    weights = helpers.start_weights()
    plain = keras.optimizers.SGD(0.3, momentum=0.5, nesterov=nesterov)
    for held, expected in zip(
        helpers.run(limit, weights, 8), helpers.run(plain, weights, 8), strict=True
    ):
        helpers.assert_close(held, expected, atol=1e-13)


def test_limit_of_elastic_averaging_by_hand(float64):
    # L = 1: the outer step is (1 - averaging) learning_rate times the Langevin step.
    limit = EntropySGD(
        0.5, langevin_steps=1, langevin_learning_rate=0.3, gamma=5.0, noise=0.0, averaging=0.6,
        momentum=0.0,
    )  # fmt: skip
    weights = helpers.start_weights()
    plain = keras.optimizers.SGD(0.5 * 0.4 * 0.3)
    helpers.assert_close(
        helpers.run(limit, weights, 8)[-1], helpers.run(plain, weights, 8)[-1], atol=1e-14
    )
