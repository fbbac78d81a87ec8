"""The network of plain Keras layers computes what the run's network and preprocessing compute."""

import dataclasses

import keras
import numpy as np
import pytest

from esgd_tf import data, models
from esgd_tf.runs.plain_network import plain_network, with_preprocessing


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The embedded set; a whitening of it is stored elsewhere."""
    embedded = data.load("fashion_mnist_small")
    return dataclasses.replace(embedded, folder=tmp_path_factory.mktemp("records"))


def trained(name="mnistfc", shape=(28, 28, 1)):
    """A network whose BatchNorm statistics and weights are not those it starts with."""
    model = models.build(name, shape, 10, seed=1)
    generator = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.moving_mean.shape
            layer.moving_mean.assign(generator.normal(size=size))
            layer.moving_variance.assign(generator.uniform(0.5, 2.0, size=size))
            layer.gamma.assign(generator.uniform(0.5, 2.0, size=size))
    return model


@pytest.mark.parametrize("name", ["mnistfc", "wrn-10-1"])
def test_the_layers_are_keras_own_and_compute_the_same(name):
    shape = (28, 28, 1) if name == "mnistfc" else (16, 16, 3)
    model = trained(name, shape)
    plain = plain_network(model)
    assert {type(layer).__module__.split(".")[0] for layer in plain.layers} == {"keras"}
    assert [layer.name for layer in plain.layers[1:]] == [layer.name for layer in model.layers[1:]]
    x = np.random.default_rng(2).normal(size=(5, *shape)).astype(np.float32)
    np.testing.assert_allclose(plain(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["scale", "meanstd", "gcn_zca"])
def test_the_preprocessing_is_that_of_training(images, kind):
    prepare = data.preprocessor(kind, images)
    raw = images.test_images[:50]
    # With a network that changes nothing, what comes out is the preprocessed image.
    identity = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten()])
    found = with_preprocessing(identity, prepare)(raw.astype(np.float32))
    expected = np.asarray(prepare(raw)).reshape(50, -1)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ["scale", "meanstd", "gcn_zca"])
@pytest.mark.few(1)
def test_logits_from_pixels(images, kind, tmp_path):
    model, prepare = trained(), data.preprocessor(kind, images)
    exported = with_preprocessing(plain_network(model), prepare)
    exported.save(tmp_path / "net.keras")
    again = keras.models.load_model(tmp_path / "net.keras")
    raw = images.test_images[:50]
    expected = np.asarray(model(prepare(raw)))
    np.testing.assert_allclose(
        again.predict(raw, verbose=0), expected, atol=1e-5 * max(1.0, np.abs(expected).max())
    )


@pytest.mark.slow
def test_a_constant_image_is_not_blown_up_by_the_whitening(images):
    prepare = data.preprocessor("gcn_zca", images)
    identity = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten()])
    for grey in (0.0, 128.0):
        raw = np.full((1, 28, 28, 1), grey, np.float32)
        found = with_preprocessing(identity, prepare)(raw)
        np.testing.assert_allclose(found, np.asarray(prepare(raw)).reshape(1, -1), atol=1e-3)


def test_a_channel_that_does_not_vary_is_only_shifted(images):
    flat = dataclasses.replace(images, train_images=np.full((4, 28, 28, 1), 7, np.uint8))
    prepare = data.preprocessor("meanstd", flat)
    identity = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten()])
    found = with_preprocessing(identity, prepare)(np.full((1, 28, 28, 1), 9.0, np.float32))
    np.testing.assert_allclose(found, np.full((1, 784), 2.0), rtol=1e-6)


def test_softmax(images):
    prepare = data.preprocessor("scale", images)
    plain = plain_network(trained())
    x = images.test_images[:4].astype(np.float32)
    probabilities = np.asarray(with_preprocessing(plain, prepare, softmax=True)(x))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-6)
    logits = np.asarray(with_preprocessing(plain, prepare)(x))
    np.testing.assert_allclose(np.log(probabilities[:, 1] / probabilities[:, 0]),
                               logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-5)  # fmt: skip


def test_mixed_precision_becomes_float32():
    full = trained()
    keras.config.set_dtype_policy("mixed_bfloat16")
    mixed = models.build("mnistfc", (28, 28, 1), 10, seed=1)
    mixed.set_weights(full.get_weights())
    plain = plain_network(mixed)
    assert {layer.dtype_policy.name for layer in plain.layers} == {"float32"}
    x = np.random.default_rng(2).normal(size=(5, 28, 28, 1)).astype(np.float32)
    np.testing.assert_allclose(plain(x), full(x), rtol=1e-5, atol=1e-5)


def test_a_network_inside_a_network():
    inner = trained()
    x = keras.Input((28, 28, 1))
    plain = plain_network(keras.Model(x, inner(x)))
    kinds = {type(layer) for layer in plain._flatten_layers()}
    assert models.BatchNormalization not in kinds
    assert keras.layers.BatchNormalization in kinds


def test_a_layer_of_ones_own_is_refused():
    class Mine(keras.layers.Layer):
        def call(self, x):
            return x

    x = keras.Input((4,))
    with pytest.raises(ValueError, match=r"mine is a .*Mine, which plain Keras cannot load"):
        plain_network(keras.Model(x, Mine(name="mine")(x)))
