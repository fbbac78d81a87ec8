"""The pull toward the anchor can never make training diverge, and what acts is what is reported."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf import AnchorCallback, EntropySGD
from esgd_tf.optimizers import (
    AutoScope,
    BoundedScope,
    ConstantScope,
    ExponentialScope,
    LinearScope,
    QuadraticScope,
)
from tests.optimizers import helpers

OPTIONS = {"langevin_steps": 3, "noise": 0.0, "momentum": 0.0, "nesterov": False, "seed": 1}


@pytest.mark.parametrize("gamma", [9.0, 10.0, 15.0, 25.0, 1e30])
def test_the_pull_ends_at_one(float64, gamma):
    """Up to 1 / eta' = 10 it is the originals'; from there on each step starts at the anchor."""
    start = helpers.start_weights()
    optimizer = EntropySGD(0.5, gamma=ConstantScope(gamma), **OPTIONS)
    held = helpers.run(optimizer, start, 2)
    anchor, x = start, start
    for step, after in enumerate(held):
        gradients = helpers.gradient(x, step)
        pull = min(0.1 * gamma, 1.0)
        x = [w - 0.1 * g - pull * (w - a) for w, g, a in zip(x, gradients, anchor, strict=True)]
        helpers.assert_close(after, x)
    assert float(optimizer.scope) == min(gamma, 10.0)


def test_the_defaults_stay_below_the_cap_in_a_run_of_any_length():
    for optimizer in (EntropySGD(), EntropySGD(gamma=3.0, scoping=1.0)):
        optimizer.outer_optimizer.iterations.assign(10**9)
        helpers.run(optimizer, helpers.start_weights("float32"), 1)
        assert 0 < float(optimizer.scope) * 0.1 < 1
    # A start value beyond is the user's word, and is capped with one.
    assert float(EntropySGD(gamma=50.0).scope) == pytest.approx(10.0)


@pytest.mark.parametrize(
    "schedule",
    [
        ExponentialScope(0.0, 1.0),
        ExponentialScope(1e-4, 1.0),
        ExponentialScope(1e-4, 1.0, maximum=2.0),
        LinearScope(0.0, 1e300),
        LinearScope(1.0, 1e300),
        QuadraticScope(0.0, 1e300),
        QuadraticScope(1.0, 1e300, maximum=3.0),
        BoundedScope(2.0, 1e300),
        AutoScope(1, growth=1e300),
    ],
    ids=repr,
)
def test_schedules_are_numbers_however_long_the_run(schedule):
    for t in (1.0, 1e4, 1e18):
        assert not np.isnan(float(schedule(tf.constant(t, tf.float64))))
    if getattr(schedule, "maximum", None) is not None:
        assert float(schedule(1e18)) == schedule.maximum
    assert type(schedule).from_config(schedule.get_config()).get_config() == schedule.get_config()


def test_auto_scope_ends_its_growth():
    schedule = AutoScope(10, growth=100.0, start=2)
    assert float(schedule(12, 0.5)) == pytest.approx(50.0)
    assert float(schedule(1e6, 0.5)) == float(schedule(12, 0.5))


@pytest.mark.few(1)
@pytest.mark.parametrize("growth", [1e4, 1e300])
def test_auto_scope_trains_to_its_end_and_beyond(growth):
    model = helpers.network(EntropySGD(0.5, gamma=AutoScope(6, growth), **OPTIONS))
    with pytest.warns(UserWarning, match="pull toward the anchor"):
        helpers.fit(model, 5, callbacks=[AnchorCallback()])
    assert int(model.optimizer.outer_iterations) == 8
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert float(model.optimizer.scope) == pytest.approx(10.0)


def test_one_warning_says_that_x_is_held_at_the_anchor():
    model = helpers.network(EntropySGD(0.5, gamma=ConstantScope(15.0), **OPTIONS))
    with pytest.warns(UserWarning) as caught:
        helpers.fit(model, 3, callbacks=[AnchorCallback()])
        helpers.fit(model)
    told = [str(w.message) for w in caught if "pull toward the anchor" in str(w.message)]
    assert len(told) == 1 and "is 1.5:" in told[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        below = helpers.network(EntropySGD(0.5, gamma=ConstantScope(9.0), **OPTIONS))
        helpers.fit(below, callbacks=[AnchorCallback()])


@pytest.mark.slow
def test_a_loss_that_is_never_positive_is_told():
    model = helpers.network(
        EntropySGD(0.5, gamma=AutoScope(5), **OPTIONS), run_eagerly=True, build_in_fit=True
    )
    model.compile(model.optimizer, loss=lambda y, p: -tf.reduce_mean(p**2, axis=-1))
    with pytest.warns(UserWarning, match="AutoScope has not been able to measure gamma_0"):
        helpers.fit(model)
    assert float(model.optimizer.scope) == 0.0


@pytest.mark.slow
def test_the_cap_is_the_same_in_a_graph_and_under_xla():
    weights = []
    for options in ({}, {"jit_compile": True}, {"run_eagerly": True}):
        optimizer = EntropySGD(0.5, gamma=ConstantScope(1e4), **OPTIONS)
        model = helpers.network(optimizer, **options)
        helpers.train_on_batches(model, 5)
        weights.append(model.get_weights())
    for other in weights[1:]:
        helpers.assert_close(other, weights[0], atol=1e-6)
    assert keras.backend.backend() == "tensorflow"
