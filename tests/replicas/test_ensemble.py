"""The ensemble of replicas: outputs averaged, against NumPy."""

import keras
import numpy as np
import pytest

import esgd_tf
from esgd_tf.replicas import ReplicatedSGD, ensemble_outputs
from esgd_tf.replicas.ensemble import Ensemble
from tests.optimizers.helpers import assert_equal, data
from tests.replicas import helpers


def outputs(scale=2.0):
    return np.random.default_rng(6).normal(size=(3, 5, 4)) * scale


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def logistic(z):
    return 1 / (1 + np.exp(-z))


def test_logits_are_averaged_as_probabilities():
    z = outputs()
    found = ensemble_outputs(list(z), "logits").numpy()
    np.testing.assert_allclose(np.exp(found), softmax(z).mean(axis=0), rtol=1e-12)


def test_binary_logits_are_averaged_as_probabilities():
    z = outputs()
    found = ensemble_outputs(list(z), "binary_logits").numpy()
    np.testing.assert_allclose(logistic(found), logistic(z).mean(axis=0), rtol=1e-12)


def test_outputs_are_averaged_as_they_are():
    z = outputs()
    np.testing.assert_allclose(ensemble_outputs(list(z), "mean"), z.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("kind", ["logits", "binary_logits"])
def test_logits_do_not_saturate(kind):
    z = np.array([[[300.0, -300.0]], [[200.0, -400.0]]], np.float32)
    found = ensemble_outputs(list(z), kind).numpy()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(
        found, [[0.0, -600.0]] if kind == "logits" else [[200 + np.log(2), -300 - np.log(2)]]
    )


def test_one_member_is_itself():
    z = outputs()[:1]
    for kind in ("logits", "binary_logits"):
        found = ensemble_outputs(list(z), kind).numpy()
        np.testing.assert_allclose(found - found[..., :1], z[0] - z[0][..., :1], atol=1e-12)


def test_other_kinds_are_refused():
    words = "`kind` must be logits, binary_logits or mean; got 'votes'"
    with pytest.raises(ValueError, match=words):
        ensemble_outputs(list(outputs()), "votes")
    with pytest.raises(ValueError, match=words):
        Ensemble([helpers.network(0)], "votes")
    with pytest.raises(ValueError, match="An ensemble needs at least one member"):
        Ensemble([])


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ("mse", "mean"),
        ("sparse_categorical_crossentropy", "mean"),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), "logits"),
        (keras.losses.CategoricalCrossentropy(from_logits=True), "logits"),
        (keras.losses.CategoricalCrossentropy(), "mean"),
        (keras.losses.BinaryCrossentropy(from_logits=True), "binary_logits"),
        (keras.losses.BinaryFocalCrossentropy(from_logits=True), "binary_logits"),
        (keras.losses.BinaryCrossentropy(), "mean"),
    ],
)
def test_the_loss_tells_how(loss, kind):
    model = helpers.replicas(ReplicatedSGD(0.1), loss=loss)
    assert model.ensemble().kind == kind


def test_an_ensemble_of_replicas_is_saved_and_loaded(tmp_path):
    x, _ = data()
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model = helpers.replicas(ReplicatedSGD(0.1), loss=loss)
    ensemble = model.ensemble()
    own = np.stack([member.predict(x, verbose=0) for member in model.members])
    found = ensemble.predict(x, verbose=0)
    np.testing.assert_allclose(np.exp(found), softmax(own).mean(axis=0), rtol=1e-5)
    # It is a copy, which later training leaves alone.
    model.members[0].set_weights([0 * w for w in model.members[0].get_weights()])
    assert_equal([ensemble.predict(x, verbose=0)], [found])
    ensemble.save(tmp_path / "ensemble.keras")
    loaded = esgd_tf.load_model(tmp_path / "ensemble.keras")
    assert loaded.kind == "logits"
    assert_equal(loaded.get_weights(), ensemble.get_weights())
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), found)
