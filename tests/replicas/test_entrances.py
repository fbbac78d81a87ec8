"""One state, whichever way one comes in: calls, weights, files, callbacks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf.replicas import ElasticAveraging, OwnMinibatches
from tests.optimizers.helpers import STEPS_PER_EPOCH, assert_close, assert_equal, data
from tests.replicas import helpers


def exported(model, x, path):
    model.export(path / "exported", verbose=False)
    loaded = tf.saved_model.load(path / "exported")  # its variables live as long as this
    return loaded.serve(x)


def saved(model, path):
    model.save(path / "model.keras")
    return esgd_tf.load_model(path / "model.keras")


def weights_saved(model, path):
    model.save_weights(path / "model.weights.h5")
    other = helpers.case("rsgd", run_eagerly=True)
    other.load_weights(path / "model.weights.h5")
    return other


WAYS = {
    "call": lambda model, x, path: model(x),
    "predict": lambda model, x, path: model.predict(x, verbose=0),
    "predict_on_batch": lambda model, x, path: model.predict_on_batch(x),
    "traced": lambda model, x, path: tf.function(model)(x),
    "exported": exported,
    "saved": lambda model, x, path: saved(model, path)(x),
    "weights_saved": lambda model, x, path: weights_saved(model, path)(x),
    "layers": lambda model, x, path: model.layers[-1](x),
}


@pytest.fixture(scope="module")
def trained():
    """Replicas after two epochs, and the outputs of their mean."""
    model = helpers.case("rsgd")
    helpers.fit(model, epochs=2)
    kernel, bias = (np.mean([m.get_weights()[i] for m in model.members], axis=0) for i in range(2))
    return model, np.tanh(data()[0] @ kernel + bias)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.few(1)
def test_every_entrance_leads_to_the_center_of_now(way, trained, tmp_path):
    x, _ = data()
    model, expected = trained
    # As if it had not been looked at since it was made.
    model._center.set_weights([0 * w for w in model._center.get_weights()])
    model.optimizer.center_is_current = False
    np.testing.assert_allclose(WAYS[way](model, x, tmp_path), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_center_is_that_of_now_after_single_batches_and_after_fit():
    """Also for a graph that was made before, which only reads the center's variables."""
    x, y = data()
    model = helpers.case("rsgd", run_eagerly=True)
    traced = tf.function(model)
    traced(x)

    def mean():
        own = helpers.weights(model)
        return [(own[0] + own[2]) / 2, (own[1] + own[3]) / 2]

    def outputs():
        kernel, bias = mean()
        return np.tanh(x @ kernel + bias)

    ways = (
        lambda: np.testing.assert_allclose(model(x), outputs(), rtol=1e-5, atol=1e-6),
        lambda: np.testing.assert_allclose(traced(x), outputs(), rtol=1e-5, atol=1e-6),
        lambda: np.testing.assert_allclose(
            model.test_on_batch(x, y), np.mean((outputs() - y) ** 2), rtol=1e-5
        ),
        lambda: assert_close(model.get_weights()[-2:], mean(), atol=1e-6),
    )
    for look in ways:
        model.train_on_batch(x[:16], y[:16])
        look()
    for look in ways:
        helpers.fit(model, steps_per_epoch=1)
        look()
    fresh = helpers.case("rsgd", run_eagerly=True)
    helpers.fit(fresh)
    assert_close(
        fresh._center.get_weights(),
        [np.mean([m.get_weights()[i] for m in fresh.members], axis=0) for i in range(2)],
        atol=1e-6,
    )


