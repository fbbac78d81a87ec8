"""The fused layer against Keras' own layer, and the fused layer in training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.models import BatchNormalization

_SHAPES = [(7, 5, 6, 4), (32, 12, 12, 8), (9, 3), (1, 2, 2, 3)]


def _pair(channels, rank, **kwargs):
    """Our layer and Keras', built with the same random scale and shift."""
    rng = np.random.default_rng(1)
    layers = [
        BatchNormalization(**kwargs),
        keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **kwargs),
    ]
    gamma, beta, mean = rng.normal(size=(3, channels))
    variance = rng.uniform(0.5, 2.0, size=channels)
    for layer in layers:
        layer.build((None,) * (rank - 1) + (channels,))
        if layer.gamma is not None:
            layer.gamma.assign(gamma)
        if layer.beta is not None:
            layer.beta.assign(beta)
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
    return layers


def _data(shape, dtype="float32"):
    rng = np.random.default_rng(2)
    return tf.cast(rng.normal(1.0, 3.0, shape), dtype), tf.cast(rng.normal(size=shape), dtype)


def _run(layer, x, weights, *, training, jit=False):
    """Output, gradients of sum(output * weights) by input, gamma, beta, then the statistics."""

    @tf.function(jit_compile=jit)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
            total = tf.reduce_sum(tf.cast(y * weights, tf.float32))
        return [y, *tape.gradient(total, [x, *(v.value for v in layer.trainable_variables)])]

    results = [tf.cast(r, tf.float32).numpy() for r in step(x)]
    return results + [v.numpy() for v in layer.non_trainable_variables]


def _assert_close(ours, theirs, tolerance):
    assert len(ours) == len(theirs) >= 4
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


def _op_types(layer, x, **kwargs):
    function = tf.function(lambda x: layer(x, **kwargs)).get_concrete_function(x)
    return {op.type for op in function.graph.get_operations()}


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("shape", _SHAPES, ids=str)
def test_training_equals_keras(shape, jit):
    x, weights = _data(shape)
    ours, theirs = _pair(shape[-1], len(shape))
    _assert_close(
        _run(ours, x, weights, training=True, jit=jit),
        _run(theirs, x, weights, training=True, jit=jit),
        tolerance=1e-5,
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 1e-2), ("float16", 1e-3)])
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_training_equals_keras_in_mixed_precision(dtype, tolerance, jit):
    shape = (32, 6, 6, 8)
    x, weights = _data(shape, dtype)
    ours, theirs = _pair(8, 4, dtype=f"mixed_{dtype}")
    assert "FusedBatchNormV3" in _op_types(ours, x, training=True)
    assert {v.dtype for v in ours.variables} == {"float32"}
    assert ours(x).dtype == dtype
    a = _run(ours, x, weights, training=True, jit=jit)
    b = _run(theirs, x, weights, training=True, jit=jit)
    _assert_close(a, b, tolerance)
    # The statistics are float32, whatever the inputs are.
    for mine, keras_own in zip(a[-2:], b[-2:], strict=True):
        np.testing.assert_allclose(mine, keras_own, rtol=1e-4)


@pytest.mark.parametrize("center, scale", [(False, True), (True, False), (False, False)])
def test_without_scale_or_shift(center, scale):
    x, weights = _data((8, 4, 4, 3))
    ours, theirs = _pair(3, 4, center=center, scale=scale)
    for a, b in zip(
        _run(ours, x, weights, training=True),
        _run(theirs, x, weights, training=True),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_statistics_by_hand():
    layer = BatchNormalization()
    x = np.array([[[[1.0]], [[2.0]]], [[[3.0]], [[6.0]]]], dtype="float32")
    layer(x, training=True)
    # Mean 3 and biased variance 3.5 (the unbiased one is 14/3), a tenth of the way from 0 and 1.
    np.testing.assert_allclose(layer.moving_mean.numpy(), [0.3], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance.numpy(), [0.9 + 0.35], rtol=1e-6)


@pytest.mark.parametrize("shape", _SHAPES, ids=str)
def test_inference_equals_keras(shape):
    x, weights = _data(shape)
    ours, theirs = _pair(shape[-1], len(shape))
    a = _run(ours, x, weights, training=False)
    b = _run(theirs, x, weights, training=False)
    for mine, keras_own in zip(a, b, strict=True):
        np.testing.assert_array_equal(mine, keras_own)


@pytest.mark.parametrize("shape", [(4, 3, 3, 2), (4, 2)], ids=str)
def test_training_uses_the_kernel(shape):
    x, _ = _data(shape)
    assert "FusedBatchNormV3" in _op_types(BatchNormalization(), x, training=True)


@pytest.mark.parametrize(
    "options, shape",
    [
        ({"fused": False}, (4, 3, 3, 2)),
        ({"dtype": "float64"}, (4, 3, 3, 2)),
        ({"axis": 1}, (4, 3, 3, 2)),
        ({"renorm": True}, (4, 3, 3, 2)),
        ({"synchronized": True}, (4, 3, 3, 2)),
        ({"trainable": False}, (4, 3, 3, 2)),
        ({}, (4, 3, 2)),
    ],
    ids=str,
)
@pytest.mark.few(2)
def test_the_rest_is_left_to_keras(options, shape):
    dtype = options.get("dtype", "float32")
    x, _ = _data(shape, dtype)
    ours = BatchNormalization(**options)
    assert "FusedBatchNormV3" not in _op_types(ours, x, training=True)
    keras_options = {key: value for key, value in options.items() if key != "fused"}
    theirs = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **keras_options)
    np.testing.assert_array_equal(ours(x, training=True), theirs(x, training=True))
    for mine, keras_own in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_allclose(mine.numpy(), keras_own.numpy(), rtol=1e-6)


