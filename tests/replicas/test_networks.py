"""Networks of every kind as replicas: what they hold besides weights that are trained."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf.replicas import OwnMinibatches, ReplicaMonitor, ReplicatedSGD
from tests.optimizers.helpers import BATCH, assert_close, assert_equal, data
from tests.replicas import helpers

# ---- state that is not trained ------------------------------------------------------------------


class Average(keras.layers.Layer):
    """Keeps a moving average of its inputs."""

    def build(self, shape):
        self.average = self.add_weight(
            shape=shape[1:], initializer="zeros", trainable=False, name="average"
        )
        self.count = self.add_weight(
            shape=(), initializer="zeros", dtype="int64", trainable=False, name="count"
        )

    def call(self, inputs, training=False):
        if training:
            self.average.assign(0.5 * self.average + 0.5 * tf.reduce_mean(inputs, axis=0))
            self.count.assign_add(1)
        return inputs - self.average


def averaging(a):
    return keras.Sequential(
        [
            keras.Input((4,)),
            Average(),
            keras.layers.BatchNormalization(),
            *helpers.network(a).layers,
        ]
    )


def test_moving_state_of_the_center_is_the_mean_of_the_replicas():
    """That of BatchNormalization is estimated, of all others averaged."""
    model = helpers.replicas(ReplicatedSGD(0.3), build=averaging, run_eagerly=True)
    helpers.fit(model)
    layers = [member.layers[0] for member in model.members]
    assert np.abs(layers[0].average - layers[1].average).max() > 1e-3
    center = model.center().layers[0]
    mean = np.mean([layer.average for layer in layers], axis=0)
    np.testing.assert_allclose(center.average, mean, rtol=1e-6)
    assert int(center.count) == 5
    assert np.abs(model.center().layers[1].moving_mean).max() > 0


def frozen(a, random=True):
    kernel = keras.initializers.GlorotUniform(a if random else 0)
    layer = keras.layers.Dense(4, kernel_initializer=kernel, trainable=False)
    return keras.Sequential([keras.Input((4,)), layer, *helpers.network(a).layers])


def test_frozen_weights_of_the_center_are_the_mean_of_the_replicas():
    model = helpers.replicas(ReplicatedSGD(0.3), build=frozen, count=3, run_eagerly=True)
    kernels = [member.layers[0].kernel.numpy() for member in model.members]
    expected = np.mean(kernels, axis=0)
    np.testing.assert_allclose(model.center().layers[0].kernel, expected, rtol=1e-6)
    helpers.fit(model)
    np.testing.assert_allclose(model.center().layers[0].kernel, expected, rtol=1e-6)


def test_what_all_replicas_have_alike_stays_as_it_is():
    """A third of three times a number may be another number."""
    model = helpers.replicas(
        ReplicatedSGD(0.3), build=lambda a: frozen(a, random=False), count=3, run_eagerly=True
    )
    helpers.fit(model)
    assert_equal([model.center().layers[0].kernel], [model.members[0].layers[0].kernel])


def with_batch_norm(a):
    norm = keras.layers.BatchNormalization()
    return keras.Sequential([keras.Input((4,)), norm, *helpers.network(a).layers])


@pytest.mark.slow
def test_statistics_are_estimated_for_center_and_replicas_or_for_none():
    """Else networks that are close to each other would differ by what they are measured with."""
    x, y = data()
    test = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    for estimated in (True, False):
        model = helpers.replicas(
            ReplicatedSGD(0.0),
            keras.optimizers.SGD(0.0),
            build=lambda a: with_batch_norm(0),
            initialization="same",
            run_eagerly=True,
        )
        options = {} if estimated else {"batch_norm_data": False}
        history = helpers.fit(model, callbacks=[ReplicaMonitor(test=test)], **options).history
        center, replica, ensemble = (
            history[f"test_{who}_loss"][0] for who in ("center", "replica0", "ensemble")
        )
        own = model.members[0].layers[0].moving_mean.numpy()
        found = [model.center(), model.replica(0), model.ensemble().members[0]]
        for network in found:
            mean = network.layers[0].moving_mean.numpy()
            assert (np.abs(mean - x.mean(axis=0)).max() < 1e-5) == estimated
        assert np.abs(own - x.mean(axis=0)).max() > 1e-3
        if estimated:
            np.testing.assert_allclose([replica, ensemble], center, rtol=1e-5)


# ---- layers that learn before training ----------------------------------------------------------

WORDS = np.array([["red car"], ["blue car"], ["red sky"], ["blue sea"]] * 4)
TARGETS = np.linspace(-1, 1, 16)[:, None].astype("float32")


def of_words(a):
    vectorize = keras.layers.TextVectorization(max_tokens=8, output_sequence_length=2)
    vectorize.adapt(WORDS)
    seed = keras.initializers.GlorotUniform(a)
    embed = keras.layers.Embedding(8, 3, embeddings_initializer=seed)
    inputs = keras.Input((1,), dtype="string")
    outputs = keras.layers.Dense(1, kernel_initializer=seed)(
        keras.layers.Flatten()(embed(vectorize(inputs)))
    )
    return keras.Model(inputs, outputs)


def of_categories(a):
    lookup = keras.layers.StringLookup(output_mode="one_hot")
    lookup.adapt(WORDS)
    inputs = keras.Input((1,), dtype="string")
    seed = keras.initializers.GlorotUniform(a)
    return keras.Model(inputs, keras.layers.Dense(1, kernel_initializer=seed)(lookup(inputs)))


@pytest.mark.few(1)
@pytest.mark.parametrize("build", [of_words, pytest.param(of_categories, marks=pytest.mark.slow)])
def test_vocabularies_that_were_adapted_are_kept(build, tmp_path):
    model = helpers.replicas(ReplicatedSGD(0.3), helpers.nesterov(0.05), build=build)
    words = tf.constant(WORDS)
    dataset = tf.data.Dataset.from_tensor_slices((words, TARGETS)).batch(4)
    model.fit(OwnMinibatches(lambda a: dataset), verbose=0, validation_data=dataset)
    center = model.center()
    means = [
        np.mean(w, axis=0) for w in zip(*[m.get_weights() for m in model.members], strict=True)
    ]
    assert_close(center.get_weights(), means, atol=1e-6)
    model.members[0].set_weights(means)
    expected = model.members[0](words)
    for network in (center, model):
        np.testing.assert_allclose(network(words), expected, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = esgd_tf.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(words), expected, rtol=1e-5, atol=1e-6)


def test_normalization_that_was_adapted_is_kept():
    """Its layer computes with copies of its weights."""
    x, y = data()

    def build(a):
        normalize = keras.layers.Normalization()
        normalize.adapt(3 * x + 7)
        return keras.Sequential([keras.Input((4,)), normalize, *helpers.network(a).layers])

    model = helpers.replicas(ReplicatedSGD(0.3), build=build, count=3, run_eagerly=True)
    model.fit(3 * x + 7, y, BATCH, verbose=0)
    kernel, bias = model.center().get_weights()[-2:]
    outputs = np.tanh((x - x.mean(axis=0)) / x.std(axis=0) @ kernel + bias)
    for network in (model, model.center()):
        np.testing.assert_allclose(network(3 * x + 7), outputs, rtol=1e-3, atol=1e-5)


# ---- inputs and outputs that are several --------------------------------------------------------


def two_inputs(a):
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    both = keras.layers.Concatenate()([left, right])
    seed = keras.initializers.GlorotUniform(a)
    return keras.Model([left, right], keras.layers.Dense(3, kernel_initializer=seed)(both))


@pytest.mark.slow
def test_inputs_in_a_list_are_those_in_a_tuple():
    x, y = data()
    found = []
    for kind in (list, tuple):
        model = helpers.replicas(
            ReplicatedSGD(0.3), helpers.nesterov(), build=two_inputs, run_eagerly=True
        )
        inputs = kind([x, -x])
        history = model.fit(inputs, y, BATCH, verbose=0, validation_data=(inputs, y)).history
        model.train_on_batch(kind([x[:8], -x[:8]]), y[:8])
        found.append([*helpers.weights(model), np.array(history["val_loss"])])
        assert np.isfinite(model.evaluate(inputs, y, verbose=0))
    assert_equal(*found)


def test_lists_of_numbers_are_refused_by_name():
    model = helpers.replicas(ReplicatedSGD(0.3))
    with pytest.raises(
        ValueError, match=r"`fit` takes arrays.*got list for `x`, an entry of which is a float"
    ):
        model.fit([[0.0, 1.0], [2.0, 3.0]], [1.0, 2.0])


def two_outputs(a):
    inputs = keras.Input((4,))
    seed = keras.initializers.GlorotUniform(a)
    hidden = keras.layers.Dense(
        5, "tanh", kernel_initializer=seed, kernel_regularizer=keras.regularizers.L2(0.1)
    )(inputs)
    outputs = {
        "class": keras.layers.Dense(3, name="class", kernel_initializer=seed)(hidden),
        "value": keras.layers.Dense(2, name="value", kernel_initializer=seed)(hidden),
    }
    return keras.Model(inputs, outputs)


def listed(a):
    model = two_outputs(a)
    return keras.Model(model.inputs, [model.output["class"], model.output["value"]])


@pytest.mark.slow
@pytest.mark.parametrize("build", [two_outputs, pytest.param(listed, marks=pytest.mark.slow)])
def test_ensembles_of_several_outputs(build):
    """Losses by name, weights of losses, regularisers, weighted metrics: as Keras has them."""
    x, y = data()
    labels = {"class": y.argmax(axis=1), "value": y[:, :2]}
    cross = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {
        "loss": {"class": cross, "value": "mse"},
        "loss_weights": {"class": 0.5, "value": 3.0},
        "weighted_metrics": {"value": "mae"},
    }
    model = helpers.replicas(ReplicatedSGD(0.3), "sgd", build=build, **options)
    targets = labels if build is two_outputs else tuple(labels.values())
    test = tf.data.Dataset.from_tensor_slices((x, targets)).batch(BATCH)
    monitor = ReplicaMonitor(test=test)
    logs = model.fit(x, targets, BATCH, verbose=0, callbacks=[monitor]).history

    def outputs(network):
        found = network.predict(x, verbose=0)
        return (found["class"], found["value"]) if isinstance(found, dict) else found

    def expected(z, value, penalty):
        logs = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        entropy = -logs[np.arange(len(x)), labels["class"]].mean()
        squares = np.mean((value - labels["value"]) ** 2)
        return 0.5 * entropy + 3.0 * squares + penalty

    penalties, of_members = [], []
    for a in range(2):
        replica = model.replica(a)
        penalties.append(0.1 * np.sum(replica.layers[1].kernel.numpy() ** 2))
        of_members.append(outputs(replica))
        np.testing.assert_allclose(
            logs[f"test_replica{a}_loss"], [expected(*of_members[a], penalties[a])], rtol=1e-4
        )
    assert model.ensemble().kind == ["logits", "mean"]
    odds = [np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z, _ in of_members]
    z, value = outputs(model.ensemble())
    np.testing.assert_allclose(np.exp(z), np.mean(odds, axis=0), rtol=1e-4)
    np.testing.assert_allclose(value, np.mean([v for _, v in of_members], axis=0), rtol=1e-4)
    np.testing.assert_allclose(
        logs["test_ensemble_loss"], [expected(z, value, np.mean(penalties))], rtol=1e-4
    )
    error = np.abs(value - labels["value"]).mean()
    np.testing.assert_allclose(logs["test_ensemble_value_mae"], [error], rtol=1e-4)
    center = expected(*outputs(model), 0.1 * np.sum(model.center().layers[1].kernel.numpy() ** 2))
    np.testing.assert_allclose(logs["test_center_loss"], [center], rtol=1e-4)
