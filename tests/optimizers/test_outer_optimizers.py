"""Every Keras optimizer as the outer one: the limits in which it must be itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.optimizers import LocalEntropy
from tests.optimizers import helpers

k = keras.optimizers
OUTER = {
    "SGD": lambda: k.SGD(0.1),
    "Nesterov": lambda: k.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "RMSprop": lambda: k.RMSprop(0.01, momentum=0.5, centered=True),
    "Adam": lambda: k.Adam(0.02, amsgrad=True),
    "AdamW": lambda: k.AdamW(0.02, weight_decay=0.3),
    "Adadelta": lambda: k.Adadelta(1.0),
    "Adagrad": lambda: k.Adagrad(0.1),
    "Adamax": lambda: k.Adamax(0.02),
    "Adafactor": lambda: k.Adafactor(0.02),
    "Nadam": lambda: k.Nadam(0.02),
    "Ftrl": lambda: k.Ftrl(0.1, l2_regularization_strength=0.01),
    "Lion": lambda: k.Lion(0.01),
    "Lamb": lambda: k.Lamb(0.02),
    "Muon": lambda: k.Muon(0.02, weight_decay=0.3, adam_weight_decay=0.01),
    "ScheduleFreeAdamW": lambda: k.ScheduleFreeAdamW(0.02, weight_decay=0.1),
    "clipnorm": lambda: k.Adagrad(0.1, clipnorm=0.05),
    "clipvalue": lambda: k.SGD(0.5, momentum=0.5, clipvalue=0.02),
    "schedule": lambda: k.Adam(k.schedules.PiecewiseConstantDecay([1, 2], [0.1, 0.05, 0.01])),
}
every_outer = pytest.mark.parametrize("make", OUTER.values(), ids=OUTER.keys())

# With these, x - mean at the end of an inner loop is the minibatch gradient.
TRANSPARENT = {
    "langevin_steps": 1,
    "langevin_learning_rate": 1.0,
    "gamma": 0.0,
    "noise": 0.0,
    "averaging": 0.0,
    "momentum": 0.0,
}


def test_sweep_is_complete():
    no_outer = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
    classes = {
        name
        for name in dir(keras.optimizers)
        if isinstance(getattr(keras.optimizers, name), type)
        and issubclass(getattr(keras.optimizers, name), keras.optimizers.Optimizer)
    }
    assert classes - no_outer <= {type(make()).__name__ for make in OUTER.values()}


@every_outer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.few(9)
def test_no_langevin_steps_is_the_outer_optimizer_bit_for_bit(make, dtype):
    keras.config.set_floatx(dtype)
    weights = helpers.start_weights(dtype)
    tested = helpers.run(LocalEntropy(make(), langevin_steps=0), weights, 3)
    plain = helpers.run(make(), weights, 3)
    helpers.assert_equal(tested[-1], plain[-1])
    helpers.assert_differ(plain[-1], weights)


@pytest.mark.few(6)
@every_outer
def test_transparent_inner_loop(float64, make):
    weights = helpers.start_weights()
    optimizer = LocalEntropy(make(), **TRANSPARENT)
    for tested, plain in zip(
        helpers.run(optimizer, weights, 3), helpers.run(make(), weights, 3), strict=True
    ):
        helpers.assert_close(tested, plain, atol=1e-9)
    assert int(optimizer.outer_iterations) == 3


@every_outer
@pytest.mark.few(4)
def test_outer_update_every_third_step(float64, make):
    options = {
        "langevin_steps": 3,
        "noise": 0.01,
        "momentum": 0.5,
        "nesterov": True,
        "weight_decay": 0.1,
        "seed": 3,
    }
    weights = helpers.start_weights()
    optimizer = LocalEntropy(make(), gamma=0.5, scoping=0.1, **options)
    history = helpers.reference(make(), weights, 9, gamma=lambda t: 0.5 * 1.1**t, **options)
    for held, record in zip(helpers.run(optimizer, weights, 9), history, strict=True):
        helpers.assert_close(held, record["weights"], atol=1e-9)
    assert int(optimizer.iterations) == 9
    assert int(optimizer.outer_iterations) == 3


# Those that do something unusual: copy the weights into a slot when built, keep a scalar between
# steps, decay by two rates.
@pytest.mark.parametrize("kind", ["ScheduleFreeAdamW", "Nadam", "Muon"])
@pytest.mark.few(1)
def test_fit(float64, kind):
    def trained(optimizer):
        # Keras 3.15 loses what ScheduleFreeAdamW copies in `build` if `fit` builds it; here it may.
        ours = isinstance(optimizer, LocalEntropy)
        model = helpers.network(optimizer, build_in_fit=ours)
        helpers.fit(model, epochs=1)
        return model.get_weights()

    plain = trained(OUTER[kind]())
    helpers.assert_equal(trained(LocalEntropy(OUTER[kind](), langevin_steps=0)), plain)
    helpers.assert_close(trained(LocalEntropy(OUTER[kind](), **TRANSPARENT)), plain, atol=1e-9)


def test_sparse_gradients_without_langevin_steps_stay_sparse(float64):
    # Adam moves the rows that have a gradient only; Keras' sparse kernels must be reached.
    def rows(optimizer):
        table = keras.Variable(np.ones((5, 2)), dtype="float64")
        for step in range(3):
            values = tf.constant([[1.0, 2.0], [3.0, -4.0]], tf.float64) * (step + 1)
            gradient = tf.IndexedSlices(
                values, tf.constant([1, 3]), dense_shape=tf.constant([5, 2])
            )
            optimizer.apply([gradient], [table])
        return table.numpy()

    for make in (OUTER["SGD"], OUTER["Adam"], OUTER["clipnorm"]):
        plain = rows(make())
        np.testing.assert_array_equal(rows(LocalEntropy(make(), langevin_steps=0)), plain)
        assert (plain[[0, 2, 4]] == 1).all() and (plain[[1, 3]] != 1).all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: k.SGD(0.1, global_clipnorm=1.0), "`global_clipnorm` has no effect"),
        (lambda: k.SGD(0.1, gradient_accumulation_steps=2), "`gradient_accumulation_steps` has no"),
        (lambda: k.SGD(0.1, loss_scale_factor=2.0), "`loss_scale_factor` has no effect"),
        (lambda: k.SGD(0.1, use_ema=True), "`use_ema` has no effect"),
        (lambda: LocalEntropy("sgd"), "cannot be a LocalEntropy"),
        (lambda: k.LossScaleOptimizer(k.SGD(0.1)), "cannot be a LossScaleOptimizer"),
        (lambda: k.MultiOptimizer(k.OptimizerMap(k.SGD(0.1))), "cannot be a MultiOptimizer"),
    ],
)
def test_refused_outer_optimizers(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        LocalEntropy(make())


def test_a_built_outer_optimizer_is_refused():
    outer = k.SGD(0.1)
    outer.build(helpers.variables(helpers.start_weights()))
    with pytest.raises(ValueError, match="is built already"):
        LocalEntropy(outer)


def test_outer_optimizer_by_name():
    assert isinstance(LocalEntropy("lion").outer_optimizer, k.Lion)
    with pytest.raises(ValueError, match="no_such_optimizer"):
        LocalEntropy("no_such_optimizer")


def test_exclusions_of_the_outer_optimizer_hold(float64):
    def excluding():
        outer = k.AdamW(0.02, weight_decay=0.5)
        outer.exclude_from_weight_decay(var_names=["w1"])
        return outer

    weights = helpers.start_weights()
    options = {"langevin_steps": 2, "momentum": 0.0}
    tested = helpers.run(LocalEntropy(excluding(), gamma=0.0, noise=0.0, **options), weights, 4)
    history = helpers.reference(excluding(), weights, 4, **options)
    helpers.assert_close(tested[-1], history[-1]["weights"])
    history = helpers.reference(k.AdamW(0.02, weight_decay=0.5), weights, 4, **options)
    with pytest.raises(AssertionError):
        helpers.assert_close(tested[-1], history[-1]["weights"])
