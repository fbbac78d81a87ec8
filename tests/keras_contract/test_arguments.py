"""What optimizers are given, when they are made and later: taken as Keras takes it, or refused."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf import AnchorCallback, EntropyAdam, EntropySGD, LocalEntropy
from tests.optimizers import helpers

OPTIONS = {"langevin_steps": 3, "noise": 0.0, "seed": 1}


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        *[(EntropySGD, "learning_rate", v) for v in (math.nan, -1.0, "0.9", None, math.inf, True)],
        *[(EntropyAdam, "learning_rate", v) for v in (math.nan, -1.0, "0.9", None)],
        *[(EntropyAdam, "beta_1", v) for v in (math.nan, -1.0, "0.9", None, 1.5, 1.0)],
        *[(EntropyAdam, "beta_2", v) for v in (math.nan, 1.5)],
        *[(EntropyAdam, "epsilon", v) for v in (math.nan, 0.0, "small")],
        *[(EntropySGD, "outer_momentum", v) for v in (math.nan, -1.0, "0.9", None, 1.5)],
        *[(EntropySGD, "langevin_learning_rate", v) for v in (math.nan, 0.0, "0.9", None)],
        *[(EntropySGD, "nesterov", v) for v in ("no", None, 1)],
        *[(EntropySGD, "outer_nesterov", v) for v in ("no", None)],
        (EntropySGD, "gamma_in_outer_step", "no"),
        (EntropySGD, "skip_nonfinite", "no"),
        (EntropySGD, "statistics", "no"),
        (EntropySGD, "clipnorm", -1.0),
        (EntropySGD, "clipvalue", math.nan),
        (EntropySGD, "global_clipnorm", "1"),
        (EntropySGD, "ema_momentum", math.nan),
        (EntropySGD, "use_ema", "no"),
        (EntropySGD, "gradient_accumulation_steps", 2.5),
        (EntropySGD, "langevin_learning_rate_multipliers", [1.0]),
        (EntropySGD, "learning_rate_multipliers", {"kernel": -1.0}),
        (EntropySGD, "learning_rate_multipliers", {"(": 1.0}),
    ],
)
def test_bad_values_are_refused_by_name(make, name, value):
    with pytest.raises(ValueError, match=name):
        make(**{name: value})


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, int])
def test_numbers_of_other_kinds_are_taken(kind):
    one = kind(1)
    optimizer = EntropySGD(one, langevin_learning_rate=one, gamma=one, noise=one)
    assert float(optimizer.learning_rate) == 1.0 and float(optimizer.langevin_learning_rate) == 1.0
    assert float(EntropyAdam(np.float32(0.5), beta_1=np.float32(0.5)).learning_rate) == 0.5


@pytest.mark.slow
def test_rates_that_are_set_between_fits_hold():
    """A traced step would not see an attribute; a variable it does."""
    slow, fast = (helpers.network(EntropySGD(1.0, **OPTIONS)) for _ in range(2))
    helpers.fit(slow, 3, callbacks=[AnchorCallback()])  # 15 steps: at the end of an inner loop
    helpers.fit(fast, 3, callbacks=[AnchorCallback()])
    helpers.assert_equal(slow.get_weights(), fast.get_weights())
    fast.optimizer.langevin_learning_rate = 0.2
    fast.optimizer.momentum = 0.0
    expected = helpers.network(
        EntropySGD(1.0, **(OPTIONS | {"langevin_learning_rate": 0.2, "momentum": 0.0}))
    )
    expected.set_weights(fast.get_weights())
    expected.optimizer.outer_optimizer.iterations.assign(5)
    for model in (fast, expected):
        helpers.train_on_batches(model, 3)
    helpers.assert_close(fast.get_weights(), expected.get_weights(), atol=1e-7)
    assert fast.optimizer.get_config()["langevin_learning_rate"] == 0.2
    with pytest.raises(ValueError, match="langevin_learning_rate"):
        fast.optimizer.langevin_learning_rate = -1.0
    with pytest.raises(AttributeError, match="momentum 0"):
        expected.optimizer.momentum = 0.5


@pytest.mark.parametrize(
    "name",
    ["noise", "averaging", "gamma", "scoping", "langevin_steps", "weight_decay", "nesterov",
     "seed", "outer_optimizer", "skip_nonfinite", "gamma_in_outer_step"],
)  # fmt: skip
def test_what_is_part_of_the_traced_step_cannot_be_set(name):
    with pytest.raises(AttributeError, match=f"`{name}` cannot be changed"):
        setattr(EntropySGD(), name, 1)


def test_a_schedule_for_the_inner_rate(float64):
    """It counts outer updates, as that of the outer rate does."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [0.1, 0.05, 0.02])
    options = OPTIONS | {"momentum": 0.0, "nesterov": False, "gamma": 0.0}
    tested = EntropySGD(0.7, langevin_learning_rate=schedule, **options)
    held = helpers.run(tested, helpers.start_weights(), 9)
    x, step = helpers.start_weights(), 0
    for rate in (0.1, 0.05, 0.02):
        (*_, last) = helpers.reference(
            keras.optimizers.SGD(0.7), x, 3, lambda w, n, at=step: helpers.gradient(w, n + at),
            langevin_steps=3, langevin_learning_rate=float(np.float32(rate)),
        )  # fmt: skip
        x, step = last["weights"], step + 3
        helpers.assert_close(held[step - 1], x)
    copy = EntropySGD.from_config(tested.get_config())
    assert isinstance(copy._step_sizes._rate, type(schedule))
    with pytest.raises(TypeError, match="schedule"):
        tested.langevin_learning_rate = 0.1


