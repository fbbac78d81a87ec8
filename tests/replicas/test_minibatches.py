"""Every replica sees its own minibatches: arrays, dealt data sets, and data sets of their own."""

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.replicas import OwnMinibatches
from esgd_tf.replicas.minibatches import dealt, make_minibatches, shuffled

X = np.arange(12)


def made(x=X, batch_size=4, *, local=(0, 1, 2), replicas=3, first_epoch=0, shuffle=True, **parts):
    return make_minibatches(
        x,
        parts.get("y"),
        parts.get("sample_weight"),
        batch_size,
        local=local,
        replicas=replicas,
        seed=parts.get("seed", 8),
        first_epoch=first_epoch,
        steps_per_epoch=parts.get("steps_per_epoch"),
        shuffle=shuffle,
    )


def orders(epochs, **options):
    """Return what each replica sees, [a, epoch, example]."""
    dataset, steps = made(**options)
    steps_taken = list(dataset.take(epochs * steps).as_numpy_iterator())
    seen = np.array([[hand[0] for hand in step] for step in steps_taken])
    return np.moveaxis(seen, 1, 0).reshape(seen.shape[1], epochs, -1)


def test_every_replica_sees_every_example_once_per_epoch():
    seen = orders(epochs=3)
    assert seen.shape == (3, 3, 12)
    assert (np.sort(seen, axis=-1) == X).all()
    # Nine orders, all different: of each replica, and in each epoch.
    assert len({tuple(order) for order in seen.reshape(9, 12)}) == 9


def test_orders_are_a_function_of_seed_and_epoch():
    seen = orders(epochs=3)
    np.testing.assert_array_equal(orders(epochs=3), seen)
    np.testing.assert_array_equal(orders(epochs=1, first_epoch=2), seen[:, 2:])
    assert (orders(epochs=3, seed=9) != seen).any()
    # A process makes its own alone, and they are what they would be beside the others.
    np.testing.assert_array_equal(orders(epochs=3, local=(2,)), seen[2:])


def test_epochs_of_other_lengths_go_on_where_the_last_one_ended():
    def seen(**options):
        dataset, steps = made(steps_per_epoch=2, **options)
        assert steps == 2
        return [step[1][0].tolist() for step in dataset.take(4).as_numpy_iterator()]

    seen_from_start, resumed = seen(), seen(first_epoch=1)
    assert resumed[:2] == seen_from_start[2:]
    # Three minibatches are one pass.
    assert sorted(np.concatenate(seen_from_start[:3])) == X.tolist()


def test_without_shuffling_all_see_the_data_as_they_are():
    np.testing.assert_array_equal(
        orders(epochs=2, shuffle=False), np.broadcast_to(X, (3, 2, len(X)))
    )


def test_the_last_minibatch_is_filled_up_from_the_start_of_the_order():
    dataset, steps = made(np.arange(10), 4, shuffle=False)
    assert steps == 3
    found = [hands[0][0].tolist() for hands in dataset.take(4).as_numpy_iterator()]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [0, 1, 2, 3]]
    dataset, steps = made(np.arange(3), 8, shuffle=False)
    assert steps == 1
    assert next(dataset.as_numpy_iterator())[0][0].tolist() == [0, 1, 2]


def test_minibatches_of_arrays_never_end():
    dataset, _ = shuffled((X,), batch_size=4, seed=0, first_step=0, shuffle=True)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    assert made()[0].cardinality() == tf.data.INFINITE_CARDINALITY


def test_inputs_targets_and_weights_stay_together():
    """Inputs may be a structure."""
    x = {"left": X, "right": np.stack([X, -X], axis=1)}
    dataset, _ = made(x, y=10 * X, sample_weight=X / 2)
    for hand in next(iter(dataset)):
        inputs, targets, weights = hand
        left = inputs["left"].numpy()
        np.testing.assert_array_equal(inputs["right"], np.stack([left, -left], axis=1))
        np.testing.assert_array_equal(targets, 10 * left)
        np.testing.assert_array_equal(weights, left / 2)


