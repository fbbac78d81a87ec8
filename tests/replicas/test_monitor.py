"""What there is to see of replicas while they train."""

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.replicas import Focusing, ReplicaMonitor, ReplicatedSGD
from tests.optimizers.helpers import BATCH, assert_equal, data
from tests.replicas import helpers


def loss(outputs):
    return np.mean((outputs - data()[1]) ** 2)


@pytest.mark.slow
def test_what_is_measured_is_what_replicas_say_of_themselves():
    x, _ = data()
    test = tf.data.Dataset.from_tensor_slices(data()).batch(BATCH)
    rule = ReplicatedSGD(Focusing(10, gamma=0.2, growth=4.0, interval=3))
    model = helpers.replicas(rule, helpers.entropy(), metrics=["mae"])
    history = helpers.fit(model, callbacks=[ReplicaMonitor(test=test)]).history
    last = {name: values[-1] for name, values in history.items()}
    # At the last step, the fifth, which is in the second of four intervals.
    np.testing.assert_allclose(last["coupling"], 0.2 * 4.0 ** (1 / 3))
    for name, found in (("distance", model.distances()), ("norm", model.norms())):
        np.testing.assert_allclose([last[f"{name}_{a}"] for a in range(2)], found)
    np.testing.assert_allclose(last["distance"], np.sqrt(np.mean(model.distances() ** 2)))
    np.testing.assert_allclose(last["norm"], np.mean(model.norms()))
    np.testing.assert_allclose(last["norm_center"], model.center_norm)
    outputs = {f"replica{a}": model.replica(a).predict(x, verbose=0) for a in range(2)}
    outputs |= {"center": model.predict(x, verbose=0)}
    outputs |= {"ensemble": model.ensemble().predict(x, verbose=0)}
    for who, of_who in outputs.items():
        np.testing.assert_allclose(last[f"test_{who}_loss"], loss(of_who), rtol=1e-5)
        assert f"test_{who}_mae" in last
    assert not any(name.startswith("train_") for name in last)


@pytest.mark.slow
def test_looking_changes_nothing():
    trajectory, end, _, history = helpers.uninterrupted("focused")
    model = helpers.case("focused")
    monitor = ReplicaMonitor(train=tf.data.Dataset.from_tensor_slices(data()).batch(BATCH))
    found = helpers.fit(model, epochs=2, callbacks=[monitor]).history
    assert_equal(helpers.state(model), end)
    assert_equal(helpers.weights(model), trajectory[-1])
    assert found["loss"] == history["loss"]
