"""The pure rules, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.optimizers import langevin

X, G, ANCHOR = 2.0, 3.0, 1.5
RATE, GAMMA, AVERAGING = 0.1, 0.5, 0.75


def step(velocity=0.0, mean=1.0, **options):
    state = langevin.LangevinState(np.array([X]), np.array([velocity]), np.array([mean]))
    state = langevin.langevin_step(
        state,
        np.array([ANCHOR]),
        np.array([G]),
        learning_rate=RATE,
        gamma=GAMMA,
        averaging=AVERAGING,
        **options,
    )
    return [float(value[0]) for value in state]


def test_start():
    anchor = np.array([1.0, -2.0])
    state = langevin.start(anchor)
    np.testing.assert_array_equal(state.weights, anchor)
    np.testing.assert_array_equal(state.mean, anchor)
    np.testing.assert_array_equal(state.velocity, [0.0, 0.0])


def test_one_step_without_momentum():
    # The proximal term is 0.5 (2 - 1.5) = 0.25.
    weights, velocity, mean = step()
    assert weights == pytest.approx(2.0 - 0.1 * (3.0 + 0.25), abs=1e-15)
    assert velocity == 3.0
    assert mean == pytest.approx(0.75 * 1.0 + 0.25 * weights, abs=1e-15)


def test_momentum_and_nesterov():
    # v = 0.9 * 4 + 3 = 6.6, and with Nesterov s = 3 + 0.9 * 6.6 = 8.94.
    weights, velocity, _ = step(velocity=4.0, momentum=0.9)
    assert velocity == pytest.approx(6.6, abs=1e-14)
    assert weights == pytest.approx(2.0 - 0.1 * (6.6 + 0.25), abs=1e-14)
    weights, velocity, _ = step(velocity=4.0, momentum=0.9, nesterov=True)
    assert velocity == pytest.approx(6.6, abs=1e-14)
    assert weights == pytest.approx(2.0 - 0.1 * (8.94 + 0.25), abs=1e-14)


def test_weight_decay_enters_the_velocity_and_the_rest_does_not():
    _, plain, _ = step(velocity=4.0, momentum=0.9)
    _, decayed, _ = step(velocity=4.0, momentum=0.9, weight_decay=0.25)
    assert decayed - plain == pytest.approx(0.25 * X, abs=1e-14)
    _, shaken, _ = step(velocity=4.0, momentum=0.9, displacement=np.array([0.125]))
    assert shaken == plain


def test_displacement_is_added_as_it_is():
    still, _, _ = step()
    shaken, _, mean = step(displacement=np.array([0.125]))
    assert shaken - still == pytest.approx(0.125, abs=1e-15)
    assert mean == pytest.approx(0.75 + 0.25 * shaken, abs=1e-15)


def test_nesterov_without_momentum_is_the_plain_step():
    assert step(nesterov=True) == step(nesterov=False)


def test_without_averaging_the_mean_is_the_last_sample():
    state = langevin.start(np.array([X]))
    state = langevin.langevin_step(
        state, np.array([X]), np.array([G]), learning_rate=0.1, gamma=0.0, averaging=0.0
    )
    np.testing.assert_array_equal(state.mean, state.weights)


def test_outer_gradient():
    anchor, mean = np.array([1.0, 2.0]), np.array([0.5, 3.0])
    np.testing.assert_array_equal(langevin.outer_gradient(anchor, mean), [0.5, -1.0])
    np.testing.assert_array_equal(langevin.outer_gradient(anchor, mean, gamma=4.0), [2.0, -4.0])
    np.testing.assert_array_equal(langevin.outer_gradient(anchor, mean, gamma=0.0), [0.0, 0.0])


def test_tensors_and_arrays_agree():
    generator = np.random.default_rng(0)
    x, anchor, g, d = generator.normal(size=(4, 5))
    options = {
        "learning_rate": 0.3,
        "gamma": 0.7,
        "averaging": 0.6,
        "momentum": 0.5,
        "nesterov": True,
        "weight_decay": 0.01,
    }
    array = langevin.langevin_step(langevin.start(x), anchor, g, displacement=d, **options)
    tensor = langevin.langevin_step(
        langevin.start(tf.constant(x)),
        tf.constant(anchor),
        tf.constant(g),
        displacement=tf.constant(d),
        **options,
    )
    for a, b in zip(array, tensor, strict=True):
        assert isinstance(b, tf.Tensor)
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-14)
