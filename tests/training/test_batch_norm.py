"""Re-estimation of BatchNormalization statistics against the definition."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf import AnchorCallback, EntropySGD, reestimate_batch_norm
from esgd_tf.training.batch_norm import BatchNormReestimation
from tests.tracing import build_before_fit


def build(dropout=0.0):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dropout(dropout, seed=1),
            keras.layers.Dense(5),
            keras.layers.BatchNormalization(),
            keras.layers.GaussianNoise(dropout, seed=2),
            keras.layers.Activation("relu"),
            esgd_tf.models.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    )


def batches(sizes=(7, 7, 3)):
    rng = np.random.default_rng(1)
    return [(3 + 2 * rng.normal(size=(n, 4)).astype("float32"),) for n in sizes]


def test_first_layer_has_the_mean_and_variance_of_all_the_data():
    model, data = build(dropout=0.5), batches()
    assert reestimate_batch_norm(model, data) == 17
    everything = np.concatenate([x for (x,) in data]).astype("float64")
    dense, norm = model.layers[1], model.layers[2]
    features = everything @ dense.kernel.numpy() + dense.bias.numpy()
    np.testing.assert_allclose(norm.moving_mean, features.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, features.var(0), rtol=1e-4)


def test_later_layers_see_inputs_normalised_per_batch():
    model, data = build(), batches()
    reestimate_batch_norm(model, data)
    dense, first = model.layers[1], model.layers[2]
    hidden = []
    for (x,) in data:
        features = x @ dense.kernel.numpy() + dense.bias.numpy()
        normal = (features - features.mean(0)) / np.sqrt(features.var(0) + first.epsilon)
        hidden.append(np.maximum(normal, 0))
    hidden = np.concatenate(hidden)
    second = model.layers[5]
    np.testing.assert_allclose(second.moving_mean, hidden.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second.moving_variance, hidden.var(0), rtol=1e-4, atol=1e-5)


def test_nothing_else_changes():
    model = build(dropout=0.5)
    before = [v.numpy() for v in model.trainable_variables]
    random_states = [v.numpy() for v in model.variables if "seed" in v.path]
    assert random_states
    attributes = [(layer.rate,) for layer in model.layers if hasattr(layer, "rate")]
    reestimate_batch_norm(model, batches())
    assert all(
        np.array_equal(a, v.numpy()) for a, v in zip(before, model.trainable_variables, strict=True)
    )
    after = [v.numpy() for v in model.variables if "seed" in v.path]
    assert all(np.array_equal(a, b) for a, b in zip(random_states, after, strict=True))
    assert attributes == [(layer.rate,) for layer in model.layers if hasattr(layer, "rate")]
    assert model.layers[2].momentum == 0.99
    # Dropout is on again: two training passes differ.
    x = batches()[0][0]
    assert not np.allclose(model(x, training=True), model(x, training=True))


def test_the_traced_function_serves_again_after_the_weights_have_changed():
    model, data = build(), batches(sizes=(6, 6))
    again = BatchNormReestimation(model)
    again(data)
    model.layers[1].bias.assign_add(tf.ones(5))
    first = model.layers[2].moving_mean.numpy()
    again(data)
    np.testing.assert_allclose(model.layers[2].moving_mean, first + 1, rtol=1e-5)


def test_no_layers_frozen_layers_and_no_data():
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert reestimate_batch_norm(plain, batches()) == 0
    model = build()
    model.layers[2].trainable = False
    reestimate_batch_norm(model, batches())
    assert np.array_equal(model.layers[2].moving_mean, np.zeros(5))
    assert not np.array_equal(model.layers[5].moving_mean, np.zeros(5))
    with pytest.raises(ValueError, match="no batch"):
        reestimate_batch_norm(build(), [])


def test_on_two_devices(two_cpus):
    with two_cpus.scope():
        mirrored = build()
    single = build()
    reestimate_batch_norm(mirrored, batches())
    reestimate_batch_norm(single, batches())
    for a, b in zip(mirrored.non_trainable_variables, single.non_trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)


def test_the_callback_estimates_at_the_anchor_before_validation():
    model = build(dropout=0.3)
    model.compile(EntropySGD(langevin_steps=5, seed=1), loss="mse")
    x = np.concatenate([x for (x,) in batches((8, 8, 8))])
    y = np.zeros((24, 2), "float32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    build_before_fit(model, x, y)
    history = model.fit(
        x, y, batch_size=8, shuffle=False, verbose=0, validation_data=(x, y),
        callbacks=[AnchorCallback(batch_norm_data=data)],
    )  # fmt: skip
    validated = history.history["val_loss"][-1]
    statistics = [v.numpy() for v in model.non_trainable_variables]
    assert reestimate_batch_norm(model, data) == 24  # `fit` left the model at the anchor
    for a, b in zip(statistics, model.non_trainable_variables, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-6)
    assert model.evaluate(x, y, batch_size=8, verbose=0) == pytest.approx(validated, rel=1e-5)