def test_the_batch_size_is_32_by_default():
    assert made(np.arange(100), None)[1] == 4


def test_minibatches_of_a_data_set_are_dealt_out_once():
    """Ten minibatches for three replicas: the last, a ragged one, does not go round."""
    dataset = tf.data.Dataset.from_tensor_slices((np.arange(39), -np.arange(39))).batch(4)
    found, steps = made(dataset, None)
    assert steps is None
    assert found.cardinality() == 3
    hands = list(found.as_numpy_iterator())
    for step, hand in enumerate(hands):
        for a, (x, y) in enumerate(hand):
            first = 4 * (3 * step + a)
            assert x.tolist() == list(range(first, first + 4))
            assert (y == -x).all()
    # What a process deals itself is what it would get beside the others.
    for theirs, ours in zip(hands, made(dataset, None, local=(1, 2))[0], strict=True):
        for (x, _), (own, _) in zip(theirs[1:], ours, strict=True):
            np.testing.assert_array_equal(x, own)


def test_a_ragged_last_minibatch_is_dealt_where_it_goes_round():
    dataset = tf.data.Dataset.range(11).batch(4)
    ((first, second, last),) = dealt(dataset, (0, 1, 2), 3).as_numpy_iterator()
    assert [first.tolist(), second.tolist(), last.tolist()] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10],
    ]


def test_structures_are_dealt_as_they_are():
    dataset = tf.data.Dataset.from_tensor_slices({"a": X, "b": -X}).batch(4)
    ((first, second),) = dealt(dataset, (0, 2), 3).as_numpy_iterator()
    assert first["a"].tolist() == [0, 1, 2, 3]
    assert second["b"].tolist() == [-8, -9, -10, -11]


def test_dealing_knows_how_often_it_can():
    dataset = tf.data.Dataset.range(10).batch(2)
    unknown = dataset.filter(lambda x: True)
    assert dealt(dataset, (0, 1), 2).cardinality() == 2
    assert dealt(dataset.repeat(), (0, 1), 2).cardinality() == tf.data.INFINITE_CARDINALITY
    assert dealt(unknown, (0, 1), 2).cardinality() == tf.data.UNKNOWN_CARDINALITY
    assert len(list(dealt(unknown, (0, 1), 2))) == 2


def test_data_sets_of_their_own_are_made_for_the_replicas_here():
    own = OwnMinibatches(lambda a: tf.data.Dataset.range(10 * a, 10 * a + 4).batch(2))
    dataset, steps = made(own, None, local=(1, 2))
    assert steps is None
    found = [[x.tolist() for x in hand] for hand in dataset.as_numpy_iterator()]
    assert found == [[[10, 11], [20, 21]], [[12, 13], [22, 23]]]


DATASET = tf.data.Dataset.range(4).batch(2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"x": DATASET}, "With a data set, targets, weights and the batch size are part of it"),
        ({"x": DATASET, "batch_size": None, "y": X}, "With a data set, targets"),
        ({"x": DATASET, "batch_size": None, "sample_weight": X}, "With a data set, targets"),
        ({"x": OwnMinibatches(lambda a: DATASET)}, "With a data set, targets"),
        ({"x": iter([1, 2])}, "`fit` takes arrays, a tf.data.Dataset of .*; got list_iterator"),
        ({"x": None}, "`fit` takes arrays, a tf.data.Dataset of minibatches, or OwnMinibatches"),
        ({"x": np.float32(1)}, "`fit` takes arrays"),
        ({"y": X[:5]}, r"The arrays must have the same length, above 0; got \[12, 5\]"),
        ({"x": X[:0]}, r"The arrays must have the same length, above 0; got \[0\]"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1; got 0"),
    ],
)
def test_other_data_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        made(**options)
