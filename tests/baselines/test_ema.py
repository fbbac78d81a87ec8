"""EMA is Keras' own average, and the model can stand at it and go on."""

import keras
import numpy as np
import pytest

import esgd_tf
from esgd_tf import _keras
from tests.baselines import rivals
from tests.optimizers import helpers


def test_the_average_is_keras_own():
    held, model = rivals.recorded(rivals.MAKERS["EMA"]())
    plain = keras.optimizers.SGD(0.125, momentum=0.875, use_ema=True, ema_momentum=0.7)
    keras_held, keras_model = rivals.recorded(plain)
    for ours, theirs in zip(held, keras_held, strict=True):
        helpers.assert_equal(ours, theirs)
    # Keras ends `fit` by overwriting the weights with the averages.
    helpers.assert_equal(model.get_weights(), keras_model.get_weights())


def test_by_hand(float64):
    held, model = rivals.recorded(rivals.MAKERS["EMA"](), epochs=1)
    average = held[0]
    for weights in held[1:]:
        average = [0.7 * a + 0.3 * w for a, w in zip(average, weights, strict=True)]
    helpers.assert_close(model.get_weights(), average, atol=1e-14)


@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_two_fits_are_one(skip_nonfinite):
    """Keras' own SGD would go on from the average."""
    once, twice = (
        rivals.network(rivals.MAKERS["EMA"](skip_nonfinite=skip_nonfinite)) for _ in range(2)
    )
    helpers.fit(once, epochs=2, callbacks=[esgd_tf.AnchorCallback()])
    for _ in range(2):
        helpers.fit(twice, callbacks=[esgd_tf.AnchorCallback()])
    helpers.assert_equal(once.get_weights(), twice.get_weights())
    averages = [helpers.numpy(_keras.moving_averages(m.optimizer)) for m in (once, twice)]
    helpers.assert_equal(*averages)


def test_evaluation_at_the_average_and_back():
    model = rivals.network(rivals.MAKERS["EMA"](), run_eagerly=True)
    helpers.train_on_batches(model, 3)
    trained = model.get_weights()
    average = helpers.numpy(_keras.moving_averages(model.optimizer))
    with esgd_tf.evaluate_at(model):
        helpers.assert_equal(model.get_weights(), average)
    helpers.assert_equal(model.get_weights(), trained)
    assert np.abs(trained[0] - average[0]).max() > 1e-3


@pytest.mark.parametrize("option", ["use_ema", "ema_momentum", "ema_overwrite_frequency"])
def test_keras_arguments_of_it_are_refused(option):
    with pytest.raises(ValueError, match=f"`{option}` is what EMA sets itself"):
        esgd_tf.EMA("sgd", **{option: 1})