def named(names, value=1.0):
    return [keras.Variable(np.full(3, value), dtype="float64", name=name) for name in names]


def test_step_sizes_by_name(float64):
    """Weights of other step sizes move as in an optimizer of their own with those step sizes."""
    options = OPTIONS | {"gamma": 0.3, "noise": 0.0}
    gradient = tf.constant([1.0, -2.0, 0.5], tf.float64)

    def end(optimizer, names):
        model = named(names)
        for _ in range(6):
            optimizer.apply([gradient] * len(model), model)
        return helpers.numpy(model)

    tested = EntropySGD(
        0.8,
        langevin_learning_rate_multipliers={"^head": 0.5},
        learning_rate_multipliers={"head": 0.25, "bias$": 0.0},
        **options,
    )
    body, head, bias = end(tested, ["body", "head", "bias"])
    helpers.assert_close([body], end(EntropySGD(0.8, **options), ["body"]))
    slow = EntropySGD(0.2, langevin_learning_rate=0.05, **options)
    helpers.assert_close([head], end(slow, ["head"]))
    helpers.assert_equal([bias], [np.ones(3)])
    copy = EntropySGD.from_config(tested.get_config())
    assert copy.get_config() == tested.get_config()
    helpers.assert_equal(end(copy, ["body", "head", "bias"]), [body, head, bias])


def test_step_sizes_by_name_without_an_inner_loop():
    model, plain = named(["body", "head"]), named(["head"])
    EntropySGD(0.5, 0, learning_rate_multipliers={"head": 0.5}).apply([tf.ones(3)] * 2, model)
    keras.optimizers.SGD(0.25).apply([tf.ones(3)], plain)
    helpers.assert_equal([model[1].numpy()], helpers.numpy(plain))


@pytest.mark.slow
def test_step_sizes_by_name_through_multi_optimizer():
    """As if each part were trained alone, with the step sizes that its weights are given."""
    slow = EntropySGD(1.0, langevin_learning_rate_multipliers={"kernel": 0.5}, **OPTIONS)
    still = EntropySGD(1.0, learning_rate_multipliers={"bias": 0.0}, **OPTIONS)
    model = helpers.network(
        keras.optimizers.MultiOptimizer(lambda v: slow if "kernel" in v.path else still)
    )
    start = model.get_weights()
    helpers.train_on_batches(model, 3)
    assert int(slow.outer_iterations) == int(still.outer_iterations) == 1
    helpers.assert_equal([model.layers[0].bias.numpy()], start[1:])
    rate = OPTIONS | {"langevin_learning_rate": 0.05}
    alone = EntropySGD(1.0, **rate)
    # The bias walks as before, and so the kernel sees the same gradients.
    twin = helpers.network(
        keras.optimizers.MultiOptimizer(
            lambda v: alone if "kernel" in v.path else EntropySGD.from_config(still.get_config())
        )
    )
    helpers.train_on_batches(twin, 3)
    helpers.assert_close(twin.get_weights(), model.get_weights(), atol=1e-6)


@pytest.mark.parametrize(
    ("factors", "told"),
    [({"nowhere": 2.0}, "found in no weight's path"), ({"he": 2.0, "ad": 3.0}, "more than one")],
)
def test_step_sizes_that_fit_no_weight_or_two_ways(factors, told):
    optimizer = EntropySGD(learning_rate_multipliers=factors)
    with pytest.raises(ValueError, match=told):
        optimizer.build(named(["body", "head"]))


# ---- the outer optimizer ------------------------------------------------------------------------


