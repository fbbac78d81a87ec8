"""The Keras face of replicas: fit, evaluate, save, load, and what users ask them."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf import Replicas
from esgd_tf.replicas import ElasticAveraging, Focusing, OwnMinibatches, Parle, ReplicatedSGD
from tests.optimizers.helpers import BATCH, STEPS_PER_EPOCH, assert_close, assert_equal, data
from tests.replicas import helpers

# What these keep is kept by the others too.
SLOW = ("rsgd", "walkers", "parle")
CASES = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in helpers.CASES
]


def forward(weights, x):
    kernel, bias = weights
    return np.tanh(x @ kernel + bias)


def mean_of(lists):
    return [np.mean(parts, axis=0) for parts in zip(*lists, strict=True)]


def rms(weights, others=None):
    others = [0.0 * w for w in weights] if others is None else others
    squares = sum(np.sum((w - o) ** 2.0) for w, o in zip(weights, others, strict=True))
    return np.sqrt(squares / sum(w.size for w in weights))


# ---- what fit tells -----------------------------------------------------------------------------


def test_logs_are_means_over_replicas_and_validation_is_at_the_center():
    """With a learning rate of 0, everything can be computed from the starts."""
    x, y = data()
    x_test, y_test = x[:12] + 0.1, y[:12]
    model = helpers.replicas(
        ReplicatedSGD(0.5), keras.optimizers.SGD(0.0), count=3, metrics=["mae"]
    )
    history = helpers.fit(model, validation_data=(x_test, y_test)).history
    assert list(history) == ["loss", "mae", "val_loss", "val_mae"]
    starts = [helpers.network(a).get_weights() for a in range(3)]
    errors = [forward(w, x) - y for w in starts]
    np.testing.assert_allclose(history["loss"], [np.mean(np.square(errors))], rtol=1e-5)
    np.testing.assert_allclose(history["mae"], [np.mean(np.abs(errors))], rtol=1e-5)
    center = mean_of(starts)
    error = forward(center, x_test) - y_test
    expected = [np.mean(error**2), np.mean(np.abs(error))]
    np.testing.assert_allclose([*history["val_loss"], *history["val_mae"]], expected, rtol=1e-5)
    np.testing.assert_allclose(model.evaluate(x_test, y_test, verbose=0), expected, rtol=1e-5)
    found = model.predict(x_test, verbose=0)
    np.testing.assert_allclose(found, forward(center, x_test), rtol=1e-5)
    np.testing.assert_allclose(model(x_test), found, rtol=1e-6)
    assert_close(model.center().get_weights(), center, atol=1e-7)
    # What is asked of the weights.
    np.testing.assert_allclose(model.distances(), [rms(w, center) for w in starts], rtol=1e-5)
    np.testing.assert_allclose(model.norms(), [rms(w) for w in starts], rtol=1e-5)
    np.testing.assert_allclose(model.center_norm, rms(center), rtol=1e-5)
    for a in range(3):
        assert_equal(model.replica(a).get_weights(), starts[a])


@pytest.mark.slow
def test_weighted_examples_and_weighted_metrics():
    x, y = data()
    sample_weight = np.linspace(0, 2, len(x)).astype("float32")
    model = helpers.replicas(
        ReplicatedSGD(0.5), keras.optimizers.SGD(0.0), weighted_metrics=["mae"], metrics=["mae"]
    )
    history = helpers.fit(model, sample_weight=sample_weight).history
    starts = [helpers.network(a).get_weights() for a in range(2)]
    errors = [forward(w, x) - y for w in starts]
    squares = [np.mean(sample_weight * np.mean(e**2, axis=1)) for e in errors]
    np.testing.assert_allclose(history["loss"], [np.mean(squares)], rtol=1e-5)
    absolute = [np.average(np.mean(np.abs(e), axis=1), weights=sample_weight) for e in errors]
    np.testing.assert_allclose(history["weighted_mae"], [np.mean(absolute)], rtol=1e-5)


def test_metrics_given_as_objects_are_not_shared():
    metric = keras.metrics.MeanAbsoluteError(name="error")
    model = helpers.replicas(
        ReplicatedSGD(0.5), keras.optimizers.SGD(0.0), metrics=[metric], run_eagerly=True
    )
    history = helpers.fit(model, validation_data=data()).history
    errors = [
        np.mean(np.abs(forward(helpers.network(a).get_weights(), data()[0]) - data()[1]))
        for a in range(2)
    ]
    np.testing.assert_allclose(history["error"], [np.mean(errors)], rtol=1e-5)


# ---- evaluated, saved, loaded, resumed ----------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.few(1)
def test_a_run_that_is_evaluated_saved_and_resumed_is_as_if_uninterrupted(name, tmp_path):
    trajectory, end, center_at_end, history = helpers.uninterrupted(name)
    model = helpers.case(name)
    first = helpers.fit(model, validation_data=data()).history
    model.evaluate(*data(), verbose=0)
    model.distances()
    assert_equal(helpers.weights(model), trajectory[STEPS_PER_EPOCH - 1])
    center = model.center()
    model.save(tmp_path / "model.keras")

    loaded = esgd_tf.load_model(tmp_path / "model.keras")
    assert repr(loaded.coupling) == repr(model.coupling)
    assert loaded.seed == helpers.SEED
    assert_equal(helpers.state(loaded), helpers.state(model))
    assert_equal(loaded.center().get_weights(), center.get_weights())
    second = helpers.fit(loaded, epochs=2, initial_epoch=1).history
    assert_equal(helpers.weights(loaded), trajectory[-1])
    assert_equal(helpers.state(loaded), end)
    assert_equal(loaded.center().get_weights(), center_at_end)
    assert first["loss"] + second["loss"] == history["loss"]


@pytest.mark.slow
def test_later_training_leaves_the_center_that_was_taken_alone():
    model = helpers.case("rsgd")
    center, replica, ensemble = model.center(), model.replica(0), model.ensemble()
    before = [m.get_weights() for m in (center, replica, ensemble)]
    helpers.fit(model)
    for taken, weights in zip((center, replica, ensemble), before, strict=True):
        assert_equal(taken.get_weights(), weights)
    assert type(center) is keras.Sequential
    assert not center.compiled
    # And what it is now is the mean of the replicas.
    center = model.center()
    assert_close(center.get_weights(), mean_of(m.get_weights() for m in model.members), atol=1e-7)
    center.set_weights([0 * w for w in center.get_weights()])
    assert model.center_norm > 0


def test_replicas_stand_at_their_anchors_amid_an_inner_loop():
    """After five steps with L = 3, the anchors are where the third step ended."""
    trajectory, _, _, _ = helpers.uninterrupted("focused")
    model = helpers.case("focused")
    helpers.fit(model)
    anchors, now = trajectory[2], trajectory[4]
    assert_equal(helpers.anchors(model), anchors)
    assert_equal(helpers.weights(model), now)
    assert any((a != w).any() for a, w in zip(anchors, now, strict=True))
    first, second = anchors[:2], anchors[2:]
    center = mean_of([first, second])
    assert_close(model.center().get_weights(), center, atol=1e-7)
    np.testing.assert_allclose(
        model.distances(), [rms(first, center), rms(second, center)], rtol=1e-5
    )
    np.testing.assert_allclose(model.norms(), [rms(first), rms(second)], rtol=1e-5)
    assert_equal([w for member in model.ensemble().members for w in member.get_weights()], anchors)


def test_the_center_of_easgd_is_its_own():
    model = helpers.case("easgd")
    helpers.fit(model)
    center = model.center().get_weights()
    mean = mean_of(m.get_weights() for m in model.members)
    assert any(np.abs(c - m).max() > 1e-3 for c, m in zip(center, mean, strict=True))
    x, y = data()
    expected = np.mean((forward(center, x) - y) ** 2)
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), expected, rtol=1e-5)


@pytest.mark.slow
def test_steps_per_epoch_do_not_keep_a_resumed_run_from_the_same_minibatches():
    """Two epochs of two steps each, where one pass takes five."""

    def run(*spans):
        model = helpers.replicas(ReplicatedSGD(0.3), helpers.nesterov())
        for first, last in spans:
            helpers.fit(model, epochs=last, initial_epoch=first, steps_per_epoch=2)
        return helpers.weights(model)

    assert_equal(run((0, 1), (1, 2)), run((0, 2)))


# ---- BatchNormalization -------------------------------------------------------------------------


def with_batch_norm(a):
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(a)),
        ]
    )


@pytest.mark.slow
def test_batch_norm_statistics_of_the_center_are_those_of_training_data(tmp_path):
    x, _ = data()
    model = helpers.replicas(ReplicatedSGD(0.3), helpers.nesterov(), build=with_batch_norm)
    helpers.fit(model)
    center = model.center().layers[0]
    # Batches of 8 of an order in which every example comes once per epoch.
    np.testing.assert_allclose(center.moving_mean, x.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(center.moving_variance, x.var(axis=0), rtol=1e-5)
    # So are those of a replica that is looked at; the replicas keep what training moved.
    looked_at = model.replica(0).layers[0]
    np.testing.assert_allclose(looked_at.moving_mean, x.mean(axis=0), atol=1e-5)
    moved = model.members[0].layers[0].moving_mean
    assert np.abs(moved - x.mean(axis=0)).max() > 1e-3
    # A loaded model has no data to estimate them from.
    model.save(tmp_path / "model.keras")
    loaded = esgd_tf.load_model(tmp_path / "model.keras")
    assert_equal(loaded.center().get_weights(), model.center().get_weights())
    helpers.fit(model, epochs=2, initial_epoch=1, batch_norm_data=[x[:10], x[10:16]])
    center = model.center().layers[0]
    np.testing.assert_allclose(center.moving_mean, x[:16].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(center.moving_variance, x[:16].var(axis=0), rtol=1e-5)
    # Its trained parameters are means.
    gammas = [member.layers[0].gamma.numpy() for member in model.members]
    np.testing.assert_allclose(center.gamma, np.mean(gammas, axis=0), rtol=1e-6)


def test_without_training_data_batch_norm_statistics_are_the_replicas_mean():
    x, y = data()
    model = helpers.replicas(ReplicatedSGD(0.3), build=with_batch_norm, run_eagerly=True)
    model.train_on_batch(x[:16], y[:16])
    own = [member.layers[0].moving_mean.numpy() for member in model.members]
    assert np.abs(own[0] - own[1]).max() > 0
    np.testing.assert_allclose(
        model.center().layers[0].moving_mean, np.mean(own, axis=0), rtol=1e-6
    )


@pytest.mark.slow
def test_statistics_of_an_anchor_are_estimated_anew():
    """Of the first replica's minibatches."""
    seen = np.concatenate([x for x, _ in helpers.own_minibatches(0, steps=2)])
    model = helpers.replicas(
        ReplicatedSGD(0.3), helpers.entropy(), build=with_batch_norm, run_eagerly=True
    )
    model.fit(OwnMinibatches(lambda a: helpers.own_minibatches(a, steps=2)), verbose=0)
    for taken in (model.center(), model.replica(1)):
        np.testing.assert_allclose(taken.layers[0].moving_mean, seen.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(taken.layers[0].moving_variance, seen.var(axis=0), rtol=1e-5)


# ---- callbacks ----------------------------------------------------------------------------------


def test_callbacks_see_the_center_and_reach_all_replicas(tmp_path):
    rates = []
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras", monitor="val_loss"),
        keras.callbacks.EarlyStopping("val_loss", min_delta=1e9, patience=1),
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: rates.append(
                [float(member.optimizer.learning_rate) for member in model.members]
            )
        ),
    ]
    model = helpers.replicas(ReplicatedSGD(0.3), helpers.nesterov())
    history = helpers.fit(model, epochs=9, validation_data=data(), callbacks=callbacks).history
    np.testing.assert_allclose(rates, [[0.1, 0.1], [0.05, 0.05]])
    np.testing.assert_allclose(history["learning_rate"], [0.1, 0.05])
    np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.05)
    assert len(history["loss"]) == 2
    loaded = esgd_tf.load_model(tmp_path / "2.keras")
    np.testing.assert_allclose(
        loaded.evaluate(*data(), verbose=0), history["val_loss"][-1], rtol=1e-6
    )
    np.testing.assert_allclose(float(loaded.members[1].optimizer.learning_rate), 0.05)


