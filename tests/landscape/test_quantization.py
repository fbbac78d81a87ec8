"""Rounding to few bits: the grid in closed form, and what is rounded."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import quantization
from tests.landscape.problems import cross_entropy, examples, mlp

KERNEL = np.array([[1.0, 0.35], [-0.2, -0.6], [0.05, 0.1]])


def weight_loss(factors):
    """A loss that tells the rounded kernel: Σ factors w."""

    def loss(weights):
        return tf.reduce_sum(weights[0] * factors)

    return loss


def rounded(bits, per="channel", kernel=KERNEL):
    """Return the kernel that the network was measured with, one weight at a time."""
    result = np.empty(kernel.shape)
    for place in np.ndindex(kernel.shape):
        factors = np.zeros(kernel.shape)
        factors[place] = 1.0
        found = quantization([kernel, np.array([0.37])], None, [bits], per=per,
                             loss=weight_loss(factors))  # fmt: skip
        result[place] = found.values["data"]["loss"][0]
    return result


def test_three_values_with_two_bits():
    np.testing.assert_allclose(rounded(2), [[1, 0.6], [0, -0.6], [0, 0]])
    np.testing.assert_allclose(rounded(2, "tensor"), [[1, 0], [0, -1], [0, 0]])


def test_the_scale_is_the_maximum_over_two_to_the_bits_less_one():
    for bits in (3, 5):
        steps = 2 ** (bits - 1) - 1
        columns = KERNEL * steps / [1.0, 0.6]
        np.testing.assert_allclose(rounded(bits) * steps / [1.0, 0.6], np.round(columns))
        np.testing.assert_allclose(rounded(bits, "tensor") * steps, np.round(KERNEL * steps))


def test_weights_on_the_grid_stay():
    grid = np.array([[7, -3, 0], [1, 7, -7]]) / 7.0
    found = quantization([grid], None, [8, 4], per="tensor", loss=lambda w: tf.reduce_sum(w[0]))
    assert found.rounding[1] == pytest.approx(0, abs=1e-15)
    assert found.rounding[0] > 0


def test_rounding_errors_are_those_of_a_uniform_grid():
    """Spread evenly over half a step on both sides: s²/12 on average, and never more than s/2."""
    kernel = np.random.default_rng(0).uniform(-1, 1, (200, 100))
    kernel[0, 0] = 1.0
    found = quantization([kernel], None, per="tensor", loss=lambda w: tf.reduce_sum(w[0]))
    steps = 2 ** (found.bits - 1) - 1
    expected = np.sqrt(1 / (12 * steps**2) / (1 / 3))
    np.testing.assert_allclose(found.rounding[:5], expected[:5], rtol=0.05)
    assert list(found.bits) == [8, 7, 6, 5, 4, 3, 2]


def test_biases_and_normalisation_stay():
    """With kernels of ones, which every grid has, nothing changes, whatever the biases are."""
    model = mlp(batch_norm=True)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            layer.kernel.assign(tf.ones_like(layer.kernel))
    found = quantization(model, examples(dtype="float32"), loss=cross_entropy())
    assert (found.kernels, found.size) == (2, 3 * 5 + 5 * 4)
    for metric in ("error", "loss"):
        assert set(found.values["data"][metric]) == {found.reference["data"][metric]}


def test_a_network_is_that_with_the_rounded_kernels():
    model, data = mlp(), examples(dtype="float32")
    model.compile("sgd", cross_entropy())
    found = quantization(model, {"a": data, "b": data}, [3], metric="loss")
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            kernel = layer.kernel.numpy()
            scale = np.abs(kernel).max(0) / 3
            layer.kernel.assign(np.round(kernel / scale) * scale)
    expected = model.evaluate(*data, verbose=0)
    for split in "ab":
        assert found.values[split]["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_only_the_chosen_kernels():
    model, data = mlp(), examples(dtype="float32")
    found = quantization(model, data, [2], loss=cross_entropy(), variables=["last"])
    assert (found.kernels, found.size) == (1, 20)


def test_channels_of_other_layers():
    """Of a depthwise kernel [h, w, channel, multiplier] both last axes are filters."""
    model = keras.Sequential(
        [keras.Input((4, 4, 2)), keras.layers.DepthwiseConv2D(2), keras.layers.Flatten()]
    )
    kernel = np.random.default_rng(1).normal(size=(2, 2, 2, 1)).astype("float32")
    model.layers[0].depthwise_kernel.assign(kernel) if hasattr(
        model.layers[0], "depthwise_kernel"
    ) else model.layers[0].kernel.assign(kernel)
    x = np.random.default_rng(2).normal(size=(8, 4, 4, 2)).astype("float32")
    y = np.zeros((8, 18), "float32")
    found = quantization(model, (x, y), [3], metric="loss", loss="mse")
    scale = np.abs(kernel).max((0, 1), keepdims=True) / 3
    model.set_weights([np.round(kernel / scale) * scale, model.get_weights()[1]])
    expected = float(np.mean(model.predict(x, verbose=0) ** 2))
    assert found.values["data"]["loss"][0] == pytest.approx(expected, rel=1e-5)
