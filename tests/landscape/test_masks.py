"""Masks and ignored classes weigh as they do in Keras, against `model.evaluate`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import HessianOperator
from tests.landscape.keras_losses import (
    MANY_CLASSES,
    N,
    agrees,
    examples,
    keras_loss,
    network,
    redraw,
    weights_for,
)


def squared_elements(y, p):
    return tf.square(y - p)


class WithMask(keras.layers.Layer):
    """Gives a mask of its own to what comes after it: inputs below 0 do not count."""

    def __init__(self, per_step=True):
        super().__init__()
        self.supports_masking, self._per_step = True, per_step

    def call(self, x):
        return x

    def compute_mask(self, x, mask=None):
        return x[..., 0] > 0


def reader(masking, outputs=3, sequences=False, kind="labels"):
    """Return a network of sequences [n, 5] of words, 0 for none."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((5,), dtype="int32")])
    model.add(layers.Embedding(6, 3, mask_zero=masking != "none"))
    if masking == "lstm" or not sequences:
        model.add(layers.LSTM(4, return_sequences=sequences))
    else:
        model.add(layers.Dense(4, "tanh"))
    model.add(layers.Dense(outputs, "softmax" if kind == "labels" else None))
    redraw(model)
    return model


def sentences(n=N, outputs=3, sequences=False, seed=3):
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 6, (n, 5))
    for i, row in enumerate(x):
        row[1 + i % 4 :] = 0
    return x.astype("int32"), rng.integers(0, outputs, (n, 5) if sequences else (n,))


@pytest.mark.usefixtures("eagerly")
class TestMasks:
    @pytest.mark.few(2)
    @pytest.mark.parametrize("masking", ["lstm", "dense"])
    @pytest.mark.parametrize("weighting", ["none", "n", "n1", "zeros", "each"])
    @pytest.mark.parametrize("batch_size", [3, 7])
    def test_of_each_step(self, masking, weighting, batch_size):
        model = reader(masking, sequences=True)
        data = sentences(sequences=True)
        data += weights_for(weighting, (5, 3), fitting=True)
        model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
        agrees(model, data, batch_size=batch_size)

    def test_is_seen_in_the_value(self):
        """The mask is what the sweep tests: without it the loss is another."""
        data = sentences(sequences=True)
        values = []
        for masking in ("dense", "none"):
            model = reader(masking, sequences=True) if masking == "dense" else unmasked_reader()
            model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
            values.append(agrees(model, data).loss())
        assert abs(values[0] - values[1]) > 0.01

    @pytest.mark.slow
    @pytest.mark.parametrize("masking", ["lstm", "none"])
    def test_that_end_before_the_output(self, masking):
        model, data = reader(masking), sentences()
        model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
        agrees(model, data)

    @pytest.mark.slow
    def test_in_graphs(self):
        tf.config.run_functions_eagerly(False)
        model, data = reader("lstm", sequences=True), sentences(sequences=True)
        model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
        agrees(model, data)

    @pytest.mark.few(1)
    @pytest.mark.parametrize("layer", ["Masking", "own"])
    @pytest.mark.parametrize("recurrent", [True, False])
    @pytest.mark.parametrize("loss", ["mse", "huber", squared_elements])
    @pytest.mark.parametrize("weighting", ["none", "each"])
    def test_masks_of_real_inputs(self, layer, recurrent, loss, weighting):
        layers = keras.layers
        mask = layers.Masking(0.0) if layer == "Masking" else WithMask()
        inner = layers.GRU(3, return_sequences=True) if recurrent else layers.Dense(3, "tanh")
        model = keras.Sequential([keras.Input((4, 2)), mask, inner, layers.Dense(2)])
        redraw(model)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((N, 4, 2)).astype("float32")
        x[::2, 2:] = 0.0
        x[:, 0] = np.abs(x[:, 0]) + 0.1  # a first step that counts
        y = rng.standard_normal((N, 4, 2)).astype("float32")
        model.compile(loss=loss, run_eagerly=True)
        agrees(model, (x, y, *weights_for(weighting, (4, 2), fitting=True)))

    @pytest.mark.few(2)
    @pytest.mark.parametrize("shape", ["nc", "ntc", "nhwc"])
    @pytest.mark.parametrize("weighting", ["none", "n", "zeros", "each"])
    @pytest.mark.parametrize("ignored", [0, -1, 255])
    def test_ignore_class(self, shape, weighting, ignored):
        whole = MANY_CLASSES[shape]
        model = network(whole, "labels")
        x, y = examples(whole, "labels")
        y.flat[::3] = ignored
        if weighting == "each" and len(whole) < 2:
            weighting = "n1"
        data = (x, y, *weights_for(weighting, whole, fitting=True))
        loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=ignored)
        model.compile(loss=loss, run_eagerly=True)
        agrees(model, data)

    @pytest.mark.slow
    def test_ignore_class_on_a_mask(self):
        model, (x, y) = reader("lstm", sequences=True), sentences(sequences=True)
        y[:, 0] = np.where(np.arange(N) % 2, y[:, 0], 2)
        loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=2)
        model.compile(loss=loss, run_eagerly=True)
        agrees(model, (x, y))

    def test_ignored_examples_leave_the_average_of_their_batch(self):
        """A value by hand: of four examples two count, and Keras divides by these."""
        model, (x, _) = network((4,), "labels"), examples((4,), "labels", n=4)
        y = np.array([1, 255, 255, 2])
        p = model(x).numpy()
        loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)
        h = HessianOperator(model, loss, (x, y))
        assert h.loss() == pytest.approx(-(np.log(p[0, 1]) + np.log(p[3, 2])) / 2, rel=1e-5)


def unmasked_reader():
    """Return `reader("dense", sequences=True)` without a mask."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((5,), dtype="int32"), layers.Embedding(6, 3)])
    model.add(layers.Dense(4, "tanh"))
    model.add(layers.Dense(3, "softmax"))
    redraw(model)
    return model


@pytest.mark.usefixtures("eagerly")
class TestHowDataAreCut:
    @pytest.mark.slow
    def test_default_with_masks(self):
        model, data = reader("lstm", sequences=True), sentences(n=75, sequences=True)
        model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
        h = HessianOperator(model, data=data)
        assert h.loss() == pytest.approx(keras_loss(model, data, None), rel=2e-5)

    def test_default_with_ignored_classes_that_come_late(self):
        """The first examples have none, so nothing shows in them."""
        model, (x, y) = network((4,), "labels"), examples((4,), "labels", n=75)
        y[70:] = 255
        loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)
        model.compile(loss=loss, run_eagerly=True)
        h = HessianOperator(model, data=(x, y))
        assert h.loss() == pytest.approx(keras_loss(model, (x, y), None), rel=2e-5)
