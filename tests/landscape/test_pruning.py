"""Pruning by magnitude: which weights become 0, and what that costs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import pruning
from tests.landscape.problems import cross_entropy, examples, mlp

WEIGHTS = [np.array([[0.1, -0.2], [0.3, -0.4]]), np.array([[5.0, 6.0], [7.0, -0.05]]),
           np.array([0.01, 0.02])]  # fmt: skip


def squares(weights):
    return tf.add_n([tf.reduce_sum(w**2) for w in weights])


def losses(fractions, per):
    return pruning(WEIGHTS, None, fractions, per=per, loss=squares).values["data"]["loss"]


BIAS = 0.01**2 + 0.02**2
ALL = 0.01 + 0.04 + 0.09 + 0.16 + 25 + 36 + 49 + 0.0025


def test_the_smallest_of_the_network():
    removed = np.cumsum([0.0025, 0.01, 0.04, 0.09, 0.16, 25, 36, 49])
    found = losses(np.arange(1, 9) / 8, "network")
    np.testing.assert_allclose(found, BIAS + ALL - removed)


def test_the_smallest_of_each_layer():
    first, second = np.cumsum([0.01, 0.04, 0.09, 0.16]), np.cumsum([0.0025, 25, 36, 49])
    found = losses(np.arange(1, 5) / 4, "layer")
    np.testing.assert_allclose(found, BIAS + ALL - first - second, atol=1e-12)


def test_nothing_and_everything():
    found = pruning(WEIGHTS, None, [0.0, 1.0], loss=squares)
    assert found.values["data"]["loss"][0] == found.reference["data"]["loss"]
    assert found.values["data"]["loss"][1] == pytest.approx(BIAS)
    np.testing.assert_allclose(found.removed, [0, 1])
    assert (found.kernels, found.size) == (2, 8)


def test_as_many_as_the_fraction_says_of_equal_weights():
    for per, count in (("network", 50), ("layer", 50)):
        found = pruning([np.ones((10, 10))], None, [0.5], per=per, loss=squares)
        assert found.values["data"]["loss"][0] == count


def test_a_network_is_that_without_these_weights():
    model, data = mlp(), examples(dtype="float32")
    model.compile("sgd", cross_entropy())
    found = pruning(model, data, [0.4], metric="loss")
    kernels = [layer.kernel for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    sizes = np.concatenate([np.abs(k.numpy()).ravel() for k in kernels])
    threshold = np.sort(sizes)[round(0.4 * len(sizes))]
    for kernel in kernels:
        kernel.assign(np.where(np.abs(kernel.numpy()) < threshold, 0, kernel.numpy()))
    expected = model.evaluate(*data, verbose=0)
    assert found.values["data"]["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_only_the_chosen_kernels():
    found = pruning(WEIGHTS, None, [1.0], loss=squares, variables=[1, 2])
    assert found.values["data"]["loss"][0] == pytest.approx(BIAS + 0.3)
    with pytest.raises(ValueError, match=r"There are no kernels"):
        pruning(WEIGHTS, None, [1.0], loss=squares, variables=[2])