# ---- modes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"steps_per_execution": STEPS_PER_EPOCH}, 0.0),
        ({"run_eagerly": True}, 1e-6),
        ({"jit_compile": True}, 1e-5),
    ],
    ids=["steps_per_execution", "eager", "xla"],
)
@pytest.mark.parametrize(
    "name",
    ["rsgd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("easgd", "walkers", "parle"))],
)
def test_every_mode_of_execution_takes_the_same_steps(name, options, tolerance):
    trajectory, _, _, history = helpers.uninterrupted(name)
    model = helpers.case(name, **options)
    found = helpers.fit(model, epochs=2).history
    assert model.jit_compile is options.get("jit_compile", False)
    assert_close(helpers.weights(model), trajectory[-1], atol=tolerance)
    np.testing.assert_allclose(found["loss"], history["loss"], rtol=1e-5)


def test_several_steps_per_execution_do_not_overrun_the_epoch():
    """The data are endless: an execution of two would not stop after the fifth step."""
    model = helpers.case("rsgd", steps_per_execution=2)
    with pytest.raises(ValueError, match="2 does not go into the 5 steps of an epoch"):
        helpers.fit(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", [pytest.param("mixed_bfloat16", marks=pytest.mark.slow), "mixed_float16"]
)
def test_mixed_precision_trains_about_as_well(policy, tmp_path):
    _, _, _, history = helpers.uninterrupted("rsgd")
    keras.config.set_dtype_policy(policy)
    model = helpers.case("rsgd")
    found = helpers.fit(model, epochs=2, validation_data=data()).history
    np.testing.assert_allclose(found["loss"], history["loss"], rtol=0.03)
    assert {w.dtype.name for w in helpers.weights(model)} == {"float32"}
    assert np.isfinite(found["val_loss"]).all()
    model.save(tmp_path / "model.keras")
    loaded = esgd_tf.load_model(tmp_path / "model.keras")
    assert_equal(helpers.weights(loaded), helpers.weights(model))
    assert [type(m.optimizer) for m in loaded.members] == [type(m.optimizer) for m in model.members]


@pytest.mark.slow
def test_train_on_batch_takes_the_steps_of_fit():
    x, y = data()
    parts = [(x[a::2], y[a::2]) for a in range(2)]
    fitted, stepped = (
        helpers.replicas(ReplicatedSGD(0.3, every=2), helpers.nesterov(), metrics=["mae"])
        for _ in range(2)
    )
    own = OwnMinibatches(lambda a: tf.data.Dataset.from_tensor_slices(parts[a]).batch(5))
    history = fitted.fit(own, verbose=0).history
    for step in range(4):
        at = slice(5 * step, 5 * step + 5)
        batch = [np.concatenate([part[i][at] for part in parts]) for i in range(2)]
        logs = stepped.train_on_batch(*batch, return_dict=step % 2 == 1)
    assert_equal(helpers.weights(stepped), helpers.weights(fitted))
    # Metrics go on until they are reset.
    np.testing.assert_allclose(
        [logs["loss"], logs["mae"]], [history["loss"][0], history["mae"][0]], rtol=1e-6
    )
    stepped.reset_metrics()
    assert isinstance(stepped.train_on_batch(*batch), list)
    with pytest.raises(ValueError, match="9 examples cannot be split evenly over 2 replicas"):
        stepped.train_on_batch(x[:9], y[:9])


def poisoned(a):
    """Minibatches of which the second of replica 0 has a NaN."""
    x, y = data()
    x = x.copy()
    if a == 0:
        x[BATCH] = np.nan
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)


