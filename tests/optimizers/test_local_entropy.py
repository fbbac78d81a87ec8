"""LocalEntropy as a Keras optimizer: phases, clipping, averaging, rates, odd gradients, errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.optimizers import AutoScope, LocalEntropy
from tests.optimizers import helpers

OPTIONS = {"langevin_steps": 3, "noise": 0.0, "momentum": 0.5, "nesterov": True}


def sgd(rate=0.8, **options):
    return keras.optimizers.SGD(rate, **options)


def optimizer(outer=None, **options):
    return LocalEntropy(outer or sgd(), gamma=0.4, scoping=0.1, **(OPTIONS | options))


def reference(weights, steps, gradient=helpers.gradient, outer=None, **options):
    return helpers.reference(
        outer or sgd(), weights, steps, gradient, gamma=lambda t: 0.4 * 1.1**t,
        **(OPTIONS | options),
    )  # fmt: skip


def assert_same_path(tested, history, atol=1e-12):
    for held, record in zip(tested, history, strict=True):
        helpers.assert_close(held, record["weights"], atol=atol)


# ---- phases -------------------------------------------------------------------------------------


@pytest.mark.parametrize("langevin_steps", [1, 2, 3, 7])
@pytest.mark.parametrize("gamma_in_outer_step", [False, True])
def test_branches_of_every_length(float64, langevin_steps, gamma_in_outer_step):
    options = {
        "langevin_steps": langevin_steps,
        "gamma_in_outer_step": gamma_in_outer_step,
        "noise": 0.3,
        "seed": 5,
        "weight_decay": 0.05,
    }
    weights, steps = helpers.start_weights(), 2 * langevin_steps + 1
    tested = helpers.run(optimizer(**options), weights, steps)
    assert_same_path(tested, reference(weights, steps, **options))


def test_phase_and_counters(float64):
    tested = optimizer()
    assert int(tested.langevin_phase) == 0
    model = helpers.variables(helpers.start_weights())
    phases, outer = [], []
    for _ in range(7):
        tested.apply([tf.ones_like(v) for v in model], model)
        phases.append(int(tested.langevin_phase))
        outer.append(int(tested.outer_iterations))
    assert phases == [1, 2, 0, 1, 2, 0, 1]
    assert outer == [0, 0, 1, 1, 1, 2, 2]
    assert int(tested.iterations) == 7
    assert int(LocalEntropy("sgd", langevin_steps=0).langevin_phase) == 0


def test_no_gradients_is_no_step(float64):
    for langevin_steps in (0, 1):
        tested = optimizer(langevin_steps=langevin_steps)
        tested.apply([], [])
        assert int(tested.iterations) == int(tested.outer_iterations) == 0


@pytest.mark.parametrize(
    ("options", "slots"),
    [
        ({"momentum": 0.9}, ["anchor", "mean", "velocity"]),
        ({"momentum": 0.0}, ["anchor", "mean"]),
        ({"momentum": 0.9, "use_ema": True}, ["anchor", "average", "mean", "velocity"]),
        ({"momentum": 0.9, "langevin_steps": 0}, []),
    ],
)
def test_slots(options, slots):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    tested = optimizer(keras.optimizers.Adam(0.1), **options)
    tested.build(model.trainable_variables)

    def names(shape):
        own = [v for v in tested._variables if v.shape == shape]
        return sorted(v.name.rsplit("_", 1)[1] for v in own)

    assert names((4, 2)) == slots
    kernels = [v for v in tested.variables if v.shape == (4, 2)]
    assert len(kernels) == len(slots) + 2  # and Adam's two
    assert len({id(v) for v in tested.variables}) == len(tested.variables)


def test_update_step_alone(float64):
    weights = helpers.start_weights()[:1]
    tested = optimizer(weight_decay=0.1)
    (variable,) = helpers.variables(weights)
    tested.build([variable])
    gradient = helpers.gradient(weights, 0)
    tested.update_step(tf.constant(gradient[0]), variable.value, tf.constant(0.8, tf.float64))
    helpers.assert_close([variable.numpy()], reference(weights, 1, weight_decay=0.1)[0]["weights"])


# ---- what Keras does with gradients -------------------------------------------------------------


def clipped(clip):
    def gradient(weights, step):
        return clip(helpers.gradient(weights, step))

    return gradient


def by_norm(grads):
    return [g * min(1.0, 0.4 / np.linalg.norm(g)) for g in grads]


def by_value(grads):
    return [np.clip(g, -0.2, 0.2) for g in grads]


def by_global_norm(grads):
    norm = np.sqrt(sum(np.sum(g * g) for g in grads))
    return [g * min(1.0, 0.4 / norm) for g in grads]


@pytest.mark.parametrize(
    ("option", "clip"),
    [
        ({"clipnorm": 0.4}, by_norm),
        ({"clipvalue": 0.2}, by_value),
        ({"global_clipnorm": 0.4}, by_global_norm),
        ({"loss_scale_factor": 8.0}, lambda grads: [g / 8.0 for g in grads]),
    ],
)
def test_clipping_acts_on_the_minibatch_gradient(float64, option, clip):
    weights = helpers.start_weights()
    # The L2 term and the pull are not clipped: they come later.
    tested = helpers.run(optimizer(weight_decay=0.2, **option), weights, 7)
    history = reference(weights, 7, clipped(clip), weight_decay=0.2)
    assert_same_path(tested, history, atol=1e-7)  # Keras rounds some of these to float32


def test_loss_scale_factor_scales_the_loss():
    assert float(optimizer(loss_scale_factor=8.0).scale_loss(tf.constant(2.0))) == 16.0


@pytest.mark.parametrize("by", ["var_names", "var_list"])
def test_exclude_from_weight_decay(float64, by):
    weights = helpers.start_weights()
    model = helpers.variables(weights)
    tested = optimizer(weight_decay=0.3)
    tested.exclude_from_weight_decay(**{by: {"var_names": ["w1"], "var_list": [model[1]]}[by]})
    for step in range(4):
        grads = helpers.gradient(helpers.numpy(model), step)
        tested.apply([tf.constant(g) for g in grads], model)
    decayed = reference(weights, 4, weight_decay=0.3)[-1]["weights"]
    plain = reference(weights, 4)[-1]["weights"]
    helpers.assert_close(helpers.numpy(model), [decayed[0], plain[1], decayed[2]])
    helpers.assert_differ([decayed[1]], [plain[1]])


def test_weight_decay_without_langevin_steps_is_the_l2_term(float64):
    weights = helpers.start_weights()
    tested = helpers.run(optimizer(langevin_steps=0, weight_decay=0.3), weights, 4)

    def decayed(weights, step):
        return [g + 0.3 * w for g, w in zip(helpers.gradient(weights, step), weights, strict=True)]

    helpers.assert_close(tested[-1], helpers.run(sgd(), weights, 4, decayed)[-1])


def test_sparse_gradients_equal_dense_ones(float64):
    def rows(sparse):
        table = keras.Variable(np.linspace(0, 1, 10).reshape(5, 2), dtype="float64")
        tested = optimizer(keras.optimizers.Adam(0.1), noise=0.1, seed=1, weight_decay=0.1)
        for step in range(4):
            values = tf.constant([[1.0, 2.0], [3.0, -4.0], [0.5, 0.5]], tf.float64) * (step + 1)
            indices = tf.constant([3, 1, 3])  # row 3 twice
            gradient = tf.IndexedSlices(values, indices, dense_shape=tf.constant([5, 2]))
            if not sparse:
                gradient = tf.convert_to_tensor(gradient)
            tested.apply([gradient], [table])
        return table.numpy()

    np.testing.assert_allclose(rows(sparse=True), rows(sparse=False), rtol=1e-14)


def test_rows_of_an_embedding_without_a_gradient_feel_the_noise(float64):
    model = keras.Sequential([keras.Input((1,), dtype="int64"), keras.layers.Embedding(6, 3)])
    model.compile(optimizer(noise=0.1, seed=1), loss="mse", jit_compile=False)
    before = model.get_weights()[0]
    tokens = np.array([[1], [2]])
    model.fit(tokens, np.ones((2, 1, 3)), batch_size=1, verbose=0, shuffle=False)
    model.optimizer._swap.place("langevin")
    after = model.get_weights()[0]
    # Untouched rows: two displacements, and the pull of the second step on the first one.
    first, second = (
        helpers.displacement((6, 3), "float64", 1, 0, step, rate=0.1, noise=0.1) for step in (0, 1)
    )
    expected = before + first + second - 0.1 * 0.4 * 1.1 * first
    np.testing.assert_allclose(after[[0, 3, 4, 5]], expected[[0, 3, 4, 5]], atol=1e-12)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_variables_without_gradient_stay(float64):
    weights = helpers.start_weights()
    model = helpers.variables(weights)
    tested = optimizer(noise=0.1, weight_decay=0.1, seed=2)
    for step in range(4):
        grads = [tf.constant(g) for g in helpers.gradient(helpers.numpy(model), step)]
        tested.apply([grads[0], None, grads[2]], model)
    history = reference(weights, 4, noise=0.1, weight_decay=0.1, seed=2)
    expected = history[-1]["weights"]
    helpers.assert_close(helpers.numpy(model), [expected[0], weights[1], expected[2]])
    # They survive the exchange of the weights, too.
    tested._swap.place("anchor")
    anchor = history[-1]["anchor"]
    helpers.assert_close(helpers.numpy(model), [anchor[0], weights[1], anchor[2]])
    tested._swap.place("langevin")
    helpers.assert_close(helpers.numpy(model), [expected[0], weights[1], expected[2]])


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_fit_with_a_weight_that_the_loss_does_not_see(float64):
    inputs = keras.Input((4,))
    used, unused = keras.layers.Dense(1)(inputs), keras.layers.Dense(2, name="unused")(inputs)
    model = keras.Model(inputs, [used, unused])
    model.compile(optimizer(weight_decay=0.1), loss=["mse", None])
    before = model.get_layer("unused").get_weights()
    first = model.get_weights()[0]
    helpers.fit(model)
    helpers.assert_equal(model.get_layer("unused").get_weights(), before)
    helpers.assert_differ([model.get_weights()[0]], [first])


def test_constraints_hold_after_every_step(float64):
    # Keras applies them after `apply`: also to the Langevin weights.
    variable = keras.Variable(np.ones(3), dtype="float64")
    variable.constraint = keras.constraints.NonNeg()
    tested = optimizer()
    for _ in range(4):
        tested.apply([tf.constant([9.0, -1.0, 0.0], tf.float64)], [variable])
        assert (variable.numpy() >= 0).all()
    assert variable.numpy()[1] > 1


# ---- averaging of the anchor --------------------------------------------------------------------


def test_ema_averages_the_anchor_once_per_outer_update(float64):
    weights = helpers.start_weights()
    tested = optimizer(use_ema=True, ema_momentum=0.75)
    held = helpers.run(tested, weights, 11)
    assert_same_path(held, reference(weights, 11))
    anchors = [held[i] for i in (2, 5, 8)]
    average = anchors[0]
    for anchor in anchors[1:]:
        average = [0.75 * a + 0.25 * x for a, x in zip(average, anchor, strict=True)]
    helpers.assert_close(helpers.numpy(tested._model_variables_moving_average), average)


def test_ema_overwrites_after_a_number_of_outer_updates(float64):
    weights = helpers.start_weights()
    tested = optimizer(use_ema=True, ema_momentum=0.75, ema_overwrite_frequency=2)
    held = helpers.run(tested, weights, 9)
    before = reference(weights, 6)
    helpers.assert_close(held[2], before[2]["weights"])
    average = [
        0.75 * a + 0.25 * x for a, x in zip(before[2]["weights"], before[5]["weights"], strict=True)
    ]
    helpers.assert_close(held[5], average)
    assert tested.get_config()["ema_overwrite_frequency"] == 2


def test_fit_with_ema_ends_at_the_average(float64):
    model = helpers.network(optimizer(use_ema=True, ema_momentum=0.75))
    helpers.fit(model, epochs=2)
    average = helpers.numpy(model.optimizer._model_variables_moving_average)
    helpers.assert_equal(model.get_weights(), average)
    helpers.assert_differ(average, helpers.numpy(model.optimizer._loop.anchors))


# ---- gradient accumulation ----------------------------------------------------------------------


def test_accumulating_two_gradients_is_twice_the_batch(float64):
    weights = helpers.start_weights()
    shared = {"noise": 0.1, "seed": 6, "use_ema": True, "ema_momentum": 0.5}
    tested = optimizer(keras.optimizers.Nadam(0.1), gradient_accumulation_steps=2, **shared)
    whole = optimizer(keras.optimizers.Nadam(0.1), **shared)

    def half(weights, step):
        return [g + (-1) ** step for g in helpers.gradient(weights, step // 2)]

    accumulated = helpers.run(tested, weights, 16, half)
    at_once = helpers.run(whole, weights, 8)
    for step in range(8):
        helpers.assert_close(accumulated[2 * step + 1], at_once[step])
        helpers.assert_equal(accumulated[2 * step], accumulated[2 * step - 1] if step else weights)
    assert int(tested.iterations) == 8
    assert int(tested.outer_iterations) == 2
    assert int(tested.langevin_phase) == 2
    for one, two in zip(
        tested._model_variables_moving_average, whole._model_variables_moving_average, strict=True
    ):
        np.testing.assert_allclose(one.numpy(), two.numpy(), atol=1e-12)


def test_fit_with_accumulation_is_fit_with_twice_the_batch(float64):
    model = helpers.network(optimizer(gradient_accumulation_steps=2))
    helpers.fit(model, batch_size=helpers.BATCH // 2)
    whole = helpers.network(optimizer(), run_eagerly=True)
    helpers.fit(whole)
    helpers.assert_close(model.get_weights(), whole.get_weights(), atol=1e-12)


# ---- learning rates -----------------------------------------------------------------------------


def test_schedules_count_outer_updates(float64):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [0.8, 0.4, 0.2])
    weights = helpers.start_weights()
    tested = optimizer(sgd(schedule))
    rates = []
    model = helpers.variables(weights)
    for step in range(9):
        rates.append(float(tested.learning_rate))
        grads = helpers.gradient(helpers.numpy(model), step)
        tested.apply([tf.constant(g) for g in grads], model)
    np.testing.assert_allclose(rates, [0.8] * 3 + [0.4] * 3 + [0.2] * 3, rtol=1e-7)
    expected = reference(weights, 9, outer=sgd(schedule))[-1]["weights"]
    helpers.assert_close(helpers.numpy(model), expected)
    with pytest.raises(TypeError, match="not settable"):
        tested.learning_rate = 0.1


def test_learning_rate_can_be_set(float64):
    tested = optimizer()
    tested.learning_rate = 0.25
    assert float(tested.learning_rate) == float(tested.outer_optimizer.learning_rate) == 0.25
    weights = helpers.start_weights()
    expected = reference(weights, 3, outer=sgd(0.25))[-1]["weights"]
    helpers.assert_close(helpers.run(tested, weights, 3)[-1], expected)


def test_callbacks_that_set_the_rate(float64):
    model = helpers.network(optimizer(sgd(0.8)), run_eagerly=True)
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    plateau = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.1, patience=1, min_delta=1e9, cooldown=0
    )
    rates = helpers.Record(lambda optimizer: float(optimizer.learning_rate))
    history = helpers.fit(model, epochs=2, callbacks=[schedule, rates]).history
    np.testing.assert_allclose(rates.values, [0.4] * 5 + [0.2] * 5)
    np.testing.assert_allclose(history["learning_rate"], [0.4, 0.2])
    helpers.fit(model, epochs=2, callbacks=[plateau])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.02)


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("langevin_steps", -1),
        ("langevin_steps", 2.0),
        ("langevin_steps", True),
        ("langevin_learning_rate", 0.0),
        ("langevin_learning_rate", "fast"),
        ("gamma", -1e-4),
        ("gamma", float("nan")),
        ("gamma", float("inf")),
        ("scoping", -1e-3),
        ("noise", -1.0),
        ("averaging", 1.0),
        ("averaging", -0.1),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1e-3),
        ("seed", -1),
        ("seed", 1.5),
        ("seed", 2**31),
    ],
)
def test_values_out_of_range(option, value):
    with pytest.raises(ValueError, match=f"`{option}` must be .*; got "):
        LocalEntropy("sgd", **{option: value})


def test_the_learning_rate_belongs_to_the_outer_optimizer():
    with pytest.raises(ValueError, match="`langevin_learning_rate`"):
        LocalEntropy("sgd", learning_rate=0.1)


def test_unknown_arguments_are_refused():
    with pytest.raises(ValueError, match="lerning_rate"):
        LocalEntropy("sgd", lerning_rate=0.1)


def test_apply_without_variables_before_build():
    with pytest.raises(ValueError, match="is not built"):
        optimizer().apply([tf.ones(3)])


def test_apply_without_variables_after_build(float64):
    weights = helpers.start_weights()
    model, tested = helpers.variables(weights), optimizer()
    tested.build(model)
    tested.build(model)  # a second call changes nothing
    tested.apply([tf.constant(g) for g in helpers.gradient(weights, 0)])
    helpers.assert_close(helpers.numpy(model), reference(weights, 1)[0]["weights"])


def test_unknown_variables_are_refused():
    tested = optimizer()
    tested.build(helpers.variables(helpers.start_weights("float32")))
    with pytest.raises(ValueError, match="Unknown variable"):
        tested.apply([tf.ones(2)], [keras.Variable(tf.ones(2))])


def test_statistics_must_be_asked_for():
    with pytest.raises(ValueError, match="`statistics=True`"):
        optimizer().statistics()
    # AutoScope gathers them anyway.
    scoped = LocalEntropy("sgd", gamma=AutoScope(5))
    assert np.isnan(scoped.statistics().gradient_norm)


def test_seeds():
    keras.utils.set_random_seed(1)
    one, two = LocalEntropy("sgd"), LocalEntropy("sgd")
    assert int(one._seed.numpy()) != int(two._seed.numpy())
    keras.utils.set_random_seed(1)
    assert int(LocalEntropy("sgd")._seed.numpy()) == int(one._seed.numpy())
    assert int(LocalEntropy("sgd", seed=7)._seed.numpy()) == 7
    assert int(LocalEntropy("sgd", seed=0)._seed.numpy()) == 0
