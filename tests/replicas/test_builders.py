"""How the networks of replicas are made: what a builder is called with, and what is refused."""

import functools

import keras
import numpy as np
import pytest

from esgd_tf import Replicas
from esgd_tf.replicas import ReplicatedSGD
from tests.optimizers.helpers import assert_equal
from tests.replicas import helpers


def made(build, count=3, **options):
    return Replicas(build, count, ReplicatedSGD(0.1), **options)


def seen(*parameters):
    """Return a list, and what makes a network and adds to the list what it was called with."""
    calls = []

    def remember(arguments):
        calls.append(arguments)
        return helpers.network(len(calls))

    namespace = {"remember": remember}
    exec(  # a signature cannot be made otherwise
        f"def build({', '.join(parameters)}): return remember(locals().copy())", namespace
    )
    return calls, namespace["build"]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (["a"], [{"a": 0}, {"a": 1}, {"a": 2}]),
        (["a", "/"], [{"a": 0}, {"a": 1}, {"a": 2}]),
        (["*", "a"], [{"a": 0}, {"a": 1}, {"a": 2}]),
        (["a", "l2=1e-4"], [{"a": a, "l2": 1e-4} for a in range(3)]),
        (["l2=1e-4", "*", "a"], [{"a": a, "l2": 1e-4} for a in range(3)]),
        (["l2=1e-4"], [{"l2": 1e-4}] * 3),
        (["*rest"], [{"rest": ()}] * 3),
        (["**options"], [{"options": {}}] * 3),
        ([], [{}] * 3),
    ],
    ids=str,
)
def test_only_an_argument_without_a_default_gets_the_number(parameters, expected):
    calls, build = seen(*parameters)
    made(build)
    assert calls == expected


def test_partial_builders_are_called_with_what_they_lack():
    calls, build = seen("width", "a")
    made(functools.partial(build, width=7))
    made(functools.partial(build, 7))
    assert calls == [{"width": 7, "a": a} for a in range(3)] * 2
    calls, build = seen("a")
    made(functools.partial(build, a=5))
    assert calls == [{"a": 5}] * 3


def test_several_arguments_without_defaults_are_refused():
    _, build = seen("a", "width")
    with pytest.raises(ValueError, match=r"one argument without a default.*it has a, width"):
        made(build)


def test_copies_of_models_that_cannot_be_rebuilt_are_made_by_the_same_rule():
    class Unnamed(keras.Model):
        """Does not say how it is rebuilt."""

        def __init__(self, *, number):
            super().__init__()
            self.dense = keras.layers.Dense(
                3, kernel_initializer=keras.initializers.GlorotUniform(number)
            )
            self.dense.build((None, 4))
            self.built = True

        def call(self, inputs):
            return self.dense(inputs)

    model = helpers.replicas(ReplicatedSGD(0.1), build=Unnamed)
    assert_equal(model.replica(1).get_weights(), model.members[1].get_weights())


def test_a_layer_in_two_replicas_is_refused():
    shared = keras.layers.Dense(4, name="shared")

    def build(a):
        own = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(a))
        return keras.Sequential([keras.Input((4,)), shared, own])

    with pytest.raises(ValueError, match=r"Replicas 0 and 1 share the weight '.*shared/kernel'"):
        made(build)


@pytest.mark.parametrize("same", [(0, 1), (0, 2), (1, 2)])
def test_any_two_equal_replicas_are_refused(same):
    def build(a):
        return helpers.network(same[0] if a in same else a)

    with pytest.raises(ValueError, match=rf"gave replicas {same[0]} and {same[1]} the same"):
        made(build)


def test_layers_frozen_in_some_replicas_only_are_refused():
    model = made(helpers.network)
    model.members[1].layers[0].trainable = False
    with pytest.raises(ValueError, match="replica 1 has 0 trainable weights and the center 2"):
        model.compile("sgd", "mse")


def test_many_replicas_say_that_tracing_takes_its_time():
    model = made(helpers.network, count=33, initialization="same")
    with pytest.warns(UserWarning, match="33 replicas in one process are traced one by one"):
        model.compile("sgd", "mse")


@pytest.mark.slow
def test_a_loaded_replica_has_the_random_state_of_its_own(tmp_path):
    """Each goes on with its own dropout, not with that of the first."""

    def build(a):
        drop = keras.layers.Dropout(0.5, seed=a)
        return keras.Sequential([keras.Input((4,)), drop, *helpers.network(a).layers])

    def run(stop):
        model = helpers.replicas(ReplicatedSGD(0.1), helpers.nesterov(), build=build)
        if stop:
            helpers.fit(model)
            model.save(tmp_path / "model.keras")
            model = keras.saving.load_model(tmp_path / "model.keras")
        helpers.fit(model, epochs=2, initial_epoch=int(stop))
        states = [member.layers[0].seed_generator.state.numpy() for member in model.members]
        return states, helpers.weights(model)

    (states, weights), (expected, expected_weights) = run(True), run(False)
    np.testing.assert_array_equal(states, expected)
    assert (states[0] != states[1]).any()
    assert_equal(weights, expected_weights)
