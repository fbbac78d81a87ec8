"""The norms of the inner loop, against sums by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.optimizers import LangevinStatistics, LocalEntropy
from tests.optimizers import helpers


def flat(arrays):
    return np.concatenate([np.ravel(a) for a in arrays])


def by_hand(records, langevin_steps, weight_decay=0.0):
    """Return the statistics of the last complete inner loop of a reference run."""
    records = records[-langevin_steps:]
    last = records[-1]
    anchor = flat(last["anchor"])
    before = records[-2]["weights"] if langevin_steps > 1 else last["anchor"]
    gradient = flat(last["gradient"]) + weight_decay * flat(before)
    outer = anchor - flat([state.mean for state in last["state"]])
    distances = [
        np.linalg.norm(anchor - flat([s.weights for s in record["state"]])) for record in records
    ]
    return LangevinStatistics(
        gradient_norm=np.linalg.norm(gradient),
        outer_gradient_norm=np.linalg.norm(outer),
        cosine=gradient @ outer / np.linalg.norm(gradient) / np.linalg.norm(outer),
        mean_distance=np.mean(distances),
        noise_norm=np.linalg.norm(flat(last["displacement"])),
    )


@pytest.mark.parametrize("langevin_steps", [1, 2, 4])
def test_statistics_by_hand(float64, langevin_steps):
    options = {
        "langevin_steps": langevin_steps,
        "noise": 0.2,
        "momentum": 0.5,
        "nesterov": True,
        "weight_decay": 0.1,
        "seed": 8,
    }
    outer = lambda: keras.optimizers.SGD(0.7)  # noqa: E731
    tested = LocalEntropy(outer(), gamma=0.3, scoping=0.0, statistics=True, **options)
    assert np.isnan(tested.statistics()).all()
    weights = helpers.start_weights()
    model = helpers.variables(weights)
    history = helpers.reference(outer(), weights, 12, gamma=lambda t: 0.3, **options)
    for step in range(12):
        grads = helpers.gradient(helpers.numpy(model), step)
        tested.apply([tf.constant(g) for g in grads], model)
        done = (step + 1) // langevin_steps * langevin_steps
        if done:
            # They are kept in float32, and between two outer updates they are those of the last.
            expected = by_hand(history[:done], langevin_steps, weight_decay=0.1)
            np.testing.assert_allclose(tested.statistics(), expected, rtol=1e-5)
            assert tested.statistics()._fields == expected._fields


def test_statistics_through_fit(float64):
    options = {"langevin_steps": 5, "noise": 0.0, "momentum": 0.5, "nesterov": True}
    start, gradient = helpers.network_gradient()
    history = helpers.reference(
        keras.optimizers.SGD(1.0), start, 5, gradient, gamma=lambda t: 0.1, **options
    )
    expected = by_hand([r | {"displacement": [np.zeros(1)]} for r in history], 5)
    optimizer = LocalEntropy(
        keras.optimizers.SGD(1.0), gamma=0.1, scoping=0.0, statistics=True, **options
    )
    helpers.fit(helpers.network(optimizer))
    np.testing.assert_allclose(optimizer.statistics(), expected, rtol=1e-5)


def test_no_gradient_at_all_has_no_angle(float64):
    tested = LocalEntropy(keras.optimizers.SGD(1.0), langevin_steps=2, noise=0.0, statistics=True)
    helpers.run(tested, helpers.start_weights(), 2, lambda w, step: [0 * x for x in w])
    assert tested.statistics() == (0.0, 0.0, 0.0, 0.0, 0.0)