def skipping(**options):
    return esgd_tf.LocalEntropy(
        helpers.nesterov(), langevin_steps=2, noise=0.0, skip_nonfinite=True, **options
    )


@pytest.mark.slow
def test_a_minibatch_that_is_not_finite_stops_one_replica_only():
    model = helpers.replicas(ReplicatedSGD(0.3), skipping())
    model.fit(OwnMinibatches(poisoned), verbose=0)
    assert model.optimizer.skipped == 1
    assert [int(member.optimizer.iterations) for member in model.members] == [4, 5]
    assert [member.optimizer.skipped for member in model.members] == [1, 0]
    assert all(np.isfinite(w).all() for w in [*helpers.weights(model), *helpers.anchors(model)])
    assert int(model.optimizer.iterations) == STEPS_PER_EPOCH


@pytest.mark.parametrize(
    "rule",
    [ReplicatedSGD(0.3), pytest.param(ElasticAveraging(0.3), marks=pytest.mark.slow)],
    ids=["rsgd", "easgd"],
)
@pytest.mark.slow
def test_asking_for_the_center_does_not_move_a_replica_that_lags_behind(rule):
    """Replica 0 has skipped a minibatch: its outer update follows those of the others."""

    def run(read):
        model = helpers.replicas(rule, skipping(), run_eagerly=True)
        record = helpers.Record(read)
        model.fit(OwnMinibatches(poisoned), verbose=0, callbacks=[record])
        return [w for member in model.members for w in member.get_weights()]

    assert_equal(run(lambda model: model.center()), run(lambda model: None))