class OwnApply(keras.optimizers.SGD):
    def apply(self, grads, trainable_variables=None):
        return super().apply([2 * g for g in grads], trainable_variables)


def test_an_outer_optimizer_with_an_apply_of_its_own_is_refused():
    with pytest.raises(ValueError, match="OwnApply has a `apply` of its own, which would not"):
        LocalEntropy(OwnApply(0.1))


def test_one_outer_optimizer_in_two_wrappers_has_two_counters():
    shared = keras.optimizers.Adam(0.1)
    one, two = LocalEntropy(shared, 2), LocalEntropy(shared, 2)
    helpers.run(one, helpers.start_weights("float32"), 4)
    assert int(one.outer_iterations) == 2 and int(two.outer_iterations) == 0


def test_plain_tensorflow_variables():
    """Keras' optimizers take them; the paths that layers have are missing."""
    ends = []
    for make in (tf.Variable, keras.Variable):
        model = [make(w) for w in helpers.start_weights("float32")]
        optimizer = EntropySGD(0.7, 3, gamma=0.3, noise=0.01, seed=1)
        for step in range(7):
            grads = helpers.gradient(helpers.numpy(model), step)
            optimizer.apply([tf.constant(g) for g in grads], model)
        optimizer._swap.place("anchor")
        ends.append(helpers.numpy([*model, *optimizer.anchors()]))
    helpers.assert_equal(ends[0], ends[1])


def test_the_scope_behind_loss_scaling():
    keras.config.set_dtype_policy("mixed_float16")
    model = helpers.network(EntropySGD(gamma=0.5, scoping=0.0))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert float(esgd_tf.local_entropy_optimizer(model).scope) == 0.5


# ---- minibatches that are left out, and that never came ------------------------------------------


@pytest.mark.parametrize("clip", [{"clipvalue": 1.0}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_infinite_gradient_is_left_out_before_it_is_clipped(clip, bad):
    model = helpers.variables(helpers.start_weights("float32"))
    optimizer = EntropySGD(0.5, 3, skip_nonfinite=True, **clip)
    optimizer.build(model)
    grads = [np.ones(w.shape, "float32") for w in helpers.start_weights()]
    optimizer.apply([tf.constant(g) for g in grads], model)
    before = helpers.numpy([*model, *optimizer.variables])
    grads[1][0] = bad
    optimizer.apply([tf.constant(g) for g in grads], model)
    assert optimizer.skipped == 1
    optimizer._skipped.assign(0)
    helpers.assert_equal(helpers.numpy([*model, *optimizer.variables]), before)


def test_clipping_by_value_clips_what_is_finite_as_keras_does():
    ours, plain = (
        helpers.variables(helpers.start_weights()),
        helpers.variables(helpers.start_weights()),
    )
    options = {"clipvalue": 0.3}
    gradients = [tf.constant(g) for g in helpers.gradient(helpers.start_weights(), 0)]
    EntropySGD(0.5, 0, skip_nonfinite=True, **options).apply(gradients, ours)
    keras.optimizers.SGD(0.5, **options).apply(gradients, plain)
    helpers.assert_equal(helpers.numpy(ours), helpers.numpy(plain))


@pytest.mark.slow
def test_leaving_out_keeps_the_logs_of_a_custom_train_step():
    class Custom(keras.Sequential):
        def train_step(self, data):
            logs = super().train_step(data)
            return {"loss": logs["loss"], "extra": tf.constant(7.0)}

    layer = keras.layers.Dense(3)
    model = Custom([keras.Input((4,)), layer])
    model.compile(EntropySGD(0.5, 3, skip_nonfinite=True), "mse", metrics=["mae"])
    esgd_tf.training.skip_nonfinite(model)
    x, y = helpers.data()
    x[:8] = np.inf
    history = model.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
    assert set(history) == {"loss", "extra"}
    assert history["extra"] == [7.0] and np.isfinite(history["loss"][0])
    assert model.optimizer.skipped == 1


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.few(1)
def test_no_step_without_a_minibatch(steps):
    """At the end of a dataset of unknown length Keras starts a step for which there are no data."""
    x, y = helpers.data()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(helpers.BATCH)
    ends = []
    for dataset in (batches, batches.filter(lambda *_: True)):
        model = helpers.network(EntropySGD(0.5, steps, noise=0.01, seed=1))
        for _ in range(3):
            model.fit(dataset, verbose=0, callbacks=[AnchorCallback()])
        assert int(model.optimizer.iterations.numpy()) == 3 * helpers.STEPS_PER_EPOCH
        ends.append(helpers.numpy([*model.variables, *model.optimizer.variables]))
    helpers.assert_equal(ends[1], ends[0])
