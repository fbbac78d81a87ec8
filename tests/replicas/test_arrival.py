"""State moves only when a batch arrived, and looking takes no batch from training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.replicas import (
    ElasticAveraging,
    Focusing,
    OwnMinibatches,
    Parle,
    ReplicaMonitor,
    ReplicatedSGD,
)
from esgd_tf.replicas._exchange import mean_of
from tests.optimizers.helpers import BATCH, STEPS_PER_EPOCH, assert_equal, data
from tests.replicas import helpers
from tests.replicas.test_focusing import measured_by_hand


def unsized(a=0, batch=BATCH):
    """Finite, of unknown length, and of a shape that the graph knows: nothing waits by itself."""
    x, y = data()
    order = np.random.default_rng(a).permutation(len(x))
    dataset = tf.data.Dataset.from_tensor_slices((x[order], y[order]))
    return dataset.batch(batch, drop_remainder=True).filter(lambda x, y: True)


RULES = {
    "rsgd": lambda: (ReplicatedSGD(0.3, every=2), helpers.nesterov()),
    "easgd": lambda: (ElasticAveraging(0.2), keras.optimizers.Adam(0.05)),
    "parle": lambda: (Parle(langevin_steps=2, scoping=0.2), keras.optimizers.SGD(0.5)),
}


@pytest.mark.parametrize(
    "name", ["easgd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rsgd", "parle"))]
)
def test_the_end_of_unsized_data_is_no_step(name):
    """Three epochs end three times; nothing may move there."""

    def run(make):
        coupling, optimizer = RULES[name]()
        model = helpers.replicas(coupling, optimizer)
        model.fit(OwnMinibatches(make), epochs=3, verbose=0)
        center = model.center().get_weights()
        clocks = [int(model.optimizer.iterations)]
        clocks += [int(member.optimizer.iterations) for member in model.members]
        return clocks, helpers.weights(model), center

    clocks, weights, center = run(unsized)
    sized, expected, expected_center = run(helpers.own_minibatches)
    assert clocks == sized == [3 * STEPS_PER_EPOCH] * 3
    assert_equal(weights, expected)
    assert_equal(center, expected_center)


def test_losses_of_unsized_data_are_means_over_what_arrived():
    x, y = data()
    model = helpers.replicas(ReplicatedSGD(0.1), keras.optimizers.SGD(0.0))
    monitor = ReplicaMonitor(test=unsized())
    logs = model.fit(OwnMinibatches(unsized), verbose=0, callbacks=[monitor]).history
    losses = [np.mean((member.predict(x, verbose=0) - y) ** 2) for member in model.members]
    np.testing.assert_allclose(logs["loss"], [np.mean(losses)], rtol=1e-5)
    found = [logs[f"test_replica{a}_loss"][0] for a in range(2)]
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    expected = np.mean((model.predict(x, verbose=0) - y) ** 2)
    np.testing.assert_allclose(model.evaluate(unsized(), verbose=0), expected, rtol=1e-5)
    np.testing.assert_allclose(logs["test_center_loss"], [expected], rtol=1e-5)
    ensemble = np.mean((model.ensemble().predict(x, verbose=0) - y) ** 2)
    np.testing.assert_allclose(logs["test_ensemble_loss"], [ensemble], rtol=1e-5)


def test_gamma_of_unsized_data_is_that_of_sized():
    """Ten minibatches of 4, of which none is counted twice."""
    x, y = data()
    model = helpers.replicas(ReplicatedSGD(Focusing(24, growth=1.0)))
    order = [np.random.default_rng(a).permutation(len(x)) for a in range(2)]
    expected = measured_by_hand(model, [(x[own], y[own]) for own in order])
    model.fit(OwnMinibatches(lambda a: unsized(a, batch=4)), verbose=0)
    np.testing.assert_allclose(model.optimizer.gamma_zero, expected, rtol=1e-6)


# ---- looking ------------------------------------------------------------------------------------


def shuffled():
    """One data set of a user, whose every pass has another order."""
    dataset = tf.data.Dataset.from_tensor_slices(data())
    return dataset.shuffle(40, seed=2).batch(4).map(lambda x, y: (x, y))


def with_batch_norm(a):
    norm = keras.layers.BatchNormalization()
    return keras.Sequential([keras.Input((4,)), norm, *helpers.network(a).layers])


@pytest.mark.parametrize("execution", [1, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_validation_and_measurements_leave_the_order_of_the_data_alone(execution):
    def run(gamma, **options):
        rule = ReplicatedSGD(Focusing(10, gamma=gamma, growth=1.0))
        model = helpers.replicas(
            rule, helpers.nesterov(), build=with_batch_norm, steps_per_execution=execution
        )
        model.fit(shuffled(), epochs=2, verbose=0, **options)
        return model.optimizer.gamma_zero, helpers.weights(model)

    gamma, looked_at = run(None, validation_data=data())
    _, expected = run(gamma)
    assert_equal(looked_at, expected)
    _, without = run(gamma, batch_norm_data=False)
    assert_equal(looked_at, without)


def test_the_center_is_estimated_from_what_the_first_replica_has_seen():
    seen = []
    x, y = data()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(40, seed=2).batch(4)
    for i, (batch, _) in enumerate(dataset):
        if i % 2 == 0:
            seen.append(batch)
    # The first pass of a new data set has the order of the first pass above.
    again = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(40, seed=2).batch(4)
    model = helpers.replicas(ReplicatedSGD(0.1), build=with_batch_norm)
    model.fit(again, verbose=0)
    seen = np.concatenate(seen)
    center = model.center().layers[0]
    np.testing.assert_allclose(center.moving_mean, seen.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(center.moving_variance, seen.var(axis=0), rtol=1e-5)


# ---- data that train nothing --------------------------------------------------------------------


@pytest.mark.parametrize("unknown", [False, True])
def test_fewer_minibatches_than_replicas_are_refused(unknown):
    x, y = data()
    dataset = tf.data.Dataset.from_tensor_slices((x[:16], y[:16])).batch(8)
    model = helpers.replicas(ReplicatedSGD(0.1), count=3)
    with pytest.raises(ValueError, match="fewer minibatches than the 3 replicas"):
        model.fit(dataset.filter(lambda *_: True) if unknown else dataset, verbose=0)


def test_empty_data_of_one_replica_are_refused():
    model = helpers.replicas(ReplicatedSGD(0.1))
    own = OwnMinibatches(lambda a: helpers.own_minibatches(a, steps=1 - a))
    with pytest.raises(ValueError, match="has no minibatch"):
        model.fit(own, verbose=0)


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_an_epoch_has_steps(steps):
    model = helpers.replicas(ReplicatedSGD(0.1))
    with pytest.raises(ValueError, match="`steps_per_epoch` must be an integer of at least 1"):
        helpers.fit(model, steps_per_epoch=steps)


# ---- the order of sums --------------------------------------------------------------------------


def test_replicas_are_summed_in_their_order():
    """Other orders give other bits; TensorFlow's own sum starts with what it can overwrite."""
    generator = np.random.default_rng(0)
    variables = [tf.Variable(tf.zeros([4, 3])) for _ in range(5)]

    @tf.function
    def traced():
        # The last one is a new tensor, whose memory is free to take the sum.
        return mean_of([*(tf.convert_to_tensor(v) for v in variables[:4]), 2 * variables[4]])

    for _ in range(20):
        values = generator.normal(size=(5, 4, 3)).astype("float32")
        values *= 10.0 ** generator.integers(-3, 4, size=(5, 1, 1)).astype("float32")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        a, b, c, d, e = values
        total = (((a + b) + c) + d) + 2 * e
        np.testing.assert_array_equal(mean_of([a, b, c, d, 2 * e]), total / np.float32(5))
        # In a graph TensorFlow multiplies by 1/5 instead.
        np.testing.assert_array_equal(traced(), total * np.float32(0.2))


@pytest.mark.slow
def test_equal_runs_of_three_replicas_have_equal_bits():
    def run():
        model = helpers.replicas(ReplicatedSGD(0.3), helpers.nesterov(), count=3)
        helpers.fit(model, epochs=2)
        return helpers.weights(model)

    assert_equal(run(), run())