@pytest.mark.slow
def test_the_average_of_weights_over_time_is_left_at_the_end():
    """As for one network: `use_ema` overwrites the weights when `fit` ends."""
    options = {"use_ema": True, "ema_momentum": 0.5}
    model = helpers.replicas(ReplicatedSGD(0.3), helpers.nesterov(**options), count=1)
    model.fit(helpers.OWN, verbose=0)
    twin = helpers.network(0)
    twin.compile(helpers.nesterov(**options), "mse")
    twin.fit(helpers.own_minibatches(0), verbose=0)
    assert_equal(model.center().get_weights(), twin.get_weights())


# ---- how replicas start -------------------------------------------------------------------------


def test_replicas_start_where_they_are_told():
    independent = helpers.replicas(ReplicatedSGD(0.1))
    for a, member in enumerate(independent.members):
        assert_equal(member.get_weights(), helpers.network(a).get_weights())
    same = helpers.replicas(ReplicatedSGD(0.1), count=3, initialization="same")
    for member in same.members:
        assert_equal(member.get_weights(), helpers.network(0).get_weights())
    # A function without an argument draws from Keras' generators.
    drawn = helpers.replicas(
        ReplicatedSGD(0.1),
        build=lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]),
    )
    assert drawn.distances().min() > 0


def test_a_center_is_there_before_training():
    model = helpers.replicas(ElasticAveraging(0.1), count=3)
    mean = mean_of(member.get_weights() for member in model.members)
    assert_close(model.center().get_weights(), mean, atol=1e-7)


