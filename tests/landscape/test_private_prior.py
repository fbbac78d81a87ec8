"""The bound of the Gibbs posterior: divergence and partition sum by quadrature, and its parts."""

import math
import warnings

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import (
    BoundedCrossEntropy,
    NotConvergedWarning,
    kl_inverse,
    private_prior_bound,
)
from tests.landscape.problems import cross_entropy, examples, mlp

M = 100
NOTHING = (np.zeros((M, 1)), np.zeros(M))
CENTER = 0.4


def well(weights, x, y):
    """1 - e^{-w²}, from 0 to 1, of one weight."""
    return 1 - tf.exp(-tf.reduce_sum(weights[0] ** 2))


def measured(**options):
    given = {"gamma": 0.2, "tau": 20.0, "loss_range": 1.0, "steps": 8, "samples": 600}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        return private_prior_bound([np.array([CENTER])], well, NOTHING, **given | options)


def exact(tau, gamma):
    """Return E_τ f, the divergence and ln E_P e^{-τ f}, on a fine grid."""
    w = np.linspace(-8, 8, 200_001)
    log_p = -0.5 * tau * gamma * (w - CENTER) ** 2
    p = np.exp(log_p) / np.exp(log_p).sum()
    f = 1 - np.exp(-(w**2))
    weight = p * np.exp(-tau * f)
    q = weight / weight.sum()
    mean = float(q @ f)
    return mean, -tau * mean - math.log(weight.sum()), math.log(weight.sum())


@pytest.fixture(scope="module")
def found():
    return measured()


def test_divergence_and_partition_sum_are_those_of_quadrature(found):
    loss, kl, log_partition = exact(20.0, 0.2)
    assert found.losses[-1] == pytest.approx(loss, abs=4 * found.loss_errors[-1])
    assert found.kl_below - 4 * found.kl_error <= kl <= found.kl + 4 * found.kl_error
    assert found.log_partition == pytest.approx(log_partition, rel=0.1)
    # The loss is the error too here, by samples of its own.
    assert found.risk == pytest.approx(loss, abs=4 * found.risk_error)
    # The sums close in on the divergence with the steps.
    coarse = measured(steps=2, samples=200)
    assert coarse.kl - coarse.kl_below > 1.5 * (found.kl - found.kl_below)


def test_every_part_of_the_bound(found):
    assert found.epsilon == pytest.approx(2 * 20.0 / M)
    assert found.nats["examples"] == pytest.approx(math.log(2 * M))
    privacy = 2 * max(math.log(3 / 0.05), M * found.epsilon**2)
    assert found.nats["privacy and confidence"] == pytest.approx(privacy)
    budget = sum(found.nats.values()) / (M - 1)
    assert found.bound == pytest.approx(kl_inverse(found.risk, budget))
    assert found.risk < found.bound < found.bound_above <= 1


def test_the_privacy_of_the_paper():
    """MNIST's 60,000 examples, τ = sqrt(m), L = 4: ε = 0.0327, about 2 ε² = 0.2 % of error."""
    many = (np.zeros((60_000, 1)), np.zeros(60_000))
    with pytest.warns(NotConvergedWarning):
        found = private_prior_bound(
            [np.zeros(1)], well, many, steps=1, chains=2, burn_in=5, samples=8
        )
    assert found.tau == pytest.approx(math.sqrt(60_000))
    assert found.epsilon == pytest.approx(0.0327, abs=5e-5)
    share = found.nats["privacy and confidence"] / (60_000 - 1)
    assert share == pytest.approx(2 * found.epsilon**2, rel=1e-3)
    assert share == pytest.approx(0.002, rel=0.1)


def test_less_private_weights_have_a_larger_bound():
    short = {"steps": 2, "samples": 50, "chains": 2}
    bounds = [measured(epsilon=e, **short).bound for e in (0.0, 0.3, 1.0)]
    assert bounds[0] < bounds[1] < bounds[2]
    # Below sqrt(ln(3/δ)/m) nothing is gained: the confidence is what it costs.
    assert measured(epsilon=0.1, **short).bound == bounds[0]


def test_a_cold_posterior_is_the_prior():
    """With τ near 0 nothing is learnt, and the divergence is nothing."""
    found = measured(tau=1e-3, gamma=1e3, steps=1, samples=200)
    assert found.kl == pytest.approx(0.0, abs=1e-4)


def test_a_loss_beyond_its_range_is_refused():
    with pytest.raises(ValueError, match=r"no interval of length 0\.1 holds"):
        measured(loss_range=0.1)


def test_a_network():
    model, data = mlp(batch_norm=True), examples(dtype="float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        found = private_prior_bound(
            model, BoundedCrossEntropy(4.0), data, steps=3, chains=2, burn_in=10, samples=20
        )
        assert 0 < found.risk < found.bound <= 1
        assert found.kl > 0
        assert found.size == 54
        with pytest.raises(ValueError, match=r"use a bounded loss"):
            private_prior_bound(
                model, cross_entropy(), data, gamma=1e-3, steps=3, chains=2, samples=20
            )


def test_the_network_is_the_same_without_moving_statistics():
    """A prior of next to no variance has the loss of the network itself at every s."""
    model, data = mlp(batch_norm=True), examples(dtype="float32")
    model.compile("sgd", BoundedCrossEntropy(4.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        found = private_prior_bound(model, None, data, gamma=1e14, steps=1, samples=8, chains=2)
    np.testing.assert_allclose(found.losses, model.evaluate(*data, verbose=0), rtol=1e-4)
    assert found.kl == pytest.approx(0, abs=1e-3)
