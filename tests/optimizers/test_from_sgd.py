"""An Entropy-SGD made from an SGD: what is carried over, and the limits in which it is the SGD."""

import keras
import numpy as np
import pytest

import esgd_tf
from esgd_tf import AnchorCallback, EntropySGD, from_sgd
from esgd_tf.optimizers.from_sgd import OuterSchedule
from tests.optimizers import helpers

schedules = keras.optimizers.schedules
SCHEDULES = {
    "steps": lambda: schedules.PiecewiseConstantDecay([4, 9], [0.1, 0.02, 0.004]),
    "exponential": lambda: schedules.ExponentialDecay(0.1, 10, 0.5),
    "cosine": lambda: schedules.CosineDecay(0.1, 30),
    "restarts": lambda: schedules.CosineDecayRestarts(0.1, 6),
    "polynomial": lambda: schedules.PolynomialDecay(0.1, 30),
    "inverse": lambda: schedules.InverseTimeDecay(0.1, 10, 0.5),
}


def trained(optimizer, epochs=3):
    model = helpers.network(optimizer)
    helpers.fit(model, epochs, callbacks=[AnchorCallback()])
    return model


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_outer_rate_follows_the_schedule_by_gradient_evaluations(kind):
    schedule = SCHEDULES[kind]()
    made = from_sgd(keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True), 5, gamma=0.03)
    config = made.get_config()
    assert config["langevin_learning_rate"] == pytest.approx(0.1)
    assert (config["momentum"], config["nesterov"], config["gamma"]) == (0.9, True, 0.03)
    rate = schedules.deserialize(config["learning_rate"])
    for t in (0, 1, 2, 4):
        assert float(rate(t)) == pytest.approx(float(schedule(5 * t)) / 0.1, rel=1e-6)


def test_fit_steps_with_these_rates():
    """One weight, loss w: x - mean is what the inner loop has moved, so the step shows the rate."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    schedule = schedules.PiecewiseConstantDecay([3], [0.1, 0.01])
    sgd = keras.optimizers.SGD(schedule)
    options = {"gamma": 0.0, "noise": 0.0, "averaging": 0.0}
    model.compile(from_sgd(sgd, 2, learning_rate=0.5, **options), loss=lambda y, p: p)
    weight = model.trainable_weights[0]
    places = [float(weight.numpy()[0, 0])]
    for _ in range(4):
        model.fit(np.ones((2, 1)), np.zeros((2, 1)), batch_size=1, verbose=0,
                  callbacks=[AnchorCallback()])  # fmt: skip
        places.append(float(weight.numpy()[0, 0]))
    # Two inner steps of 0.1; outer updates 0 and 1 are before the boundary, at 0 and 2 evaluations.
    np.testing.assert_allclose(-np.diff(places), [0.1, 0.1, 0.01, 0.01], rtol=1e-4)


@pytest.mark.parametrize("schedule", [lambda: 0.1, SCHEDULES["cosine"]], ids=["constant", "cosine"])
def test_without_an_inner_loop_it_is_the_sgd(schedule):
    def sgd():
        return keras.optimizers.SGD(schedule(), momentum=0.9, nesterov=True, clipnorm=1.0)

    alone, made = trained(sgd()), trained(from_sgd(sgd(), 0))
    for expected, weight in zip(alone.get_weights(), made.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_what_every_optimizer_has_is_carried_over_and_options_come_first():
    given = {"global_clipnorm": 2.0, "use_ema": True, "ema_momentum": 0.9,
             "gradient_accumulation_steps": 2}  # fmt: skip
    made = from_sgd(keras.optimizers.SGD(0.2, momentum=0.5, weight_decay=0.01, **given), 4)
    config = made.get_config()
    assert {name: config[name] for name in given} == given
    assert config["weight_decay"] == pytest.approx(0.005)
    assert float(made.learning_rate) == 1.0
    assert from_sgd(keras.optimizers.SGD(0.2), momentum=0.3).get_config()["momentum"] == 0.3


def test_weight_decay_shrinks_as_that_of_the_sgd_does():
    """At a constant weight, a gradient of 0 and the velocity's end: lr λ w a step, in both."""
    decoupled = keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.1)
    made = from_sgd(keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.1), 5)
    config = made.get_config()
    l2 = config["weight_decay"] / (1 - config["momentum"])  # Σ momentum^k
    assert l2 * config["langevin_learning_rate"] == pytest.approx(
        float(decoupled.learning_rate) * decoupled.weight_decay
    )


def test_saved_and_loaded(tmp_path):
    model = trained(from_sgd(keras.optimizers.SGD(SCHEDULES["cosine"](), momentum=0.9), 3))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").optimizer
    assert type(loaded) is EntropySGD
    assert float(loaded.learning_rate) == float(model.optimizer.learning_rate) < 1.0
    schedule = OuterSchedule(SCHEDULES["steps"](), 3, 10.0)
    again = OuterSchedule.from_config(schedule.get_config())
    assert [float(again(t)) for t in range(5)] == [float(schedule(t)) for t in range(5)]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: from_sgd(keras.optimizers.Adam()), "must be a keras.optimizers.SGD; got Adam"),
        (lambda: from_sgd(EntropySGD()), "got EntropySGD. For other optimizers use LocalEntropy"),
        (lambda: from_sgd(keras.optimizers.SGD(0.0)), "starts at 0"),
        (lambda: from_sgd(keras.optimizers.SGD(), -1), "`langevin_steps` must be"),
        (lambda: from_sgd(keras.optimizers.SGD(), learning_rate=0), "`learning_rate` must be"),
        (lambda: from_sgd(trained(keras.optimizers.SGD(0.1), 1).optimizer), "is built already"),
    ],
)
def test_what_cannot_be_made(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_warm_up_is_refused():
    warm = schedules.CosineDecay(0.0, 30, warmup_target=0.1, warmup_steps=5)
    with pytest.raises(ValueError, match="as of a warm-up"):
        esgd_tf.from_sgd(keras.optimizers.SGD(warm))
