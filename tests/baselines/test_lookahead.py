"""Lookahead against a reference in NumPy, and against Entropy-SGD, of which it is a limit."""

import contextlib

import keras
import numpy as np
import pytest

import esgd_tf
from tests.baselines import rivals
from tests.optimizers import helpers


def reference(steps=10, k=3, alpha=0.6):
    start, gradient = helpers.network_gradient()
    slow, fast, velocity, held = start, start, [np.zeros_like(w) for w in start], []
    for step in range(steps):
        gradients = gradient(fast, step)
        velocity = [0.875 * v - 0.125 * g for v, g in zip(velocity, gradients, strict=True)]
        fast = [w + v for w, v in zip(fast, velocity, strict=True)]
        if (step + 1) % k == 0:
            slow = [s + alpha * (w - s) for s, w in zip(slow, fast, strict=True)]
            fast = slow
        held.append((fast, slow))
    return held


@pytest.mark.parametrize("devices", [1, 2])
def test_fit_follows_the_equations(float64, two_cpus, devices):
    scope = two_cpus.scope() if devices == 2 else contextlib.nullcontext()
    with scope:
        held, model = rivals.recorded(rivals.MAKERS["Lookahead"]())
    expected = reference()
    for weights, (fast, _) in zip(held, expected, strict=True):
        helpers.assert_close(weights, fast, atol=1e-12)
    # Ten steps end within a round; `fit` leaves the model at the slow weights.
    helpers.assert_close(model.get_weights(), expected[-1][1], atol=1e-12)
    with esgd_tf.evaluate_at(model, "langevin"):
        helpers.assert_close(model.get_weights(), expected[-1][0], atol=1e-12)


def test_entropy_sgd_without_local_entropy_is_lookahead(float64):
    entropy = esgd_tf.EntropySGD(
        0.6, langevin_steps=3, langevin_learning_rate=0.1, gamma=0.0, noise=0.0, averaging=0.0,
        momentum=0.0,
    )  # fmt: skip
    lookahead = esgd_tf.Lookahead(keras.optimizers.SGD(0.1), steps=3, alpha=0.6)
    ours, theirs = (rivals.recorded(optimizer)[0] for optimizer in (entropy, lookahead))
    for a, b in zip(ours, theirs, strict=True):
        helpers.assert_close(a, b, atol=1e-14)


def test_any_optimizer_inside(float64):
    """Nadam keeps a scalar beside its slots, which advances with every fast step."""
    fast = rivals.recorded(keras.optimizers.Nadam(0.05), epochs=1)[0]
    look = rivals.recorded(esgd_tf.Lookahead(keras.optimizers.Nadam(0.05), steps=50), epochs=1)[0]
    for a, b in zip(fast, look, strict=True):
        helpers.assert_close(a, b, atol=1e-14)


def test_an_average_of_the_fast_weights_is_refused():
    with pytest.raises(ValueError, match="`use_ema` would average the fast weights"):
        esgd_tf.Lookahead("sgd", use_ema=True)
