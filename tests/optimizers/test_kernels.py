"""The fused kernels against the pure rules, and the noise."""

import itertools

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from esgd_tf.optimizers import ConstantScope, ExponentialScope, LocalEntropy, _kernels, langevin
from tests.optimizers import helpers

MODES = list(itertools.product([(0.0, False), (0.9, False), (0.9, True)], [0.0, 0.01], [0.0, 0.75]))


@pytest.mark.parametrize(("momentum", "weight_decay", "averaging"), MODES)
@pytest.mark.few(6)
def test_optimizer_follows_the_pure_rules(float64, momentum, weight_decay, averaging):
    momentum, nesterov = momentum
    options = {
        "langevin_steps": 4,
        "langevin_learning_rate": 0.07,
        "noise": 0.2,
        "averaging": averaging,
        "momentum": momentum,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
        "seed": 12345,
    }
    weights = helpers.start_weights()
    optimizer = LocalEntropy(outer(), gamma=0.3, scoping=0.5, **options)
    history = helpers.reference(outer(), weights, 11, gamma=lambda t: 0.3 * 1.5**t, **options)
    for held, record in zip(helpers.run(optimizer, weights, 11), history, strict=True):
        helpers.assert_close(held, record["weights"], atol=1e-13)
    # Eleven steps end in phase 2 of the third inner loop: look at the slots too.
    state = history[-1]["state"]
    helpers.assert_close(helpers.numpy(optimizer._loop.anchors), history[-1]["anchor"], atol=1e-13)
    helpers.assert_close(helpers.numpy(optimizer._loop.means), [s.mean for s in state], atol=1e-13)
    if momentum:
        kept = [-0.07 * s.velocity for s in state]
        helpers.assert_close(helpers.numpy(optimizer._loop.velocities), kept, atol=1e-13)


def outer():
    return keras.optimizers.SGD(0.8, momentum=0.5)


@pytest.mark.parametrize(
    ("dtype", "epsilon"), [("float32", 2**-23), ("bfloat16", 2**-7), ("float16", 2**-10)]
)
def test_rules_in_other_dtypes(dtype, epsilon):
    # The tolerance is a few units in the last place.
    start, g = np.array([1.0, -0.5, 0.25]), np.array([0.5, 0.25, -1.0])
    weights, velocity = tf.Variable(start, dtype=dtype), tf.Variable(start * 0, dtype=dtype)
    mean = tf.Variable(start, dtype=dtype)
    _kernels.descend(
        weights,
        velocity,
        tf.constant(g, dtype),
        learning_rate=tf.constant(0.25, dtype),
        momentum=tf.constant(0.5, dtype),
        nesterov=True,
        after=[],
    )
    _kernels.average(mean, weights, 0.75, tf.constant(0.25, dtype))
    state = langevin.langevin_step(
        langevin.start(start), start, g,
        learning_rate=0.25, gamma=0.0, averaging=0.75, momentum=0.5, nesterov=True,
    )  # fmt: skip
    tolerance = 4 * epsilon
    np.testing.assert_allclose(tf.cast(weights, tf.float64), state.weights, atol=tolerance)
    np.testing.assert_allclose(tf.cast(mean, tf.float64), state.mean, atol=tolerance)


def test_pull_is_read_before_the_weights_move():
    # The kernel writes in place; a tensor computed from the old value must not change with it.
    @tf.function
    def step(weights, anchor):
        pull = weights - anchor
        _kernels.descend(
            weights,
            None,
            tf.ones(1000),
            learning_rate=tf.constant(1.0),
            momentum=tf.constant(0.0),
            nesterov=False,
            after=[pull],
        )
        _kernels.subtract_scaled(weights, tf.constant(1.0), pull)

    weights, anchor = tf.Variable(tf.fill([1000], 3.0)), tf.Variable(tf.fill([1000], 1.0))
    step(weights, anchor)
    np.testing.assert_array_equal(weights.numpy(), np.full(1000, 3.0 - 1.0 - 2.0, "float32"))