@pytest.mark.parametrize("on", ["one", "two"])
@pytest.mark.few(1)
def test_a_moving_center_is_never_rolled_back(on, two_cpus):
    """Four steps in one call of `fit`, or one by one, with nobody looking in between."""
    x, y = data()
    strategy = two_cpus if on == "two" else None

    def made():
        return helpers.replicas(
            ElasticAveraging(0.2), helpers.nesterov(), strategy=strategy, run_eagerly=True
        )

    parts = [(x[a::2], y[a::2]) for a in range(2)]
    fitted, stepped, pieces = made(), made(), made()
    own = OwnMinibatches(lambda a: tf.data.Dataset.from_tensor_slices(parts[a]).batch(5))
    fitted.fit(own, verbose=0)
    for step in range(4):
        at = slice(5 * step, 5 * step + 5)
        stepped.train_on_batch(*(np.concatenate([p[i][at] for p in parts]) for i in range(2)))
        piece = OwnMinibatches(
            lambda a, at=at: tf.data.Dataset.from_tensors(tuple(p[at] for p in parts[a]))
        )
        pieces.fit(piece, verbose=0)
    for other in (stepped, pieces):
        assert_close(helpers.weights(other), helpers.weights(fitted), atol=1e-6)
        assert_close(other.center().get_weights(), fitted.center().get_weights(), atol=1e-6)


# ---- callbacks of Keras -------------------------------------------------------------------------


class Worse(keras.callbacks.Callback):
    """Make Keras believe that every epoch is worse than the first."""

    def on_epoch_end(self, epoch, logs=None):
        logs["val_loss"] = float(epoch)


@pytest.mark.parametrize(
    "name", ["focused", *(pytest.param(n, marks=pytest.mark.slow) for n in ("easgd", "parle"))]
)
@pytest.mark.slow
def test_early_stopping_restores_replicas_and_center(name):
    """The best epoch ended amid an inner loop, and so does the last one."""
    best = {}

    def keep(epoch, logs):
        if epoch == 0:
            best["center"] = model.center().get_weights()
            best["anchors"] = helpers.anchors(model)

    model = helpers.case(name)
    stopping = keras.callbacks.EarlyStopping(
        "val_loss", mode="min", patience=2, restore_best_weights=True
    )
    look = keras.callbacks.LambdaCallback(on_epoch_end=keep)
    helpers.fit(model, epochs=9, callbacks=[Worse(), look, stopping])
    assert int(model.optimizer.iterations) == 3 * STEPS_PER_EPOCH
    assert_equal(model.center().get_weights(), best["center"])
    assert_equal(helpers.anchors(model), best["anchors"])
    assert_equal(model.get_weights()[-2:], best["center"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("rsgd", marks=pytest.mark.slow), "easgd"])
def test_weights_of_the_whole_can_be_put_back(name, two_cpus):
    for strategy in (None, two_cpus):
        model = helpers.case(name, strategy=strategy, run_eagerly=True)
        helpers.fit(model)
        weights = model.get_weights()
        center, anchors = model.center().get_weights(), helpers.anchors(model)
        helpers.fit(model)
        model.set_weights(weights)
        assert_equal(model.get_weights(), weights)
        assert_equal(model.center().get_weights(), center)
        assert_equal(helpers.anchors(model), anchors)
        # And training goes on from there: a step without gradients only couples.
        model.optimizer.learning_rate = 0.0
        helpers.fit(model, steps_per_epoch=1)
        assert_close(model.center().get_weights(), center, atol=0.2)


def test_weights_that_do_not_fit_are_refused():
    model = helpers.case("rsgd")
    with pytest.raises(ValueError, match="weight"):
        model.set_weights(model.get_weights()[:-1])


@pytest.mark.parametrize("name", ["focused", pytest.param("easgd", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_backup_and_restore_goes_on_as_if_uninterrupted(name, two_cpus, tmp_path):
    """With the minibatches of the second epoch, which `fit` is not told of."""
    trajectory, end, center, _ = helpers.uninterrupted(name)
    strategy = two_cpus if name == "easgd" else None

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)

    helpers.fit(helpers.case(name, strategy=strategy), callbacks=[backup()])
    model = helpers.case(name, strategy=strategy)
    helpers.fit(model, epochs=2, callbacks=[backup()])
    assert int(model.optimizer.iterations) == 2 * STEPS_PER_EPOCH
    tolerance = 0.0 if strategy is None else 1e-6
    assert_close(helpers.weights(model), trajectory[-1], atol=tolerance)
    assert_close(model.center().get_weights(), center, atol=tolerance)
    assert_close(helpers.state(model), end, atol=tolerance)
