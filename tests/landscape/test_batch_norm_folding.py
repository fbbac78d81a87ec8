"""Folding BatchNormalization: the same outputs without it, or one sentence."""

import keras
import numpy as np
import pytest

from esgd_tf import EntropySGD, evaluate_at
from esgd_tf.landscape import fold_batch_norm
from tests.landscape.problems import randomize, rectified, same_state, state

layers = keras.layers


def norm(**options):
    return layers.BatchNormalization(**options)


def sequential(*inside, shape=(6, 6, 2)):
    model = keras.Sequential([keras.Input(shape), *inside])
    randomize(model)
    return model


def images(shape=(6, 6, 2), n=5):
    return np.random.default_rng(1).normal(size=(n, *shape)).astype("float32")


def same(one, other, x):
    expected = one.predict(x, verbose=0)
    np.testing.assert_allclose(other.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)
    return np.abs(expected).max() > 0.1


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(3, 3, padding="same"),
        layers.Conv2D(3, 3, use_bias=False, strides=2),
        layers.Conv2DTranspose(3, 3),
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        layers.SeparableConv2D(3, 3, depth_multiplier=2),
        layers.Dense(4),
    ],
    ids=lambda layer: type(layer).__name__ + ("" if layer.use_bias else " without bias"),
)
def test_every_kind_of_layer(layer):
    model = sequential(type(layer).from_config(layer.get_config()), norm(), layers.ReLU())
    folded = fold_batch_norm(model)
    assert same(model, folded, images())
    assert [type(part) for part in folded.layers[1:]] == [type(layer), layers.ReLU]
    assert folded.layers[1].use_bias


@pytest.mark.parametrize("options", [{"center": False}, {"scale": False}, {"epsilon": 0.5}])
def test_settings_of_the_normalization(options):
    model = sequential(layers.Dense(4, use_bias=False), norm(**options), shape=(3,))
    assert same(model, fold_batch_norm(model), images((3,)))


def test_a_network_with_dropout_and_models_in_models():
    inner = keras.Sequential(
        [layers.Conv2D(3, 2, name="same"), layers.Dropout(0.5), norm(), layers.ReLU()], name="block"
    )
    inputs = keras.Input((6, 6, 2))
    hidden = layers.Conv2D(2, 2, name="same")(inner(inputs))
    branch = layers.Activation("relu")(norm()(hidden))
    outputs = [layers.Flatten()(branch), layers.GlobalMaxPooling2D()(branch) * 2.0]
    model = keras.Model(inputs, outputs)
    randomize(model)
    before = state(model)
    folded = fold_batch_norm(model)
    assert same_state(before, state(model))
    for one, two in zip(model.predict(images(), verbose=0), folded.predict(images(), verbose=0),
                        strict=True):  # fmt: skip
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(part, keras.Model | layers.BatchNormalization)
                   for part in folded.layers)  # fmt: skip
    assert {"same", "same_2"} <= {part.name for part in folded.layers}


def test_without_any_it_is_a_copy():
    model = rectified()
    model.layers[0].trainable = False
    copy = fold_batch_norm(model)
    x = images((3,)).astype("float64")
    np.testing.assert_array_equal(copy.predict(x, verbose=0), model.predict(x, verbose=0))
    assert len(copy.trainable_variables) == len(model.trainable_variables) == 4
    copy.layers[-1].kernel.assign(copy.layers[-1].kernel * 0)
    assert np.abs(np.asarray(model.layers[-1].kernel)).max() > 0


def test_of_a_model_in_training_it_is_the_anchor():
    model = rectified(batch_norm=True, dtype="float32")
    model.compile(EntropySGD(0.1, langevin_steps=3), "mse")
    x = images((3,), 4)
    for _ in range(4):
        model.train_on_batch(x, np.ones((4, 4)))
    with evaluate_at(model, "anchor"):
        expected = model.predict(x, verbose=0)
    assert np.abs(expected - model.predict(x, verbose=0)).max() > 1e-6
    found = fold_batch_norm(model).predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def functional(*outputs_of):
    inputs = keras.Input((6, 6, 2))
    x = inputs
    for part in outputs_of:
        x = part(x)
    return keras.Model(inputs, x)


SHARED = layers.Conv2D(2, 1, name="shared")
TWICE = norm(name="twice")


def two_consumers(x):
    x = layers.Conv2D(2, 1)(x)
    return norm(name="here")(x) + x


class Unwritten(layers.Layer):
    def __init__(self, what):
        super().__init__(name="unwritten")

    def call(self, x):
        return x


class Own(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([norm(name="first")], "'first' cannot be folded: there is no Dense or convolutional"),
        ([layers.Conv2D(2, 1), layers.ReLU(name="r"), norm(name="here")], "before it comes 'r'"),
        ([layers.Conv2D(2, 1, activation="relu", name="c"), norm()], "'c', which is no Dense"),
        ([lambda x: layers.Add(name="add")([x, x]), norm()], "before it comes 'add'"),
        ([two_consumers], "'here' cannot be folded: what it normalises is used elsewhere"),
        ([SHARED, SHARED, norm()], "'shared' before it is called several times"),
        ([layers.Conv2D(2, 1), TWICE, TWICE], "'twice' cannot be folded: it is called several"),
        ([layers.Conv2D(2, 1, name="c"), norm(axis=1)], "does not normalise the channels of 'c'"),
        ([layers.TimeDistributed(norm(name="deep"), name="td")], "'deep' .*stands inside 'td'"),
        ([Unwritten(3)], "Layer 'unwritten', a Unwritten, cannot be copied from its config"),
    ],
)
def test_where_it_cannot_be_done(parts, sentence):
    with pytest.raises(ValueError, match=sentence):
        fold_batch_norm(functional(*parts))


def test_models_that_cannot_be_gone_through():
    own = Own(name="mine")
    own.build((None, 3))
    with pytest.raises(ValueError, match="'mine' is a Own, whose layers cannot be gone through"):
        fold_batch_norm(own)
    with pytest.raises(ValueError, match="has no weights yet"):
        fold_batch_norm(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ValueError, match="must be a Keras model; got a list"):
        fold_batch_norm([np.zeros(3)])
