"""A checklist for every public optimizer, and what EntropySGD and EntropyAdam are made of."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf.optimizers import (
    EntropyAdam,
    EntropySGD,
    ExponentialScope,
    LinearScope,
    LocalEntropy,
)
from tests.optimizers import helpers


def local_entropy(learning_rate=0.5, **options):
    return LocalEntropy(keras.optimizers.Adagrad(float(learning_rate)), **options)


MAKERS = {"EntropySGD": EntropySGD, "EntropyAdam": EntropyAdam, "LocalEntropy": local_entropy}
every_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())

ODD = {
    "langevin_steps": 7,
    "langevin_learning_rate": 0.3,
    "gamma": 0.03,
    "scoping": 0.02,
    "noise": 0.004,
    "averaging": 0.5,
    "momentum": 0.6,
    "nesterov": False,
    "weight_decay": 0.007,
    "gamma_in_outer_step": True,
    "seed": 11,
    "statistics": True,
    "name": "odd",
    "clipnorm": 3.0,
    "use_ema": True,
    "ema_momentum": 0.8,
    "ema_overwrite_frequency": 4,
    "loss_scale_factor": 2.0,
    "gradient_accumulation_steps": 3,
}
DEFAULTS = {
    "langevin_learning_rate": 0.1,
    "gamma": 1e-4,
    "scoping": 1e-3,
    "noise": 1e-4,
    "averaging": 0.75,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 0.0,
    "gamma_in_outer_step": False,
    "seed": None,
    "statistics": False,
}


@every_optimizer
@pytest.mark.parametrize("options", [{}, ODD], ids=["defaults", "odd"])
def test_config_round_trip(make, options):
    optimizer = make(0.25, **options)
    config = optimizer.get_config()
    for name, value in (DEFAULTS | options).items():
        assert config[name] == value
    again = type(optimizer).from_config(config)
    assert again.get_config() == config
    # Keras' own way, through JSON.
    text = json.dumps(keras.optimizers.serialize(optimizer))
    restored = keras.optimizers.deserialize(json.loads(text))
    assert type(restored) is type(optimizer)
    assert restored.get_config() == config
    assert float(restored.learning_rate) == 0.25


@pytest.mark.few(1)
@every_optimizer
def test_restored_optimizer_takes_the_same_steps(make, float64):
    options = ODD | {"gradient_accumulation_steps": None, "langevin_steps": 2}
    optimizer = make(0.25, **options)
    restored = type(optimizer).from_config(optimizer.get_config())
    weights = helpers.start_weights()
    helpers.assert_equal(
        helpers.run(optimizer, weights, 5)[-1], helpers.run(restored, weights, 5)[-1]
    )


@every_optimizer
def test_one_outer_update_by_hand(make, float64):
    """L = 2, f' = 2 then 1 at x = 1, without noise.

    v = 2.2 (L2: 0.2 x'); x' = 1 - 0.1 * 2.2 = 0.78; mean = 0.75 + 0.25 * 0.78 = 0.945;
    q = 1 + 0.2 * 0.78 = 1.156; v = 0.5 * 2.2 + 1.156 = 2.256; pull = 0.5 (0.78 - 1) = -0.11;
    x' = 0.78 - 0.1 * 2.146 = 0.5654; mean = 0.75 * 0.945 + 0.25 * 0.5654 = 0.8501; r = 0.1499.
    """
    optimizer = make(
        0.5, langevin_steps=2, gamma=0.5, scoping=0.0, noise=0.0, momentum=0.5, nesterov=False,
        weight_decay=0.2,
    )  # fmt: skip
    x = keras.Variable([1.0], dtype="float64")
    optimizer.apply([tf.constant([2.0], tf.float64)], [x])
    np.testing.assert_allclose(x.numpy(), [0.78], atol=1e-15)
    optimizer.apply([tf.constant([1.0], tf.float64)], [x])
    np.testing.assert_allclose(optimizer._loop.means[0].numpy(), [0.8501], atol=1e-15)
    r = 0.1499
    step = {
        "EntropySGD": 0.5 * r,
        # At its first step Keras' epsilon stands for epsilon / sqrt(1 - beta_2) of the paper.
        "EntropyAdam": 0.5 * r / (r + 1e-7 / np.sqrt(0.001)),
        "LocalEntropy": 0.5 * r / np.sqrt(0.1 + r * r + 1e-7),
    }[type(optimizer).__name__]
    np.testing.assert_allclose(x.numpy(), [1.0 - step], atol=1e-5)  # Keras rounds beta_2


@every_optimizer
def test_learning_rate_schedule_survives_the_config(make):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    if make is local_entropy:
        optimizer = LocalEntropy(keras.optimizers.SGD(schedule))
    else:
        optimizer = make(schedule)
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert restored.get_config() == optimizer.get_config()
    restored.outer_optimizer.iterations.assign(10)
    assert float(restored.learning_rate) == pytest.approx(0.45, rel=1e-6)


@every_optimizer
def test_scope_schedule_survives_the_config(make):
    optimizer = make(0.5, gamma=LinearScope(0.2, 0.3))
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert repr(restored.gamma) == "LinearScope(gamma=0.2, scoping=0.3, maximum=None)"
    assert restored.get_config() == optimizer.get_config()


@every_optimizer
def test_a_changed_learning_rate_is_in_the_config(make):
    optimizer = make(0.5)
    optimizer.learning_rate = 0.125
    restored = type(optimizer).from_config(optimizer.get_config())
    assert float(restored.learning_rate) == 0.125


@pytest.mark.few(1)
@every_optimizer
def test_number_and_schedule_of_gamma_agree(make, float64):
    options = {"langevin_steps": 2, "noise": 0.0}
    weights = helpers.start_weights()
    number = helpers.run(make(0.5, gamma=0.5, scoping=0.25, **options), weights, 5)
    schedule = helpers.run(make(0.5, gamma=ExponentialScope(0.5, 0.25), **options), weights, 5)
    helpers.assert_equal(number[-1], schedule[-1])


@pytest.mark.parametrize("make", [EntropySGD, EntropyAdam])
@pytest.mark.few(1)
def test_training_lowers_the_loss(make):
    # With the default hyperparameters, but for the number of steps and Adam's rate.
    model = helpers.network(make(0.1 if make is EntropyAdam else 1.0, langevin_steps=5))
    history = helpers.fit(model, epochs=20).history["loss"]
    assert history[-1] < 0.8 * history[0]


@pytest.mark.parametrize("make", [EntropySGD, EntropyAdam])
@pytest.mark.parametrize(
    "bad", [{"langevin_steps": -1}, {"noise": float("nan")}, {"averaging": 1.5}, {"gamma": -1.0}]
)
def test_bad_values(make, bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}` must be"):
        make(**bad)


def test_entropy_sgd_is_local_entropy_around_sgd(float64):
    options = {"langevin_steps": 3, "noise": 0.01, "seed": 3, "gamma": 0.2}
    weights = helpers.start_weights()
    entropy_sgd = EntropySGD(0.6, outer_momentum=0.5, outer_nesterov=True, **options)
    outer = keras.optimizers.SGD(0.6, momentum=0.5, nesterov=True)
    helpers.assert_equal(
        helpers.run(entropy_sgd, weights, 8)[-1],
        helpers.run(LocalEntropy(outer, **options), weights, 8)[-1],
    )
    config = entropy_sgd.get_config()
    assert type(entropy_sgd).from_config(config).get_config() == config
    assert (config["outer_momentum"], config["outer_nesterov"]) == (0.5, True)
    assert "outer_optimizer" not in config


def test_entropy_adam_is_local_entropy_around_adam(float64):
    options = {"langevin_steps": 3, "noise": 0.01, "seed": 3, "gamma": 0.2}
    weights = helpers.start_weights()
    moments = {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3}
    entropy_adam = EntropyAdam(0.05, **moments, **options)
    outer = keras.optimizers.Adam(0.05, **moments)
    helpers.assert_equal(
        helpers.run(entropy_adam, weights, 8)[-1],
        helpers.run(LocalEntropy(outer, **options), weights, 8)[-1],
    )
    config = entropy_adam.get_config()
    assert type(entropy_adam).from_config(config).get_config() == config
    assert {name: config[name] for name in moments} == moments


@pytest.mark.parametrize(
    ("make", "plain"),
    [
        (lambda: EntropySGD(1, langevin_steps=0), lambda: keras.optimizers.SGD(1.0)),
        (lambda: EntropyAdam(langevin_steps=0), lambda: keras.optimizers.Adam(0.01)),
        (
            lambda: EntropySGD(0.1, 0, outer_momentum=0.9, outer_nesterov=True),
            lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        ),
    ],
)
def test_without_langevin_steps(make, plain):
    weights = helpers.start_weights("float32")
    helpers.assert_equal(helpers.run(make(), weights, 5)[-1], helpers.run(plain(), weights, 5)[-1])


def test_defaults_of_the_outer_loops():
    sgd, adam = EntropySGD(), EntropyAdam()
    assert (sgd.langevin_steps, float(sgd.learning_rate)) == (20, 1.0)
    assert (adam.langevin_steps, float(adam.learning_rate)) == (5, pytest.approx(0.01))
    assert (sgd.name, adam.name) == ("entropy_sgd", "entropy_adam")
    assert sgd.outer_optimizer.momentum == 0.0


def test_integer_learning_rates_are_taken():
    assert float(EntropySGD(1).learning_rate) == 1.0
    assert float(EntropyAdam(2).learning_rate) == 2.0
    for make in (EntropySGD, EntropyAdam):
        with pytest.raises(ValueError, match="learning_rate"):
            make("fast")


def test_public_names():
    assert esgd_tf.EntropySGD is EntropySGD
    assert esgd_tf.EntropyAdam is EntropyAdam
    assert esgd_tf.LocalEntropy is LocalEntropy
