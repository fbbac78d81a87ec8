"""The laws of gamma, and how the optimizer follows them."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.optimizers import (
    AutoScope,
    BoundedScope,
    ConstantScope,
    ExponentialScope,
    LinearScope,
    LocalEntropy,
    QuadraticScope,
    ScopeSchedule,
)
from tests.optimizers import helpers

# Values at t = 1, 2, 10.
LAWS = [
    (ExponentialScope(0.03, 0.1), [0.03 * 1.1, 0.03 * 1.21, 0.03 * 1.1**10]),
    (LinearScope(0.03, 0.1), [0.03 * 1.1, 0.03 * 1.2, 0.03 * 2.0]),
    (QuadraticScope(0.03, 0.1), [0.03 * 1.1, 0.03 * 1.4, 0.03 * 11.0]),
    (BoundedScope(0.03, 0.1), [0.03 * (1 - math.exp(-0.1 * t)) for t in (1, 2, 10)]),
    (ConstantScope(0.03), [0.03, 0.03, 0.03]),
]


def named(value):
    return type(value).__name__ if isinstance(value, ScopeSchedule) else ""


@pytest.mark.parametrize(("schedule", "expected"), LAWS, ids=named)
def test_law(schedule, expected):
    for t, value in zip((1, 2, 10), expected, strict=True):
        for number in (t, float(t), tf.constant(t), tf.constant(t, tf.float64)):
            scope = schedule(number)
            assert scope.dtype == tf.float64
            assert scope.numpy() == pytest.approx(value, rel=1e-14)


def test_bounded_law_keeps_its_digits_for_small_rates():
    assert BoundedScope(1.0, 1e-12)(1).numpy() == pytest.approx(1e-12, rel=1e-9)


def test_auto_law():
    schedule = AutoScope(outer_updates=20, growth=100.0, start=3)
    assert schedule(3, 0.0).numpy() == 0.0
    assert schedule(3, 0.5).numpy() == pytest.approx(0.5, rel=1e-14)
    assert schedule(13, 0.5).numpy() == pytest.approx(5.0, rel=1e-14)
    assert schedule(23, tf.constant(0.5)).numpy() == pytest.approx(50.0, rel=1e-14)


def test_auto_measurement():
    schedule = AutoScope(outer_updates=20, start=3)

    def measure(t, gamma_zero, loss, squared_distance):
        floats = [tf.constant(v, tf.float32) for v in (gamma_zero, loss, squared_distance)]
        return float(schedule.measure(tf.constant(t), *floats))

    assert measure(2, 0.0, 3.0, 4.0) == 0.0
    assert measure(3, 0.0, 3.0, 4.0) == 1.5
    assert measure(4, 0.25, 3.0, 4.0) == 0.25
    # What cannot be measured now is measured later.
    assert measure(3, 0.0, 3.0, 0.0) == 0.0
    assert measure(3, 0.0, float("nan"), 4.0) == 0.0
    assert measure(3, 0.0, -1.0, 4.0) == 0.0
    assert measure(9, 0.0, 3.0, 4.0) == 1.5


ALL = [schedule for schedule, _ in LAWS] + [AutoScope(7, growth=3.0, start=2)]


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_serialisation(schedule):
    text = json.dumps(keras.saving.serialize_keras_object(schedule))
    restored = keras.saving.deserialize_keras_object(json.loads(text))
    assert type(restored) is type(schedule)
    assert restored.get_config() == schedule.get_config()
    assert repr(restored) == repr(schedule)
    for key, value in schedule.get_config().items():
        assert f"{key}={value!r}" in repr(schedule)
    # And inside an optimizer.
    optimizer = LocalEntropy("sgd", gamma=schedule)
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert repr(restored.gamma) == repr(schedule)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: ExponentialScope(gamma=-1.0), "gamma"),
        (lambda: ExponentialScope(scoping=-1e-3), "scoping"),
        (lambda: LinearScope(gamma=float("nan")), "gamma"),
        (lambda: QuadraticScope(scoping=float("inf")), "scoping"),
        (lambda: BoundedScope(1.0, tau=0.0), "tau"),
        (lambda: BoundedScope(-1.0), "gamma"),
        (lambda: ConstantScope("big"), "gamma"),
        (lambda: ConstantScope(True), "gamma"),
        (lambda: AutoScope(0), "outer_updates"),
        (lambda: AutoScope(2.5), "outer_updates"),
        (lambda: AutoScope(5, growth=0.0), "growth"),
        (lambda: AutoScope(5, start=0), "start"),
    ],
)
def test_bad_values(make, argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be .*; got "):
        make()


@pytest.mark.parametrize("schedule", [schedule for schedule, _ in LAWS], ids=named)
def test_optimizer_follows_the_schedule(float64, schedule):
    options = {"langevin_steps": 3, "noise": 0.0, "momentum": 0.0}
    optimizer = LocalEntropy(keras.optimizers.SGD(1.0), gamma=schedule, **options)
    weights = helpers.start_weights()
    history = helpers.reference(
        keras.optimizers.SGD(1.0), weights, 9, gamma=lambda t: float(schedule(t)), **options
    )
    for held, record in zip(helpers.run(optimizer, weights, 9), history, strict=True):
        helpers.assert_close(held, record["weights"])
    assert float(optimizer.scope) == float(schedule(4))


def test_scope_is_that_of_the_outer_update_under_way(float64):
    optimizer = LocalEntropy(keras.optimizers.SGD(1.0), langevin_steps=2, gamma=1.0, scoping=1.0)
    scopes = [float(optimizer.scope)]
    model = helpers.variables(helpers.start_weights())
    for _ in range(5):
        optimizer.apply([tf.zeros_like(v) for v in model], model)
        scopes.append(float(optimizer.scope))
    assert scopes == [2.0, 2.0, 4.0, 4.0, 8.0, 8.0]


# ---- AutoScope in training ----------------------------------------------------------------------


def auto(**options):
    schedule = AutoScope(outer_updates=2, growth=4.0, start=2)
    options = {"langevin_steps": 3, "noise": 0.0, "momentum": 0.0, "averaging": 0.5} | options
    return LocalEntropy(keras.optimizers.SGD(0.5), gamma=schedule, **options)


def loss_and_gradient(weights):
    loss = sum(float(np.sum(5 * np.cosh(w) - 4)) for w in weights)
    return loss, [5 * np.sinh(w) for w in weights]


@pytest.mark.parametrize("gamma_in_outer_step", [False, True])
def test_auto_scope_by_hand(float64, gamma_in_outer_step):
    optimizer = auto(gamma_in_outer_step=gamma_in_outer_step)
    weights = helpers.start_weights()
    model, measured = helpers.variables(weights), {}

    def gamma(t):
        return 0.0 if t <= 2 else measured["gamma"] * 4.0 ** min((t - 2) / 2, 1.0)

    scopes, losses = [], []
    for _ in range(12):
        loss, grads = loss_and_gradient(helpers.numpy(model))
        optimizer.scale_loss(tf.constant(0.1 * loss))  # lest the pull be capped
        optimizer.apply([tf.constant(g) for g in grads], model)
        losses.append(loss)
        scopes.append(float(optimizer.scope))

    # The reference reaches the measurement before it needs it.
    def outer(x, r):
        return x - 0.5 * r

    def reference(steps):
        return helpers.reference(
            outer,
            weights,
            steps,
            lambda w, step: loss_and_gradient(w)[1],
            gamma=gamma,
            langevin_steps=3,
            averaging=0.5,
        )

    at_measurement = reference(6)[-1]
    squared_distance = sum(
        np.sum((x - state.weights) ** 2)
        for x, state in zip(at_measurement["anchor"], at_measurement["state"], strict=True)
    )
    measured["gamma"] = 0.1 * losses[5] / (0.5 * squared_distance)
    assert scopes[:5] == [0.0] * 5
    # After two outer updates beyond the second the growth is over.
    expected = [measured["gamma"] * factor for factor in [2.0] * 3 + [4.0] * 4]
    assert max(expected) * 0.1 < 1  # not capped
    np.testing.assert_allclose(scopes[5:], expected, rtol=1e-6)  # it is kept in float32
    if not gamma_in_outer_step:
        helpers.assert_close(helpers.numpy(model), reference(12)[-1]["weights"], rtol=1e-5)


def test_auto_scope_with_gamma_in_the_outer_step_moves_before_the_measurement(float64):
    weights = helpers.start_weights()
    optimizer = auto(gamma_in_outer_step=True)
    model = helpers.variables(weights)
    for _ in range(3):
        loss, grads = loss_and_gradient(helpers.numpy(model))
        optimizer.scale_loss(tf.constant(loss))
        optimizer.apply([tf.constant(g) for g in grads], model)
    expected = helpers.reference(
        lambda x, r: x - 0.5 * r,
        weights,
        3,
        lambda w, step: loss_and_gradient(w)[1],
        langevin_steps=3,
        averaging=0.5,
    )
    helpers.assert_close(helpers.numpy(model), expected[-1]["weights"])


def test_auto_scope_needs_the_loss(float64):
    with pytest.raises(ValueError, match="scale_loss"):
        helpers.run(auto(), helpers.start_weights(), 1)


@pytest.mark.slow
def test_auto_scope_under_fit_and_a_strategy(float64, two_cpus):
    def trained(jit_compile=False):
        model = helpers.network(auto(), jit_compile=jit_compile)
        # gamma(t) itself: what acts is capped here.
        record = helpers.Record(lambda optimizer: float(optimizer._scope.now()))
        helpers.fit(model, epochs=3, callbacks=[record])
        return record

    single = trained()
    with two_cpus.scope():
        mirrored = trained()
    assert single.values[:5] == [0.0] * 5
    assert single.values[5] > 0
    assert single.values[8] == pytest.approx(2 * single.values[5], rel=1e-6)
    np.testing.assert_allclose(mirrored.values, single.values, rtol=1e-6)
    for one, two in zip(single.weights, mirrored.weights, strict=True):
        helpers.assert_close(one, two, rtol=1e-5, atol=1e-7)
