"""Filters, found by asking which weights feed one output."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import plane
from esgd_tf.landscape._filters import filter_axes
from tests.landscape.problems import mlp

L = keras.layers
# A layer, the shape of its input, and how many last axes of its output are units or channels.
CASES = {
    "dense": (lambda: L.Dense(3), (4,), 1),
    "conv1": (lambda: L.Conv1D(3, 2), (5, 4), 1),
    "conv2": (lambda: L.Conv2D(3, 2), (4, 4, 2), 1),
    "conv2-groups": (lambda: L.Conv2D(4, 2), (4, 4, 2), 1),
    "depthwise1": (lambda: L.DepthwiseConv1D(2, depth_multiplier=2), (5, 3), 1),
    "depthwise2": (lambda: L.DepthwiseConv2D(2, depth_multiplier=2), (4, 4, 3), 1),
    "transposed1": (lambda: L.Conv1DTranspose(3, 2), (4, 2), 1),
    "transposed2": (lambda: L.Conv2DTranspose(3, 2), (4, 4, 2), 1),
    "transposed3": (lambda: L.Conv3DTranspose(2, 2), (3, 3, 3, 2), 1),
    "einsum": (lambda: L.EinsumDense("abc,cde->abde", (None, 2, 3)), (5, 4), 2),
    "einsum-sum": (lambda: L.EinsumDense("abcd,cde->abe", (None, 3)), (5, 2, 4), 1),
}


def feeding(layer, x, units):
    """Return for each output unit which numbers of the kernel its value depends on."""
    out = layer(x)
    flat = int(np.prod(out.shape[-units:]))
    masks = []
    for k in range(flat):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(tf.reshape(layer(x), [-1, flat])[:, k])
        masks.append(np.asarray(tape.gradient(value, layer.kernel.value)) != 0)
    return masks


def slices(kernel, axes):
    """Return the masks of the slices along some axes."""
    shape = [kernel.shape[a] for a in axes]
    masks = []
    for at in np.ndindex(*shape):
        mask = np.zeros(kernel.shape, bool)
        index = [slice(None)] * len(kernel.shape)
        for axis, k in zip(axes, at, strict=True):
            index[axis] = k
        mask[tuple(index)] = True
        masks.append(mask)
    return masks


@pytest.mark.parametrize("case", CASES)
def test_a_filter_feeds_one_output(case):
    make, shape, units = CASES[case]
    layer = make()
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    model = keras.Sequential([keras.Input(shape), layer])
    ((axes,), *_) = [filter_axes(model, [layer.kernel])]
    found = {mask.tobytes() for mask in slices(layer.kernel, axes)}
    assert found == {mask.tobytes() for mask in feeding(layer, x, units)}
    assert len(found) > 1


def test_a_separable_convolution_has_two_kernels():
    layer = L.SeparableConv2D(5, 3, depth_multiplier=2)
    model = keras.Sequential([keras.Input((8, 8, 4)), layer])
    axes = filter_axes(model, [layer.depthwise_kernel, layer.pointwise_kernel, layer.bias])
    assert axes == [(2, 3), (3,), (0,)]


def test_the_heads_of_attention():
    """A query is made by a column of one head; the output by all heads."""
    x = keras.Input((5, 4))
    layer = L.MultiHeadAttention(2, 3, use_bias=False)
    model = keras.Model(x, layer(x, x))
    axes = dict(
        zip([v.path.split("/")[-2] for v in model.trainable_variables],
            filter_axes(model, model.trainable_variables), strict=True)
    )  # fmt: skip
    assert axes == {"query": (1, 2), "key": (1, 2), "value": (1, 2), "attention_output": (2,)}


@pytest.mark.parametrize("normalization", ["filter", "layer"])
def test_directions_have_the_norms_of_the_filters(normalization):
    layers = [L.DepthwiseConv2D(2, depth_multiplier=2), L.Conv2DTranspose(3, 2)]
    model = keras.Sequential([keras.Input((4, 4, 2)), *layers, L.Flatten(), L.Dense(1)])
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype("float32")
    found = plane(
        model, None, "random", normalization, loss="mse", data=(x, np.ones((3, 1))),
        dimensions=1, points=3, metric="loss",
    )  # fmt: skip
    at = 0
    for variable in model.trainable_variables:
        w = variable.numpy()
        d = found.directions[0][at : at + w.size].reshape(w.shape)
        at += w.size
        if w.ndim == 1:
            assert not d.any()
            continue
        masks = [np.ones(w.shape, bool)]
        if normalization == "filter":
            layer = next((one for one in layers if one.kernel is variable), None)
            masks = (
                slices(w, [w.ndim - 1])
                if layer is None
                else feeding(layer, x if layer is layers[0] else layers[0](x), 1)
            )
        for mask in masks:
            assert np.linalg.norm(d[mask]) == pytest.approx(np.linalg.norm(w[mask]), rel=1e-5)


def test_a_layer_that_is_not_kerass_has_them_along_the_last_axis():
    model = mlp()
    assert filter_axes(model, model.trainable_variables) == [(1,), (0,), (1,), (0,)]
