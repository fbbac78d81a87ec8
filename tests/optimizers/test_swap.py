"""The exchange of the model's weights with the anchor or the mean."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.optimizers import EntropySGD, LocalEntropy
from tests.optimizers import helpers

OPTIONS = {"langevin_steps": 3, "gamma": 0.4, "noise": 0.01, "seed": 5, "momentum": 0.5}


def optimizer(**options):
    return EntropySGD(0.8, **(OPTIONS | options))


def step(tested, model, number, at=None):
    """Take a step with the gradient at `at`, or at what the model holds."""
    grads = helpers.gradient(at or helpers.numpy(model), number)
    tested.apply([tf.constant(g) for g in grads], model)


def in_mid_loop(tested, steps=5):
    model = helpers.variables(helpers.start_weights())
    for number in range(steps):
        step(tested, model, number)
    return model


def state(tested, model):
    return helpers.numpy([*model, *tested.variables])


@pytest.mark.parametrize("where", ["anchor", "mean"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_there_and_back(float64, where, momentum):
    tested = optimizer(momentum=momentum)
    model = in_mid_loop(tested)
    slots = {"anchor": tested._loop.anchors, "mean": tested._loop.means}[where]
    langevin_weights, placed, before = (
        helpers.numpy(model), helpers.numpy(slots), state(tested, model),
    )  # fmt: skip
    helpers.assert_differ(langevin_weights, placed)

    assert tested._swap.place(where) == "langevin"
    helpers.assert_equal(helpers.numpy(model), placed)
    helpers.assert_equal(helpers.numpy(slots), langevin_weights)
    assert tested._swap.place(where) == where  # twice is once
    helpers.assert_equal(helpers.numpy(model), placed)

    assert tested._swap.place("langevin") == where
    # All but the fingerprints, the last of the optimizer's own variables.
    fingerprints = len(model) + len(tested._variables) - 1
    after = state(tested, model)
    del before[fingerprints], after[fingerprints]
    helpers.assert_equal(after, before)


def test_from_the_anchor_to_the_mean(float64):
    tested = optimizer()
    model = in_mid_loop(tested)
    langevin_weights, mean = helpers.numpy(model), helpers.numpy(tested._loop.means)
    tested._swap.place("anchor")
    assert tested._swap.place("mean") == "anchor"
    helpers.assert_equal(helpers.numpy(model), mean)
    assert tested._swap.place("langevin") == "mean"
    helpers.assert_equal(helpers.numpy(model), langevin_weights)


def test_nothing_moves_between_two_inner_loops(float64):
    tested = optimizer()
    assert tested._swap.place("anchor") is None  # not even built
    model = in_mid_loop(tested, steps=6)
    before = state(tested, model)
    assert tested._swap.place("anchor") is None and tested._swap.place("mean") is None
    helpers.assert_equal(state(tested, model), before)


@pytest.mark.parametrize("where", ["anchor", "mean"])
def test_the_next_step_puts_the_langevin_weights_back(float64, where):
    one, two = optimizer(), optimizer()
    undisturbed, exchanged = in_mid_loop(one), in_mid_loop(two)
    at = helpers.numpy(undisturbed)
    two._swap.place(where)
    for number in range(5, 9):
        step(one, undisturbed, number, at)
        step(two, exchanged, number, at)
        helpers.assert_equal(helpers.numpy(exchanged), helpers.numpy(undisturbed))
        at = helpers.numpy(undisturbed)


@pytest.mark.parametrize("where", ["anchor", "mean"])
def test_replaced_weights_start_their_inner_loop_anew(float64, where):
    tested = optimizer(noise=0.0, nesterov=False, averaging=0.75)
    model = in_mid_loop(tested, steps=4)  # one step into the second inner loop
    kept = helpers.numpy(model)[1:]
    anchors, means = helpers.numpy(tested._loop.anchors), helpers.numpy(tested._loop.means)
    velocities = helpers.numpy(tested._loop.velocities)
    tested._swap.place(where)
    new = np.full(helpers.SHAPES[0], 0.25)
    model[0].assign(new)
    ones = [np.ones(shape) for shape in helpers.SHAPES]
    tested.apply([tf.constant(g) for g in ones], model)

    gamma = OPTIONS["gamma"] * 1.001**2
    expected_velocity = [ones[0], *(-v / 0.1 * 0.5 + 1 for v in velocities[1:])]
    x = [new, *anchors[1:]]
    langevin_weights = [
        w - 0.1 * (v + gamma * (w - a))
        for w, v, a in zip([new, *kept], expected_velocity, x, strict=True)
    ]
    mean = [0.75 * m + 0.25 * w for m, w in zip([new, *means[1:]], langevin_weights, strict=True)]
    helpers.assert_close(helpers.numpy(tested._loop.anchors), x)
    helpers.assert_close(helpers.numpy(model), langevin_weights)
    helpers.assert_close(helpers.numpy(tested._loop.means), mean)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_permutation_is_a_replacement_and_rounding_is_none(dtype):
    start = np.linspace(0.5, 1.5, 64)
    model = [keras.Variable(start, dtype=dtype), keras.Variable(start, dtype=dtype)]
    tested = optimizer(noise=0.0)
    for _ in range(2):
        tested.apply([tf.fill([64], tf.constant(1.0, dtype))] * 2, model)
    langevin_weights = tf.cast(model[1].value, tf.float64).numpy()
    tested._swap.place("anchor")
    turned = model[0].value[::-1]
    model[0].assign(turned)
    # What Keras' SwapEMAWeights does: it swaps by sums and differences.
    other = tf.cast(model[1].value * tf.constant(0.7, dtype), dtype)
    model[1].assign((model[1].value + other) - other)
    rounded = tf.identity(model[1].value)
    tested._swap.place("langevin")
    np.testing.assert_array_equal(tf.cast(model[0].value, tf.float64), tf.cast(turned, tf.float64))
    np.testing.assert_array_equal(tf.cast(model[1].value, tf.float64), langevin_weights)
    helpers.assert_equal(
        [tf.cast(anchor, tf.float64) for anchor in tested.anchors()],
        [tf.cast(value, tf.float64) for value in (turned, rounded)],
    )


# ---- through fit --------------------------------------------------------------------------------


class BackToLangevin(keras.callbacks.Callback):
    """What a callback has to do for two calls of `fit` to be one."""

    def on_train_begin(self, logs=None):
        self.model.optimizer._swap.place("langevin")


def fitted(*epochs, **options):
    model = helpers.network(optimizer(**options))
    for number in epochs:
        helpers.fit(model, epochs=number, callbacks=[BackToLangevin()])
    return model


def test_fit_ends_at_the_anchor_and_goes_on_from_the_langevin_weights(float64):
    # Five steps an epoch and three an inner loop: every epoch ends within one.
    twice, once = fitted(1, 1), fitted(2)
    helpers.assert_equal(
        helpers.numpy(twice.optimizer.variables), helpers.numpy(once.optimizer.variables)
    )
    helpers.assert_equal(twice.get_weights(), once.get_weights())

    start, gradient = helpers.network_gradient()
    history = helpers.reference(
        keras.optimizers.SGD(0.8), start, 10, gradient, langevin_steps=3, noise=0.01, seed=5,
        momentum=0.5, nesterov=True, gamma=lambda t: 0.4 * 1.001**t,
    )  # fmt: skip
    helpers.assert_close(once.get_weights(), history[-1]["anchor"])
    once.optimizer._swap.place("langevin")
    helpers.assert_close(once.get_weights(), history[-1]["weights"])


def test_without_the_callback_one_gradient_is_that_at_the_anchor(float64):
    """A hazard: the step that finds the anchor in the model has taken its gradient there.

    Keras calls nothing of the optimizer between the start of `fit` and the forward pass.
    """
    model = helpers.network(optimizer())
    record = helpers.Record()
    helpers.fit(model)
    helpers.fit(model, callbacks=[record])
    start, gradient = helpers.network_gradient()
    at_anchor = {}

    def hindered(weights, step):
        return gradient(at_anchor.get(step, weights), step)

    options = {
        "langevin_steps": 3, "noise": 0.01, "seed": 5, "momentum": 0.5, "nesterov": True,
        "gamma": lambda t: 0.4 * 1.001**t,
    }  # fmt: skip
    first = helpers.reference(keras.optimizers.SGD(0.8), start, 5, gradient, **options)
    at_anchor[5] = first[-1]["anchor"]
    history = helpers.reference(keras.optimizers.SGD(0.8), start, 10, hindered, **options)
    for held, expected in zip(record.weights, history[5:], strict=True):
        helpers.assert_close(held, expected["weights"])


def test_set_weights_after_fit_is_not_undone(float64):
    model = helpers.network(optimizer(noise=0.0), run_eagerly=True)
    helpers.fit(model)  # ends in phase 2
    new = [0.5 * np.ones_like(w) for w in model.get_weights()]
    model.set_weights(new)
    record = helpers.Record(lambda optimizer: helpers.numpy(optimizer._loop.anchors))
    helpers.fit(model, callbacks=[record])
    # Its next step, the last of the inner loop, starts and ends an inner loop of its own.
    helpers.assert_equal(record.values[0], new)
    _, gradient = helpers.network_gradient()
    (only,) = helpers.reference(
        keras.optimizers.SGD(0.8), new, 1, lambda w, step: gradient(w, 5), langevin_steps=1,
        momentum=0.5, nesterov=True,
    )  # fmt: skip
    helpers.assert_close(record.weights[0], only["weights"])


def test_early_stopping_with_the_best_weights(float64):
    # It sets the weights in on_train_end, after the optimizer has put the anchor in place.
    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            logs["loss"] = float(epoch)

    model = helpers.network(optimizer(), run_eagerly=True)
    record = helpers.Record()
    stop = keras.callbacks.EarlyStopping("loss", patience=1, restore_best_weights=True)
    helpers.fit(model, epochs=9, callbacks=[Worse(), stop, record])
    assert len(record.weights) == 10
    helpers.assert_equal(model.get_weights(), record.weights[4])
    helpers.fit(model)
    anchor = helpers.numpy(model.optimizer._loop.anchors)
    assert all(np.isfinite(a).all() for a in anchor)
    assert int(model.optimizer.outer_iterations) == 5


@pytest.mark.slow
def test_under_a_strategy(float64, two_cpus):
    with two_cpus.scope():
        twice = fitted(1, 1)
    once = fitted(2)
    helpers.assert_close(twice.get_weights(), once.get_weights(), atol=1e-12)
    for where in ("langevin", "mean", "anchor", "langevin"):
        for model in (once, twice):
            model.optimizer._swap.place(where)
        helpers.assert_close(twice.get_weights(), once.get_weights(), atol=1e-12)
    # Every device has changed places.
    for variable in twice.trainable_variables:
        one, two = (v.numpy() for v in two_cpus.experimental_local_results(variable.value))
        np.testing.assert_array_equal(one, two)
    # Weights replaced meanwhile start anew there, too.
    with two_cpus.scope():
        assert twice.optimizer._swap.place("mean") == "langevin"
    new = [0.5 * np.ones_like(w) for w in twice.get_weights()]
    twice.set_weights(new)
    record = helpers.Record(lambda optimizer: helpers.numpy(optimizer._loop.anchors))
    helpers.fit(twice, callbacks=[record])
    helpers.assert_equal(record.values[0], new)


def test_evaluation_and_prediction_leave_it_alone(float64):
    model = helpers.network(LocalEntropy("sgd", **OPTIONS), run_eagerly=True)
    helpers.train_on_batches(model, 4)
    model.optimizer._swap.place("anchor")
    before = helpers.numpy([*model.variables, *model.optimizer.variables])
    x, y = helpers.data("float64")
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    after = helpers.numpy([*model.variables, *model.optimizer.variables])
    helpers.assert_equal(after, before)