def test_compiling_anew_starts_the_optimizers_anew():
    model = helpers.case("easgd")
    helpers.fit(model)
    before = helpers.weights(model)
    model.compile(helpers.nesterov(0.0), "mse")
    assert int(model.optimizer.iterations) == 0
    assert_equal(helpers.weights(model), before)
    mean = mean_of(member.get_weights() for member in model.members)
    assert_close(model.center().get_weights(), mean, atol=1e-7)


class Subclassed(keras.Model):
    """Does not say how it is rebuilt."""

    def __init__(self, a):
        super().__init__()
        self.dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(a))
        self.dense.build((None, 4))
        self.built = True

    def call(self, inputs):
        return self.dense(inputs)


def test_models_that_do_not_say_how_they_are_rebuilt():
    model = helpers.replicas(ReplicatedSGD(0.1), build=Subclassed)
    x, _ = data()
    assert isinstance(model.center(), Subclassed)
    np.testing.assert_allclose(model.center()(x), model(x))
    assert_equal(model.replica(1).get_weights(), model.members[1].get_weights())


# ---- errors -------------------------------------------------------------------------------------


def wider(a):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3 + a)])


def deeper(a):
    layers = [keras.layers.Dense(3) for _ in range(1 + a)]
    return keras.Sequential([keras.Input((4,)), *layers])