def normal(seed=1, index=0, step=0, size=100_000, dtype=tf.float64):
    shape = tf.TensorShape([size])
    seed, step = tf.constant(seed, tf.int64), tf.constant(step, tf.int64)
    key = _kernels.noise_key(seed, step)
    return _kernels.standard_normal(shape, dtype, key, index).numpy()


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_noise_is_standard_normal(dtype):
    sample = np.stack([normal(seed, dtype=dtype) for seed in range(20)]).astype("float64")
    n = sample.size
    assert abs(sample.mean()) < 4 / np.sqrt(n)
    assert abs(sample.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((sample**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((sample**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert scipy.stats.kstest(sample.ravel(), "norm").pvalue > 1e-3
    # The two numbers of a word, and their squares, know nothing of each other.
    first, second = np.split(sample, 2, axis=1)
    assert abs((first * second).mean()) < 4 / np.sqrt(n / 2)
    assert abs(((first**2 - 1) * (second**2 - 1)).mean()) < 4 * 2 / np.sqrt(n / 2)
    # As many beyond 4 as there should be.
    expected = 2 * scipy.stats.norm.sf(4) * n
    assert abs((np.abs(sample) > 4).sum() - expected) < 4 * np.sqrt(expected)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_noise_of_few_weights(size):
    # A longer draw begins another way; each has as many numbers as asked for, all different.
    assert len(set(normal(size=size).tolist())) == size


def test_noise_of_other_shapes_and_dtypes():
    key = _kernels.noise_key(tf.constant(1, tf.int64), tf.constant(2, tf.int64))
    assert _kernels.standard_normal(tf.TensorShape([]), tf.float32, key, 0).shape == ()
    wide = _kernels.standard_normal(tf.TensorShape([3, 5]), tf.float32, key, 4)
    for dtype in (tf.float16, tf.bfloat16):
        narrow = _kernels.standard_normal(tf.TensorShape([3, 5]), dtype, key, 4)
        assert narrow.dtype == dtype
        np.testing.assert_array_equal(narrow.numpy(), tf.cast(wide, dtype).numpy())


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_noise_is_the_same_with_xla(dtype):
    compiled = tf.function(
        lambda key: _kernels.standard_normal(tf.TensorShape([101]), dtype, key, 3),
        jit_compile=True,
        autograph=False,
    )
    key = _kernels.noise_key(tf.constant(2**31 - 1, tf.int64), tf.constant(7, tf.int64))
    plain = _kernels.standard_normal(tf.TensorShape([101]), dtype, key, 3)
    np.testing.assert_allclose(compiled(key), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "other",
    [{"seed": 2}, {"index": 1}, {"step": 1}, {"seed": 2**31 - 1}, {"index": 2, "step": 3}],
)
def test_noise_is_independent_for_every_part_of_its_key(other):
    one, two = normal(), normal(**other)
    assert abs(np.mean(one * two)) < 4 / np.sqrt(one.size)
    assert not np.intersect1d(one[:1000], two).size


def test_noise_is_a_pure_function_of_its_key():
    np.testing.assert_array_equal(normal(5, 3, 17), normal(5, 3, 17))


def test_noise_of_weights_of_one_shape_differs(float64):
    optimizer = LocalEntropy(keras.optimizers.SGD(1.0), langevin_steps=3, noise=1.0, seed=4)
    zero = [np.zeros(5), np.zeros(5)]
    first, second = helpers.run(optimizer, zero, 1, gradient=lambda weights, step: weights)[0]
    assert np.all(first != second)


def test_scope_of_zero_and_schedules_that_start_at_zero(float64):
    def held(gamma):
        optimizer = LocalEntropy(
            keras.optimizers.SGD(1.0), langevin_steps=3, noise=0.0, momentum=0.0, gamma=gamma
        )
        return helpers.run(optimizer, helpers.start_weights(), 3)[1]

    helpers.assert_equal(held(0.0), held(ConstantScope(0.0)))
    helpers.assert_differ(held(0.0), held(ExponentialScope(1.0, 0.0)))
