"""What may be passed as batches of training data."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf import reestimate_batch_norm
from esgd_tf.training.batch_inputs import input_batches

X, Y = np.arange(14, dtype="float32").reshape(7, 2), np.zeros(7)


class Sequence(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self._batches = batches

    @property
    def num_batches(self):
        return self._batches

    def __getitem__(self, a):  # never an IndexError
        return X[4 * a : 4 * a + 4], Y[4 * a : 4 * a + 4]


FORMS = {
    "dataset": tf.data.Dataset.from_tensor_slices((X, Y)).batch(4),
    "dataset of inputs": tf.data.Dataset.from_tensor_slices(X).batch(4),
    "tuples": [(X[:4], Y[:4]), (X[4:], Y[4:], Y[4:])],
    "lists": [[X[:4], Y[:4]], [X[4:]]],
    "inputs": [X[:4], tf.constant(X[4:])],
    "one without examples": [X[:4], X[4:4], X[4:]],
    "generator": lambda: (x for x in (X[:4], X[4:])),
    "tuple of tuples": ((X[:4], Y[:4]), (X[4:],)),
    "PyDataset": Sequence(2),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_data(form):
    data = FORMS[form]
    found = list(input_batches(data() if callable(data) else data))
    assert [count for count, _ in found] == [4, 3]
    assert all(isinstance(x, tf.Tensor) for _, x in found)
    np.testing.assert_array_equal(np.concatenate([x for _, x in found]), X)


def test_several_inputs():
    for inputs in ({"a": X, "b": X}, (X, X), [X, X]):
        ((count, found),) = input_batches([(inputs, Y)])
        assert count == 7
        assert type(found) is type(inputs)
    ((count, found),) = input_batches([{"a": X, "b": X}])
    assert count == 7
    assert list(found) == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, r"this is an array of shape \(7, 2\): pass tf.data.*or \[data\]"),
        (tf.constant(X), r"this is an array of shape \(7, 2\)"),
        ((X, Y), r"a tuple of an array of shape \(7, 2\) and an array of shape \(7,\)"),
        (({"a": X}, Y), "a tuple of a dict with the keys 'a' and an array"),
        ({"a": X, "b": X}, "a dict with the keys 'a', 'b'"),
        ([(X, X, X, Y)], r"4 parts: put several inputs into one tuple"),
        ([()], "0 parts"),
        ([1.0, 2.0], r"whose first axis counts the examples, and one of its elements is float 1.0"),
        ("abc", "one of its elements is str 'a'"),
        ([(None, Y)], "one of its elements is tuple .None, "),
        (tf.data.Dataset.from_tensors(X).repeat(), r"never ends: .*take\(50\)"),
        (Sequence(None), "never ends"),
    ],
)
def test_what_is_no_batches_is_refused_in_a_sentence(data, message):
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    with pytest.raises(ValueError, match=message) as caught:
        reestimate_batch_norm(model, data)
    assert "\n" not in str(caught.value)
    assert np.array_equal(model.layers[0].moving_mean, np.zeros(2))


@pytest.mark.parametrize("data", [None, 3, lambda: [X]])
def test_what_is_no_iterable_is_refused(data):
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    with pytest.raises(TypeError, match=r"must be batches, .*to iterate over; got"):
        reestimate_batch_norm(model, data)


def test_an_iterator_that_has_been_used_up():
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    data = (x for x in [X])
    assert reestimate_batch_norm(model, data) == 7
    with pytest.raises(ValueError, match=r"no batch .* only once"):
        reestimate_batch_norm(model, data)
