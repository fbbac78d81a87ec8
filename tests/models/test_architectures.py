"""The networks: sizes, block order, initialisation, seeds, saving, and training in every mode."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf import models

_SHAPES = {
    "mnistfc": (28, 28, 1),
    "mnistconv": (28, 28, 1),
    "allcnn": (8, 8, 3),
    "wrn-10-1": (8, 8, 3),
}
_EVERY = pytest.mark.parametrize("name", _SHAPES)


def _size(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


def _data(name, count=16):
    rng = np.random.default_rng(5)
    return rng.normal(size=(count, *_SHAPES[name])).astype("float32"), rng.integers(0, 10, count)


def _build(name, **kwargs):
    return models.build(name, _SHAPES[name], 10, **{"seed": 11, **kwargs})


def _compile(model, **kwargs):
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **kwargs,
    )
    return model


def _train(model, x, y):
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    return [v.numpy() for v in model.variables if "seed" not in v.path]


def _assert_same(ours, theirs, rtol=0.0, atol=0.0):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


# --- what is in them ----------------------------------------------------------------------------


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "name, shape, classes, trainable",
    [
        ("mnistfc", (28, 28, 1), 10, 1_867_786),
        ("mnistconv", (28, 28, 1), 10, 132_220),
        ("allcnn", (32, 32, 3), 10, 1_667_166),
        ("wrn-16-4", (32, 32, 3), 10, 2_748_890),
        ("wrn-28-10", (32, 32, 3), 10, 36_479_194),
        ("wrn-28-10", (32, 32, 3), 100, 36_536_884),
    ],
)
def test_parameter_counts(name, shape, classes, trainable):
    model = models.build(name, shape, classes)
    assert model.name == name
    assert model.input_shape == (None, *shape)
    assert model.output_shape == (None, classes)
    assert _size(model.trainable_variables) == trainable
    norms = [layer for layer in model.layers if "BatchNormalization" in type(layer).__name__]
    assert norms and all(type(layer) is models.BatchNormalization for layer in norms)
    # Besides batch norm only the random states of dropout do not train.
    states = [v for v in model.non_trainable_variables if "seed" not in v.path]
    assert _size(states) == 2 * sum(_size([layer.gamma]) for layer in norms)


@pytest.mark.parametrize("name, trainable", [("lenet-10-20-128", 47_658), ("lenet-4-10-50", 9_674)])
def test_lenet_has_no_batch_norm_and_no_state(name, trainable):
    model = models.build(name, (28, 28, 1), 10)
    assert model.name == name
    assert _size(model.trainable_variables) == trainable
    assert model.non_trainable_variables == []
    assert model(np.zeros((2, 28, 28, 1), "float32")).shape == (2, 10)
    dropping = models.build(name, (28, 28, 1), 10, dropout=0.3)
    assert [x.rate for x in dropping.layers if isinstance(x, keras.layers.Dropout)] == [0.3]


def _order(model):
    return [type(layer).__name__ for layer in model.layers[1:]]


def test_block_order_of_mnistconv():
    # ReLU after the pool is ReLU before it: see test_relu_commutes_with_the_pool.
    block = ["Conv2D", "BatchNormalization", "MaxPooling2D", "ReLU", "Dropout"]
    last = ["Flatten", "Dense", "BatchNormalization", "ReLU", "Dropout", "Dense"]
    model = _build("mnistconv")
    assert _order(model) == block + block + last
    assert model.get_layer("pool_1").output.shape == (None, 8, 8, 20)
    assert model.get_layer("pool_2").output.shape == (None, 2, 2, 50)


def test_block_order_of_mnistfc():
    block = ["Dense", "BatchNormalization", "ReLU", "Dropout"]
    assert _order(_build("mnistfc")) == ["Flatten", "Dropout", *block, *block, "Dense"]


def test_block_order_of_allcnn():
    block = ["Conv2D", "BatchNormalization", "ReLU"]
    group = [*block, *block, "ZeroPadding2D", *block, "Dropout"]
    model = models.build("allcnn", (32, 32, 3), 10)
    assert _order(model) == ["Dropout", *group, *group, *block * 3, "GlobalAveragePooling2D"]
    # The last 1x1 convolution has batch norm and ReLU as well, then an average over 8x8.
    assert model.layers[-2].output.shape == (None, 8, 8, 10)
    assert np.min(model.predict(np.ones((2, 32, 32, 3)), verbose=0)) >= 0


def test_block_order_of_wide_resnet():
    model = models.build("wrn-16-2", (32, 32, 3), 10, dropout=0.3)
    names = [layer.name for layer in model.layers]
    assert sum(name.endswith("add") for name in names) == 6
    # Both sides of the first block of a group start from its activated input...
    relu = model.get_layer("group_2_block_1_relu_1").output
    assert model.get_layer("group_2_block_1_shortcut").input is relu
    assert model.get_layer("group_2_block_1_pad").input is relu
    # ...and the other shortcuts carry the sum itself.
    total = model.get_layer("group_2_block_1_add").output
    assert model.get_layer("group_2_block_2_bn_1").input is total
    assert model.get_layer("group_2_block_2_add").input[1] is total
    assert model.get_layer("group_2_block_2_drop").output is (
        model.get_layer("group_2_block_2_conv_2").input
    )
    assert model.get_layer("relu").output.shape == (None, 8, 8, 128)
    convolutions = [layer for layer in model.layers if type(layer).__name__ == "Conv2D"]
    assert not any(layer.use_bias for layer in convolutions)
    # Width 1 leaves 16 filters in the first group: no shortcut convolution there.
    names = [layer.name for layer in models.build("wrn-10-1", (8, 8, 3), 10).layers]
    assert [n for n in names if n.endswith("shortcut")] == [
        "group_2_block_1_shortcut",
        "group_3_block_1_shortcut",
    ]


def test_relu_commutes_with_the_pool():
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 24, 24, 5)), tf.float32)
    pool, relu = keras.layers.MaxPooling2D(3), keras.layers.ReLU()
    results = []
    for first, second in ((relu, pool), (pool, relu)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = second(first(x))
            loss = tf.reduce_sum(y**2 + tf.sin(y))
        results.append((y, tape.gradient(loss, x)))
    _assert_same(*results)


@pytest.mark.parametrize(
    "name, pad, conv",
    [
        ("allcnn", "pad_3", "conv_3"),
        ("wrn-10-1", "group_2_block_1_pad", "group_2_block_1_conv_1"),
    ],
)
def test_strided_convolutions_are_centred_as_in_torch(name, pad, conv):
    model = _build(name)
    pad, conv = model.get_layer(pad), model.get_layer(conv)
    channels, filters = conv.kernel.shape[2:]
    kernel = np.zeros((3, 3, channels, filters), "float32")
    kernel[1, 1, 0, 0] = 1.0
    conv.kernel.assign(kernel)
    x = np.random.default_rng(0).normal(size=(1, 8, 8, channels)).astype("float32")
    bias = 0.0 if conv.bias is None else conv.bias.numpy()[0]
    # Torch's padding=1, stride=2 puts the centre of the kernel on the even pixels.
    np.testing.assert_allclose(conv(pad(x))[0, ..., 0], x[0, ::2, ::2, 0] + bias, atol=1e-6)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "name, default, given",
    [
        ("mnistfc", [0.2, 0.5, 0.5], [0.1, 0.25, 0.25]),
        ("mnistconv", [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]),
        ("allcnn", [0.2, 0.5, 0.5], [0.1, 0.25, 0.25]),
        ("wrn-10-1", [], [0.25, 0.25, 0.25]),
    ],
)
def test_dropout_rates(name, default, given):
    for dropout, rates in ((None, default), (0.25, given), (0.0, []), (0, [])):
        layers = _build(name, dropout=dropout).layers
        assert [x.rate for x in layers if isinstance(x, keras.layers.Dropout)] == rates


@pytest.mark.parametrize("shape", [(5, 7, 2), (64, 64, 3)], ids=str)
def test_mnistfc_flattens_anything(shape):
    model = models.build("mnistfc", shape, 4)
    assert model(np.zeros((2, *shape))).shape == (2, 4)


@pytest.mark.parametrize("name", ["mnistconv", "allcnn", "wrn-10-1"])
@pytest.mark.parametrize("shape", [(32, 32, 3), (29, 41, 1)], ids=str)
def test_other_image_sizes(name, shape):
    assert models.build(name, shape, 7)(np.zeros((2, *shape))).shape == (2, 7)


# --- how they start -----------------------------------------------------------------------------


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["mnistfc", "mnistconv", "allcnn"])
def test_torch_initialisation(name):
    layers = [x for x in models.build(name, _SHAPES[name], 10, seed=0).layers if x.weights]
    for layer in layers:
        if isinstance(layer, models.BatchNormalization):
            assert np.all(layer.gamma.numpy() == 1.0) and np.all(layer.beta.numpy() == 0.0)
            continue
        kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
        limit = 1.0 / np.sqrt(np.prod(kernel.shape[:-1]))
        for values in (kernel, bias):
            count = values.size
            assert np.abs(values).max() <= limit * (1 + 1e-6)
            # Uniform: mean 0 and variance limit^2 / 3, within five standard errors.
            assert abs(values.mean()) < 5 * limit / np.sqrt(3 * count)
            assert abs(values.var() / limit**2 - 1 / 3) < 5 * np.sqrt(4 / 45 / count) + 1 / count


def test_wide_resnet_initialisation():
    model = models.build("wrn-16-4", (32, 32, 3), 10, seed=0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = layer.kernel.numpy()
            variance = 2.0 / (kernel.shape[0] * kernel.shape[1] * kernel.shape[3])
            assert abs(kernel.var() / variance - 1) < 5 * np.sqrt(2 / kernel.size)
            # Normal, not truncated: a truncated one has a kurtosis of 2.1.
            if kernel.size > 10_000:
                assert abs(np.mean(kernel**4) / kernel.var() ** 2 - 3) < 0.5
    logits = model.get_layer("logits")
    assert np.all(logits.bias.numpy() == 0)
    assert 0.9 / 16 < np.abs(logits.kernel.numpy()).max() <= 1 / 16


@pytest.mark.few(2)
@_EVERY
def test_a_seed_fixes_the_weights(name):
    first, second, other = (
        [v.numpy() for v in _build(name, seed=seed).trainable_variables] for seed in (3, 3, 4)
    )
    _assert_same(first, second)
    moved = [a for a, b in zip(first, other, strict=True) if np.any(a != b)]
    assert len(moved) >= 4
    # Layers of one shape differ from each other.
    kernels = [v for v in first if v.ndim > 1]
    assert len({kernel.ravel()[:4].tobytes() for kernel in kernels}) == len(kernels)


def test_without_a_seed_keras_decides():
    def weights():
        return _build("mnistconv", seed=None).get_layer("conv_1").kernel.numpy()

    keras.utils.set_random_seed(1)
    first, second = weights(), weights()
    keras.utils.set_random_seed(1)
    assert np.any(first != second)
    np.testing.assert_array_equal(first, weights())


@pytest.mark.few(2)
@_EVERY
def test_dropout_does_not_change_the_initial_weights(name):
    _assert_same(
        [v.numpy() for v in _build(name, dropout=0.0).trainable_variables],
        [v.numpy() for v in _build(name, dropout=0.4).trainable_variables],
    )


@_EVERY
@pytest.mark.few(1)
def test_a_seed_fixes_the_dropout_masks(name):
    x, _ = _data(name, 8)
    outputs = [
        [np.asarray(model(x, training=True)) for _ in range(2)]
        for model in (_build(name, dropout=0.5) for _ in range(2))
    ]
    _assert_same(*outputs)
    assert np.any(outputs[0][0] != outputs[0][1])


# --- how they train -----------------------------------------------------------------------------


@_EVERY
@pytest.mark.few(1)
def test_graph_equals_eager(name):
    x, y = _data(name)
    graph = _train(_compile(_build(name, dropout=0.3), jit_compile=False), x, y)
    eager = _train(_compile(_build(name, dropout=0.3), run_eagerly=True), x, y)
    _assert_same(graph, eager, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    "name",
    [
        "mnistconv",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mnistfc", "allcnn", "wrn-10-1")),
    ],
)
@pytest.mark.slow
def test_xla_equals_graph_and_the_loss_falls(name):
    x, y = _data(name)
    histories, weights = [], []
    for jit in (True, False):
        model = _compile(_build(name, dropout=0.0), jit_compile=jit)
        histories.append(model.fit(x, y, batch_size=16, epochs=8, verbose=0).history["loss"])
        weights.append(model.trainable_variables)
    assert histories[0][-1] < 0.9 * histories[0][0]
    # Equal mathematics, other rounding, over eight steps.
    np.testing.assert_allclose(*histories, rtol=1e-3)
    _assert_same(*weights, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_dropout_under_xla():
    x, y = _data("mnistfc")
    model = _compile(_build("mnistfc"), jit_compile=True)
    before = model.get_layer("dense_1").kernel.numpy()
    assert np.isfinite(model.fit(x, y, batch_size=16, verbose=0).history["loss"][0])
    assert np.any(model.get_layer("dense_1").kernel.numpy() != before)


@pytest.mark.parametrize(
    "name, policy",
    [
        *((name, "mixed_bfloat16") for name in _SHAPES),
        ("mnistconv", "mixed_float16"),
        ("mnistfc", "float64"),
        ("mnistconv", "float64"),
        # The others add nothing but time: such convolutions are slow on a CPU.
        *(
            pytest.param(name, policy, marks=pytest.mark.slow)
            for name in ("allcnn", "wrn-10-1")
            for policy in ("mixed_float16", "float64")
        ),
    ],
)
@pytest.mark.few(1)
def test_dtype_policies(name, policy):
    x, y = _data(name, 8)
    keras.config.set_dtype_policy(policy)
    model = _compile(_build(name, dropout=0.1), jit_compile=False)
    before = [v.numpy() for v in model.trainable_variables]
    loss = model.fit(x, y, batch_size=8, verbose=0).history["loss"]
    variable_dtype = keras.config.dtype_policy().variable_dtype
    assert {v.dtype for v in model.trainable_variables} == {variable_dtype}
    # The softmax of the loss is never computed from rounded logits.
    assert model(x).dtype == variable_dtype
    assert np.all(np.isfinite(loss))
    assert all(np.any(a != b) for a, b in zip(before, model.trainable_variables, strict=True))


@pytest.mark.parametrize("name", ["mnistconv", "wrn-10-1"])
@pytest.mark.few(1)
@pytest.mark.slow
def test_two_devices(name, two_cpus):
    x, y = _data(name)
    with two_cpus.scope():
        model = _compile(_build(name, dropout=0.1), jit_compile=False)
    before = [v.numpy() for v in model.trainable_variables]
    loss = model.fit(x, y, batch_size=8, verbose=0).history["loss"]
    assert np.all(np.isfinite(loss))
    assert all(np.any(a != b) for a, b in zip(before, model.trainable_variables, strict=True))


@pytest.mark.slow
def test_two_devices_with_fixed_statistics_equal_one(two_cpus):
    """With batch norm frozen the mean over devices is the mean over the batch."""
    x, y = _data("wrn-10-1")

    def compiled():
        model = _build("wrn-10-1")
        for layer in model.layers:
            if isinstance(layer, models.BatchNormalization):
                layer.trainable = False
        return _compile(model, jit_compile=False)

    with two_cpus.scope():
        two = compiled()
    _assert_same(_train(two, x, y), _train(compiled(), x, y), rtol=1e-4, atol=1e-5)


@_EVERY
@pytest.mark.few(1)
def test_save_and_load(name, tmp_path):
    x, y = _data(name)
    model = _compile(_build(name, dropout=0.3), jit_compile=False)
    model.fit(x, y, batch_size=16, verbose=0)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert [layer.get_config() for layer in loaded.layers] == [
        layer.get_config() for layer in model.layers
    ]
    np.testing.assert_array_equal(model.predict(x, verbose=0), loaded.predict(x, verbose=0))


@_EVERY
@pytest.mark.few(2)
def test_clone(name):
    model = _build(name)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x, _ = _data(name, 4)
    np.testing.assert_array_equal(model(x), clone(x))
