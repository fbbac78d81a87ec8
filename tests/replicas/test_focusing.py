"""How the coupling grows, and how its start is measured."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.replicas import ElasticAveraging, Focusing, OwnMinibatches, Parle, ReplicatedSGD
from esgd_tf.replicas.focusing import CappedGrowth, CouplingSchedule
from tests.optimizers.helpers import data
from tests.replicas import helpers

LAWS = {
    "exponential": lambda u, growth: growth**u,
    "linear": lambda u, growth: 1 + (growth - 1) * u,
    "cosine": lambda u, growth: growth * (1 - math.cos(math.pi * u)) / 2,
}


def values(schedule, steps, gamma_zero=0.0):
    return [float(schedule(tf.constant(step, tf.int64), gamma_zero)) for step in steps]


@pytest.mark.parametrize("kind", LAWS)
def test_laws_go_from_their_start_to_all_their_growth(kind):
    schedule = Focusing(11, gamma=0.5, growth=100.0, kind=kind)
    expected = [0.5 * LAWS[kind](step / 10, 100.0) for step in range(11)]
    found = values(schedule, range(11))
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    assert found[0] == (0.0 if kind == "cosine" else 0.5)
    np.testing.assert_allclose(found[-1], 50.0)
    # And there they stay.
    assert values(schedule, [11, 1000]) == [found[-1]] * 2


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("steps", [12, 11, 9])
def test_once_per_epoch_all_steps_of_the_last_have_the_full_growth(kind, steps):
    """Three epochs of four steps, the last perhaps cut short."""
    schedule = Focusing(steps, gamma=2.0, growth=9.0, kind=kind, interval=4)
    expected = [2.0 * LAWS[kind](step // 4 / 2, 9.0) for step in range(steps)]
    np.testing.assert_allclose(values(schedule, range(steps)), expected, rtol=1e-13, atol=1e-15)


def test_one_step_has_no_time_to_grow():
    assert values(Focusing(1, gamma=3.0), [0, 1]) == [3.0, 3.0e4]
    assert values(Focusing(4, gamma=3.0, interval=9), [0, 3]) == [3.0, 3.0]


def test_what_was_measured_counts_only_where_nothing_was_given():
    assert values(Focusing(2, growth=10.0), [0, 1], 0.75) == [0.75, 7.5]
    assert values(Focusing(2, gamma=1.0, growth=10.0), [0, 1], 0.75) == [1.0, 10.0]
    assert Focusing(2).is_measured
    assert not Focusing(2, gamma=0.0).is_measured
    assert Focusing(2, gamma=1.0)(0, 0.0).dtype == tf.float64


def test_capped_growth_counts_updates():
    schedule = CappedGrowth(0.5, 1.0, 3.0, interval=2)
    assert values(schedule, range(7)) == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0]


def test_schedules_are_rebuilt_from_their_config():
    schedule = Focusing(7, None, 12.0, "linear", 3)
    config = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(config)
    assert repr(again) == repr(schedule)
    assert repr(schedule).startswith(
        "Focusing(steps=7, gamma=None, growth=12.0, kind='linear', interval=3"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "`steps` must be an integer of at least 1; got 0"),
        ({"steps": 9, "gamma": -1}, "`gamma` must be a finite number, at least 0"),
        ({"steps": 9, "growth": 0.5}, "`growth` must be a finite number, at least 1; got 0.5"),
        ({"steps": 9, "kind": "sudden"}, "`kind` must be exponential, linear or cosine; got"),
        ({"steps": 9, "interval": 0}, "`interval` must be an integer of at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Focusing(**options)


def test_the_base_class_has_no_law():
    with pytest.raises(NotImplementedError):
        CouplingSchedule()(0, 0.0)


# ---- the measurement ----------------------------------------------------------------------------


def measured_by_hand(model, parts):
    """Return mean loss / mean of |w - c|^2 / 2, of parts [a] of the data, at the weights now."""
    held = [member.get_weights() for member in model.members]
    losses = [
        np.mean((np.tanh(x @ kernel + bias) - y) ** 2)
        for (kernel, bias), (x, y) in zip(held, parts, strict=True)
    ]
    center = [np.mean(of_all, axis=0) for of_all in zip(*held, strict=True)]
    halves = [
        sum(0.5 * np.sum((w - c) ** 2) for w, c in zip(own, center, strict=True)) for own in held
    ]
    return np.mean(losses) / np.mean(halves)


@pytest.mark.slow
def test_gamma_is_measured_where_training_starts_and_never_again():
    x, y = data()
    # Replica a sees a part of its own, and of its 12 minibatches the last two come too late.
    order = [np.arange(a, 36, 3) for a in range(3)]
    model = helpers.replicas(
        ReplicatedSGD(Focusing(24, growth=5.0)), count=3, weighted_metrics=["mae"]
    )
    parts = [(x[own[:10]], y[own[:10]]) for own in order]
    expected = measured_by_hand(model, parts)
    minibatches = OwnMinibatches(
        lambda a: tf.data.Dataset.from_tensor_slices((x[order[a]], y[order[a]])).batch(1)
    )
    record = helpers.Record(lambda model: float(model.optimizer.gamma))
    assert model.optimizer.gamma_zero == 0.0
    model.fit(minibatches, verbose=0, callbacks=[record])
    np.testing.assert_allclose(model.optimizer.gamma_zero, expected, rtol=1e-6)
    # What is read after a step is in force at the next.
    grown = expected * 5.0 ** (np.arange(1, 13) / 23)
    np.testing.assert_allclose(record.kept, grown, rtol=1e-6)
    before = model.optimizer.gamma_zero
    model.fit(minibatches, epochs=2, initial_epoch=1, verbose=0)
    assert model.optimizer.gamma_zero == before


def test_replicas_at_one_point_have_no_distance_to_measure_by():
    model = helpers.replicas(ReplicatedSGD(Focusing(9)), initialization="same")
    with pytest.raises(ValueError, match="start at one point have no distance to measure gamma_0"):
        helpers.fit(model)


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_loss_that_measures_nothing_is_refused(bad):
    model = helpers.replicas(ReplicatedSGD(Focusing(9)), loss=lambda y, z: 0.0 * z + bad)
    with pytest.raises(ValueError, match=rf"The mean loss at the start is {bad}, which gives no"):
        helpers.fit(model)


def test_single_batches_measure_nothing():
    x, y = data()
    model = helpers.replicas(ReplicatedSGD(Focusing(9)))
    with pytest.raises(ValueError, match="gamma_0 is measured by `fit`: give Focusing a `gamma`"):
        model.train_on_batch(x[:4], y[:4])


def test_a_constant_strength_is_no_schedule():
    model = helpers.replicas(ElasticAveraging(0.3))
    assert float(model.optimizer.gamma) == 0.3


# ---- where it ends ------------------------------------------------------------------------------

SGD = keras.optimizers.SGD


def held(optimizer, rule=None, **options):
    """Return replicas without a loss of their own: all that moves them is the coupling."""
    rule = rule or ReplicatedSGD(Focusing(20, gamma=1e-2, growth=1e9))
    return helpers.replicas(rule, optimizer, loss=lambda y, z: 0.0 * z, run_eagerly=True, **options)


@pytest.mark.filterwarnings("ignore:The coupling is held")
@pytest.mark.parametrize(
    ("optimizer", "every", "bound"),
    [
        (lambda: SGD(0.2), 1, 1.0),
        (lambda: SGD(0.2), 2, 1.0),
        (lambda: SGD(0.2, momentum=0.9), 1, 1.0),
        (lambda: SGD(0.2, momentum=0.9, nesterov=True), 1, 1.9 / 2.8),
        (lambda: helpers.entropy(outer_momentum=0.5, outer_nesterov=True), 1, 1.5 / 2),
    ],
    ids=["sgd", "every", "momentum", "nesterov", "entropy"],
)
@pytest.mark.few(1)
@pytest.mark.slow
def test_growth_ends_where_a_step_would_overshoot_the_center(optimizer, every, bound):
    model = held(optimizer(), ReplicatedSGD(Focusing(20, gamma=1e-2, growth=1e9), every=every))
    before = model.distances().max()
    helpers.fit(model, epochs=8)
    rate = float(model.optimizer.learning_rate)
    np.testing.assert_allclose(model.optimizer.last_gamma * rate * every, bound, rtol=1e-6)
    np.testing.assert_allclose(float(model.optimizer.gamma), model.optimizer.last_gamma)
    assert model.distances().max() < 0.2 * before


@pytest.mark.filterwarnings("ignore:The coupling is held")
def test_the_end_of_growth_follows_the_learning_rate():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.5, 0.1])
    model = held(SGD(schedule), ReplicatedSGD(Focusing(1, gamma=1e3, growth=1.0)))
    record = helpers.Record(lambda model: model.optimizer.last_gamma)
    helpers.fit(model, callbacks=[record])
    np.testing.assert_allclose(record.kept, [2, 2, 2, 10, 10], rtol=1e-6)
    model = held(SGD(0.0), ReplicatedSGD(Focusing(1, gamma=1e3, growth=1.0)))
    helpers.fit(model)
    assert np.isfinite(helpers.weights(model)[0]).all()


@pytest.mark.slow
def test_what_is_held_is_said_once():
    model = held(SGD(0.2))
    with pytest.warns(UserWarning, match="held at 5 where its schedule says 183: .*`maximum`") as w:
        helpers.fit(model, epochs=6)
    assert sum("is held" in str(one.message) for one in w) == 1


def test_a_maximum_that_was_given_and_normalised_gradients_are_left_alone():
    rule = ReplicatedSGD(Focusing(5, gamma=1.0, growth=8.0, maximum=7.0))
    model = held(SGD(0.2), rule)
    helpers.fit(model)
    assert model.optimizer.last_gamma == 7.0
    model = held(keras.optimizers.Adam(0.01), ReplicatedSGD(Focusing(5, gamma=1.0, growth=1e6)))
    helpers.fit(model)
    np.testing.assert_allclose(model.optimizer.last_gamma, 1e6)


@pytest.mark.parametrize(
    ("rule", "optimizer", "most"),
    [
        (ReplicatedSGD(10.0), SGD(0.2), "10"),
        (ReplicatedSGD(20.0), SGD(0.2, momentum=0.9), "19"),
        (ReplicatedSGD(5.0, every=2), SGD(0.2), "5"),
        (ReplicatedSGD(Focusing(5, gamma=7.0, growth=1.0, maximum=7.0)),
         SGD(0.2, momentum=0.9, nesterov=True), "6.79"),
    ],
    ids=["sgd", "momentum", "every", "maximum"],
)  # fmt: skip
def test_a_spring_that_tears_replicas_apart_is_warned_of_before_they_train(rule, optimizer, most):
    x, y = data()
    model = held(optimizer, rule)
    with pytest.warns(UserWarning, match=f"overshoot.*must stay below {most}"):
        model.train_on_batch(x[:8], y[:8])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The coupling is held")
def test_parles_anchors_do_not_fly_apart_either():
    rule = Parle(langevin_steps=1, rho=1.0, scoping=1.0, rho_max=1e6)
    model = held(SGD(0.5), rule)
    before = model.distances().max()
    helpers.fit(model, epochs=6)
    assert model.optimizer.last_gamma == 2.0
    assert model.distances().max() < before