def test_a_mask_is_not_ignored():
    x, _ = _data((6, 5, 5, 2))
    mask = tf.constant(np.random.default_rng(3).uniform(size=(6, 5, 5)) < 0.5)
    ours, theirs = _pair(2, 4)
    a = ours(x, training=True, mask=mask)
    np.testing.assert_allclose(a, theirs(x, training=True, mask=mask), atol=1e-6)
    assert np.abs(a - ours(x, training=True)).max() > 0.1


def test_momentum_is_read_at_call_time():
    layer = BatchNormalization()
    x, _ = _data((64, 4, 4, 2))
    layer(x, training=True)
    layer.momentum = 0.0
    tf.function(layer)(x, training=True)
    np.testing.assert_allclose(layer.moving_mean, np.mean(x, (0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, np.var(x, (0, 1, 2)), rtol=1e-5)


def test_config_round_trip():
    layer = BatchNormalization(momentum=0.7, epsilon=2e-3, fused=False, center=False, name="b")
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(copy) is BatchNormalization
    assert copy.get_config() == layer.get_config()
    assert (copy.momentum, copy.epsilon, copy.fused, copy.center) == (0.7, 2e-3, False, False)
    assert (BatchNormalization().momentum, BatchNormalization().epsilon) == (0.9, 1e-5)


def _small_model(layer):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, kernel_initializer=keras.initializers.GlorotUniform(seed=1)),
            layer,
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(seed=2)),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return model


def _fit(layer, strategy=None):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(40, 6, 6, 2)).astype("float32")
    y = rng.integers(0, 3, 40)
    if strategy is None:
        model = _small_model(layer())
    else:
        with strategy.scope():
            model = _small_model(layer())
    # A last batch of another size: its statistics need its own count.
    model.fit(x, y, batch_size=24, epochs=2, shuffle=False, verbose=0)
    return [v.numpy() for v in model.variables]


def _keras_layer(**kwargs):
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **kwargs)


def test_fit_equals_keras():
    for ours, theirs in zip(_fit(BatchNormalization), _fit(_keras_layer), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_fit_on_two_devices_equals_keras(two_cpus):
    results = [_fit(make, two_cpus) for make in (BatchNormalization, _keras_layer)]
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_synchronized_takes_the_statistics_of_both_devices(two_cpus):
    halves = [np.full((4, 2, 2, 1), value, "float32") for value in (0.0, 2.0)]
    with two_cpus.scope():
        layer = BatchNormalization(synchronized=True)
        layer.build((None, 2, 2, 1))
    x = two_cpus.experimental_distribute_values_from_function(
        lambda context: tf.constant(halves[context.replica_id_in_sync_group])
    )
    two_cpus.run(tf.function(lambda x: layer(x, training=True)), args=(x,))
    # Over both devices the mean is 1 and the variance 1; each device alone has variance 0.
    np.testing.assert_allclose(layer.moving_mean.numpy(), [0.1], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance.numpy(), [1.0], rtol=1e-6)


@pytest.mark.parametrize("fused, training", [(True, False), (False, True)])
def test_second_derivatives_where_promised(fused, training):
    layer = BatchNormalization(fused=fused)
    x = tf.constant([[1.0], [2.0], [4.0], [3.0]])
    layer.build(x.shape)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            loss = tf.reduce_sum(layer(x, training=training) ** 4)
        gradient = inner.gradient(loss, layer.gamma.value)
    second = outer.gradient(gradient, layer.gamma.value).numpy()
    # The loss is gamma^4 sum(xhat^4) at gamma = 1, so its second derivative is 12 times itself.
    np.testing.assert_allclose(second, [12.0 * loss.numpy()], rtol=1e-5)
