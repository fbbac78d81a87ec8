"""A cross entropy from -ln(1 - e^{-L}) to L."""

import math

import keras
import numpy as np
import pytest

from esgd_tf.landscape import BoundedCrossEntropy

ENDS = [-math.log(1 - math.exp(-4.0)), 4.0]


def test_its_ends_are_those_of_the_interval():
    loss = BoundedCrossEntropy(4.0)
    logits = np.array([[60.0, -60.0], [-60.0, 60.0]], np.float32)
    np.testing.assert_allclose(loss.call(np.zeros(2, "int32"), logits), ENDS, rtol=1e-5)
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    of_probabilities = BoundedCrossEntropy(4.0, from_logits=False)
    np.testing.assert_allclose(
        of_probabilities.call(np.zeros((2, 1)), probabilities), ENDS, rtol=1e-5
    )


def test_between_them_it_is_the_cross_entropy_of_a_mixture():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = np.array([0, 2, 1, 1, 0])
    least = math.exp(-3.0)
    expected = -np.log(least + (1 - 2 * least) * p[np.arange(5), y])
    np.testing.assert_allclose(BoundedCrossEntropy(3.0).call(y, logits), expected, rtol=1e-5)
    # Without a limit it is the plain one.
    plain = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    np.testing.assert_allclose(BoundedCrossEntropy(40.0).call(y, logits), plain, rtol=1e-5)


def test_it_trains_and_is_saved(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", BoundedCrossEntropy(3.0))
    model.fit(np.ones((8, 3)), np.zeros(8), verbose=0)
    model.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    assert loaded.loss.limit == 3.0
    assert loaded.loss.from_logits is True


@pytest.mark.parametrize("limit", [0.5, math.inf, "4"])
def test_bad_limits(limit):
    with pytest.raises(ValueError, match=r"`limit` must be"):
        BoundedCrossEntropy(limit)
