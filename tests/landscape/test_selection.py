"""Names of layers and variables mean one thing, or are refused."""

import keras
import numpy as np
import pytest

from esgd_tf.landscape._selection import select

L = keras.layers


def block(name):
    x = keras.Input((4,))
    return keras.Model(x, L.Dense(4, name="dense")(L.Dense(4, name="other")(x)), name=name)


@pytest.fixture
def nested():
    """A model with three layers of the name "dense", two of them in models of their own."""
    x = keras.Input((4,))
    one, two = block("one"), block("two")
    return keras.Model(x, L.Dense(2, name="dense")(two(one(x))), name="whole")


def chosen(model, *items):
    return select(model, model.trainable_variables, list(items))


class TestNames:
    def test_of_several_layers_is_refused_with_their_paths(self, nested):
        with pytest.raises(ValueError, match="names several: whole/dense, whole/one/dense, whole/"):
            chosen(nested, "dense")
        with pytest.raises(ValueError, match="whole/one/other/kernel, whole/two/other/kernel"):
            chosen(nested, "other/kernel")  # Keras gives both variables this path

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("one/dense", [2, 3]), ("whole/one/dense", [2, 3]), ("two/other", [4, 5]),
            ("whole/dense", [8, 9]), ("one", [0, 1, 2, 3]), ("whole/two/dense/bias", [7]),
        ],
    )  # fmt: skip
    def test_paths(self, nested, name, expected):
        assert chosen(nested, name) == expected

    def test_a_whole_path_goes_before_the_end_of_one(self):
        x = keras.Input((4,))
        model = keras.Model(x, L.Dense(2, name="dense")(block("whole")(x)), name="whole")
        assert chosen(model, "whole/dense") == [4, 5]
        assert chosen(model, "whole/whole/dense") == [2, 3]

    def test_a_part_of_a_name_is_no_name(self, nested):
        for name in ("ne/dense", "den", "dense/", "", "e"):
            with pytest.raises(ValueError, match="no trainable variable of the model"):
                chosen(nested, name)

    def test_a_layer_that_is_shared_is_one(self):
        x, shared = keras.Input((4,)), L.Dense(4, name="dense")
        one, two = (keras.Model(x, shared(x), name=name) for name in ("one", "two"))
        model = keras.Model(x, two(one(x)))
        assert chosen(model, "dense") == [0, 1]

    def test_a_wrapper_and_what_is_in_it(self):
        model = keras.Sequential([keras.Input((3, 4)), L.TimeDistributed(L.Dense(2, name="in"))])
        assert chosen(model, "in") == chosen(model, "time_distributed") == [0, 1]

    def test_a_subclassed_model_with_two_of_one_name(self):
        class Two(keras.Model):
            def __init__(self):
                super().__init__(name="two")
                self.a, self.b = L.Dense(3, name="dense"), L.Dense(3, name="dense")

            def call(self, x):
                return self.b(self.a(x))

        model = Two()
        model(np.ones((1, 3), "float32"))
        with pytest.raises(ValueError, match="names several"):
            chosen(model, "dense")
        assert chosen(model, model.b) == [2, 3]


class TestObjects:
    def test_layers_variables_and_doubles(self, nested):
        one = nested.get_layer("one")
        assert chosen(nested, one.get_layer("dense"), one) == [0, 1, 2, 3]
        assert chosen(nested, nested.trainable_variables[5], "two/other/bias") == [5]

    def test_what_is_not_of_the_model(self, nested):
        stranger = block("stranger")
        for item in (stranger, stranger.trainable_variables[0], stranger.get_layer("dense")):
            with pytest.raises(ValueError, match="no trainable variable of the model"):
                chosen(nested, item)

    def test_a_layer_without_weights(self):
        model = keras.Sequential([keras.Input((4,)), L.Dropout(0.5, name="drop"), L.Dense(1)])
        for item in ("drop", model.get_layer("drop")):
            with pytest.raises(ValueError, match="'drop' is no trainable variable"):
                chosen(model, item)

    def test_frozen(self, nested):
        nested.get_layer("one").trainable = False
        assert chosen(nested, "two") == [0, 1, 2, 3]
        with pytest.raises(ValueError, match="'one' is no trainable variable"):
            chosen(nested, "one")

    def test_nothing(self, nested):
        with pytest.raises(ValueError, match="leaves no weight"):
            chosen(nested)

    def test_no_list(self, nested):
        for item in ("one", nested.get_layer("dense"), nested.trainable_variables[0]):
            with pytest.raises(ValueError, match="put it into brackets"):
                select(nested, nested.trainable_variables, item)
