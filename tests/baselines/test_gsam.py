"""GSAM against its equations, and its limits."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf.baselines.gsam import surrogate_gap_gradient
from tests.baselines import rivals
from tests.optimizers import helpers


def test_by_hand():
    """g_0 = (1, 2), g_s = (2, 0): the part of g_0 at right angles to g_s is (0, 2)."""
    (combined,) = surrogate_gap_gradient([tf.constant([1.0, 2.0])], [tf.constant([2.0, 0.0])], 0.25)
    np.testing.assert_allclose(combined, [2.0, -0.5])


def test_over_all_weights_together():
    first = [tf.constant([1.0]), tf.constant([2.0]), None]
    second = [tf.constant([2.0]), tf.constant([2.0]), None]
    # (g_0 · ĝ_s) ĝ_s = (1.5, 1.5), v = (-0.5, 0.5)
    a, b, none = surrogate_gap_gradient(first, second, 1.0)
    np.testing.assert_allclose([a, b], [[2.5], [1.5]])
    assert none is None


def test_fit_follows_the_equations(float64):
    start, gradient = helpers.network_gradient()

    def combined(weights, step):
        g0 = gradient(weights, step)
        gs = gradient(
            [w + 0.3 * g / rivals.norm(g0) for w, g in zip(weights, g0, strict=True)], step
        )
        product = sum(float((a * b).sum()) for a, b in zip(g0, gs, strict=True))
        share = product / rivals.norm(gs) ** 2
        return [b - 0.5 * (a - share * b) for a, b in zip(g0, gs, strict=True)]

    held, _ = rivals.recorded(rivals.MAKERS["GSAM"]())
    for weights, expected in zip(held, rivals.numpy_sgd(10, combined, start), strict=True):
        helpers.assert_close(weights, expected, atol=1e-11)


def test_alpha_0_is_sam():
    held = [
        rivals.recorded(make)[0][-1]
        for make in (
            esgd_tf.GSAM(rivals.sgd(), rho=0.3, alpha=0.0), esgd_tf.SAM(rivals.sgd(), rho=0.3)
        )
    ]  # fmt: skip
    helpers.assert_close(*held, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("learning_rate", "rho"), [(0.2, 0.4), (0.1, 0.2), (0.0, 0.0), (0.3, 0.4)])
def test_rho_follows_the_learning_rate(learning_rate, rho):
    optimizer = esgd_tf.GSAM(
        keras.optimizers.SGD(learning_rate), 0.4, rho_min=0.0, learning_rate_max=0.2
    )
    (e,) = optimizer.perturbation([None], [tf.constant([3.0, 4.0])])
    np.testing.assert_allclose(np.linalg.norm(e), rho, atol=1e-6)


def test_rho_min_needs_a_learning_rate():
    with pytest.raises(ValueError, match="`rho_min` needs `learning_rate_max`"):
        esgd_tf.GSAM("sgd", rho_min=0.1)
