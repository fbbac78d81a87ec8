"""SWA's average, where it is evaluated, and its learning rate."""

import keras
import numpy as np
import pytest

import esgd_tf
from tests.baselines import rivals
from tests.optimizers import helpers

# Ten steps with start 3 and every 2: the weights after steps 3, 5, 7 and 9 are averaged.
AVERAGED = [2, 4, 6, 8]


def test_the_average_is_that_of_the_weights_it_has_seen(float64):
    held, model = rivals.recorded(rivals.MAKERS["SWA"]())
    plain, _ = rivals.recorded(rivals.sgd())
    for ours, keras_own in zip(held, plain, strict=True):
        helpers.assert_equal(ours, keras_own)
    expected = [np.mean([held[k][i] for k in AVERAGED], axis=0) for i in range(2)]
    # At the end of `fit` the model is left at the average.
    helpers.assert_close(model.get_weights(), expected, atol=1e-14)
    helpers.assert_close(helpers.numpy(model.optimizer.anchors()), expected, atol=1e-14)
    assert model.optimizer.averaged == 4
    with esgd_tf.evaluate_at(model, "langevin"):
        helpers.assert_equal(model.get_weights(), held[-1])


def test_on_two_devices(float64, two_cpus):
    expected = rivals.recorded(rivals.MAKERS["SWA"]())[1].get_weights()
    with two_cpus.scope():
        tested = rivals.recorded(rivals.MAKERS["SWA"]())[1].get_weights()
    helpers.assert_close(tested, expected, atol=1e-12)


def test_before_the_first_average_there_is_nothing_to_go_to():
    model = rivals.network(esgd_tf.SWA(rivals.sgd(), start=100, every=1), run_eagerly=True)
    helpers.train_on_batches(model, 3)
    before = model.get_weights()
    assert model.optimizer.held is None
    with esgd_tf.evaluate_at(model):
        helpers.assert_equal(model.get_weights(), before)


def test_a_weight_that_was_replaced_at_the_average_starts_anew(float64):
    """Loaded at the end of `fit`, where the model stands at the average, weights stay."""
    model = rivals.network(esgd_tf.SWA(rivals.sgd(), start=1, every=1), run_eagerly=True)
    helpers.fit(model)
    loaded = [w + 1.0 for w in model.get_weights()]
    model.set_weights(loaded)
    record = helpers.Record()
    helpers.fit(model, callbacks=[record])
    assert not np.allclose(record.weights[0][0], loaded[0], atol=1e-12)  # it has trained,
    assert np.abs(record.weights[0][0] - loaded[0]).max() < 0.5  # from there,
    expected = [np.mean([w[i] for w in record.weights], axis=0) for i in range(2)]
    helpers.assert_close(model.get_weights(), expected, atol=1e-13)  # and begun a new average


def test_the_learning_rate_of_the_paper():
    schedule = esgd_tf.SWASchedule(0.1, 0.02, start=100)
    rates = [float(schedule(step)) for step in (0, 50, 70, 90, 100, 500)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.06, 0.02, 0.02, 0.02], rtol=1e-6)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert again.get_config() == schedule.get_config()


def test_another_average_is_refused():
    with pytest.raises(ValueError, match="`use_ema` is another average"):
        esgd_tf.SWA("sgd", 1, 1, use_ema=True)