ONE = helpers.network(0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((helpers.network, 0, ReplicatedSGD()), "`replicas` must be an integer of at least 1"),
        ((helpers.network, 2, 0.1), "`coupling` must be one of esgd_tf.replicas, .*; got 0.1"),
        (
            (helpers.network, 2, ReplicatedSGD(), "alike"),
            "`initialization` must be independent or same; got 'alike'",
        ),
        (
            (helpers.network, 2, ReplicatedSGD(), "same", None, -1),
            "`seed` must be an integer of at least 0; got -1",
        ),
        (
            (lambda: keras.Sequential([keras.layers.Dense(3)]), 2, ReplicatedSGD()),
            "`build_model` must return a built Keras model: give it an Input",
        ),
        ((lambda: "network", 2, ReplicatedSGD()), "must return a built Keras model.*'network'"),
        ((lambda: ONE, 2, ReplicatedSGD()), "`build_model` must return a new model at every call"),
        (
            (wider, 2, ReplicatedSGD()),
            r"replica 1 has other shapes than replica 0: variable 0 is \(4, 4\) against \(4, 3\)",
        ),
        ((deeper, 2, ReplicatedSGD()), "than replica 0: 4 variables against 2"),
        (
            (lambda a: helpers.network(0), 2, ReplicatedSGD()),
            "`build_model` gave replicas 0 and 1 the same weights.*initialization='same'",
        ),
        (
            (helpers.network, 2, ReplicatedSGD(), "same", tf.distribute.get_strategy()),
            "`strategy` must be a MirroredStrategy or MultiWorkerMirroredStrategy; got",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Replicas(*arguments)


def built():
    optimizer = helpers.nesterov()
    optimizer.build(helpers.network(0).trainable_variables)
    return optimizer


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (built, "The optimizer is built already, on other weights: give a new one"),
        (
            lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
            "cannot be a LossScaleOptimizer",
        ),
    ],
)
def test_optimizers_that_do_not_fit_are_refused(optimizer, words):
    with pytest.raises(ValueError, match=words):
        helpers.replicas(ReplicatedSGD(0.1), optimizer())


def test_what_fit_does_not_take_is_refused():
    x, y = data()
    model = helpers.replicas(ReplicatedSGD(0.1))
    with pytest.raises(ValueError, match="`class_weight` is not taken: give `sample_weight`"):
        model.fit(x, y, class_weight={0: 1.0})
    with pytest.raises(ValueError, match="`validation_split` is not taken: give `validation_data"):
        model.fit(x, y, validation_split=0.5)
    with pytest.raises(ValueError, match="`class_weight` is not taken"):
        model.train_on_batch(x[:4], y[:4], class_weight={0: 1.0})
    with pytest.raises(IndexError, match=r"There are replicas 0 ... 1, not 2"):
        model.replica(2)
    with pytest.raises(IndexError):
        model.replica(-1)
    with pytest.raises(ValueError, match="Replicas step by their own optimizers"):
        model.optimizer.apply([])


@pytest.mark.parametrize("method", ["fit", "train_on_batch", "evaluate", "predict"])
def test_replicas_are_compiled_before_they_are_used(method):
    x, y = data()
    model = Replicas(helpers.network, 2, ReplicatedSGD(0.1))
    if method == "predict":
        # As in Keras, this needs no loss.
        assert model.predict(x, verbose=0).shape == y.shape
        return
    with pytest.raises(ValueError, match=r"You must call `compile\(\)` before"):
        getattr(model, method)(x, y)


def test_an_optimizer_may_be_named():
    model = Replicas(helpers.network, 2, Parle(2))
    model.compile("adam", "mse")
    assert {type(m.optimizer.outer_optimizer) for m in model.members} == {keras.optimizers.Adam}
    # Given as an object, it is left as it was, for another use.
    optimizer = keras.optimizers.SGD(0.1)
    model.compile(optimizer, "mse")
    assert not optimizer.built
    assert repr(Replicas(helpers.network, 2, ReplicatedSGD(Focusing(3))).coupling).startswith(
        "ReplicatedSGD(gamma=Focusing(steps=3"
    )


@pytest.mark.slow
def test_a_new_process_loads_every_coupling(tmp_path):
    """Only what was imported is known to Keras: `load_model` sees to it."""
    for name in ("focused", "easgd", "parle"):
        helpers.case(name).save(tmp_path / f"{name}.keras")
    code = (
        "import sys, pathlib, esgd_tf\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.keras')):\n"
        "    print(type(esgd_tf.load_model(path).coupling).__name__)\n"
    )
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["ElasticAveraging", "ReplicatedSGD", "Parle"], done.stderr
