import itertools

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.data import (
    AUGMENTATIONS,
    DataError,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)

N, B = 23, 5
STEPS = 5


def _identity(images):
    return tf.cast(images, tf.float32)


@pytest.fixture
def pairs():
    """Images that say who they are: value i everywhere but for one bright pixel."""
    images = np.repeat(np.arange(N, dtype=np.uint8), 6 * 6).reshape(N, 6, 6, 1)
    images[:, 1, 2] += 100
    return images, np.arange(N, dtype=np.int64) * 2


def _batches(pairs, count=None, **settings):
    settings = {"batch_size": B, "seed": 7, "preprocess": _identity, **settings}
    dataset = training_batches(*pairs, **settings)
    return [(x.numpy(), y.numpy()) for x, y in itertools.islice(dataset, count)]


def _equal(first, second):
    return len(first) == len(second) and all(
        np.array_equal(a, b) and np.array_equal(c, d)
        for (a, c), (b, d) in zip(first, second, strict=True)
    )


def test_steps_per_epoch():
    assert [steps_per_epoch(60000, 128), steps_per_epoch(10, 5), steps_per_epoch(11, 5)] == [
        469,
        2,
        3,
    ]
    for batch_size in (0, -1, 11):
        with pytest.raises(DataError, match="from 1 to the 10 images"):
            steps_per_epoch(10, batch_size)


def test_an_epoch_holds_every_image_and_is_filled_with_its_first(pairs):
    for labels in _epoch_labels(pairs, 4):
        assert len(labels) == STEPS * B
        assert set(labels[:N]) == set(pairs[1])
        np.testing.assert_array_equal(labels[N:], labels[: STEPS * B - N])


def _epoch_labels(pairs, epochs):
    labels = np.concatenate([y for _, y in _batches(pairs, epochs=epochs)])
    return labels.reshape(epochs, STEPS * B)


def test_images_keep_their_labels(pairs):
    for images, labels in _batches(pairs, epochs=2):
        np.testing.assert_array_equal(images[:, 0, 0, 0] * 2, labels)
        np.testing.assert_array_equal(images[:, 1, 2, 0], images[:, 0, 0, 0] + 100)


def test_types_and_static_shapes(pairs):
    for augmentation in AUGMENTATIONS:
        dataset = training_batches(
            *pairs, batch_size=B, seed=0, preprocess=_identity, augmentation=augmentation
        )
        assert dataset.element_spec == (
            tf.TensorSpec([B, 6, 6, 1], tf.float32),
            tf.TensorSpec([B], tf.int32),
        )
        assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.few(1)
def test_same_seed_same_batches(pairs, augmentation):
    settings = {"augmentation": augmentation, "epochs": 2}
    first = _batches(pairs, **settings)
    assert _equal(first, _batches(pairs, **settings))
    assert not _equal(first, _batches(pairs, seed=8, **settings))


def test_epochs_and_seeds_differ_in_order(pairs):
    orders = [tuple(labels) for labels in _epoch_labels(pairs, 6)]
    orders += [
        tuple(np.concatenate([y for _, y in _batches(pairs, epochs=1, seed=s)]))
        for s in (0, 1, -1, 2**62, 2**32)
    ]
    assert len(set(orders)) == 11
    assert tuple(sorted(orders[0])) not in orders


def test_orders_are_uniform(pairs):
    """Over 460 epochs every image stands in every place about 20 times."""
    dataset = training_batches(*pairs, batch_size=N, seed=3, preprocess=_identity, epochs=460)
    orders = np.array([y for _, y in dataset.as_numpy_iterator()]) // 2
    counts = np.stack([np.bincount(place, minlength=N) for place in orders.T])
    statistic = ((counts - 20) ** 2 / 20).sum() * (N - 1) / N
    # Chi squared with 22 * 22 degrees of freedom: 484 +- 31.
    assert abs(statistic - 484) < 4 * 31


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.few(1)
def test_resumed_run_sees_what_the_whole_run_saw(pairs, augmentation):
    whole = _batches(pairs, augmentation=augmentation, epochs=4)
    for epoch, batch in ((0, 3), (1, 0), (2, 4)):
        place = {"first_epoch": epoch, "first_batch": batch}
        rest = _batches(pairs, augmentation=augmentation, epochs=4 - epoch, **place)
        assert _equal(whole[epoch * STEPS + batch :], rest)
    # Without an end too, and past the place where the other stopped.
    endless = _batches(pairs, 3 * STEPS, augmentation=augmentation, first_epoch=2, first_batch=1)
    assert _equal(whole[2 * STEPS + 1 :], endless[: 2 * STEPS - 1])


def test_same_image_is_augmented_anew_in_every_epoch(pairs):
    images = np.arange(36, dtype=np.uint8).reshape(1, 6, 6, 1)
    one = (images, np.zeros(1, np.int32))
    seen = {
        x.tobytes() for x, _ in _batches(one, batch_size=1, augmentation="flip_crop", epochs=30)
    }
    assert len(seen) > 20


def test_batches_of_one_epoch_get_other_samples():
    image = np.arange(36, dtype=np.uint8).reshape(1, 6, 6, 1)
    same = (np.repeat(image, 40, axis=0), np.zeros(40, np.int32))
    seen = {
        x.tobytes() for x, _ in _batches(same, batch_size=1, augmentation="flip_crop", epochs=1)
    }
    assert len(seen) > 25


def test_order_does_not_depend_on_augmentation(pairs):
    labels = [
        np.concatenate([y for _, y in _batches(pairs, augmentation=a, epochs=2)])
        for a in AUGMENTATIONS
    ]
    np.testing.assert_array_equal(labels[0], labels[1])
    np.testing.assert_array_equal(labels[0], labels[2])


def test_preprocessing_after_or_before_augmentation(pairs):
    class Recorder:
        def __init__(self, augment_first):
            self.augment_first = augment_first
            self.dtypes = []

        def __call__(self, images):
            self.dtypes.append(images.dtype)
            # Tells rows apart: a shifted image gives other values before than after.
            return tf.cast(images, tf.float32) + tf.reshape(tf.range(6.0) * 1000, [1, 6, 1, 1])

    first, second = Recorder(True), Recorder(False)
    after = _batches(pairs, augmentation="flip_crop", preprocess=first, epochs=1)
    before = _batches(pairs, augmentation="flip_crop", preprocess=second, epochs=1)
    assert first.dtypes[0] == second.dtypes[0] == tf.uint8
    # Preprocessed last: every row has its own number. First: shifted rows brought theirs along.
    rows = [np.concatenate([x for x, _ in out])[:, :, 0, 0] // 1000 for out in (after, before)]
    np.testing.assert_array_equal(rows[0], np.tile(np.arange(6), (STEPS * B, 1)))
    assert not np.array_equal(rows[1], rows[0])
    assert np.isin(rows[1], np.arange(6)).all()


def test_cardinality_counts_batches(pairs):
    def cardinality(**settings):
        dataset = training_batches(*pairs, batch_size=B, seed=0, preprocess=_identity, **settings)
        assert len(list(dataset)) == dataset.cardinality()
        return int(dataset.cardinality())

    assert cardinality(epochs=3) == 15
    assert cardinality(epochs=3, first_epoch=9, first_batch=2) == 13
    assert cardinality(epochs=0) == 0


def test_whole_batches_only(pairs):
    ((images, labels),) = _batches(pairs, batch_size=N, epochs=1)
    assert sorted(labels) == sorted(pairs[1])
    assert images.shape == (N, 6, 6, 1)


def test_batch_of_one(pairs):
    assert len(_batches(pairs, batch_size=1, epochs=1)) == N


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "from 1 to the 23 images"),
        ({"batch_size": N + 1}, "from 1 to the 23 images"),
        ({"first_batch": STEPS}, "no batch 5 of epoch 0"),
        ({"first_batch": -1}, "no batch -1"),
        ({"first_epoch": -1}, "epochs count from 0"),
        ({"seed": 2**63}, "must fit 64 bits"),
        ({"epochs": -1}, "must not be negative"),
        ({"augmentation": "cutout"}, "no augmentation 'cutout'"),
    ],
)
def test_settings_that_make_no_sense(pairs, settings, says):
    with pytest.raises(DataError, match=says):
        _batches(pairs, **settings)


def test_arrays_that_make_no_sense(pairs):
    images, labels = pairs
    for bad in ((images[..., 0], labels), (images, labels[:-1]), (images[:0], labels[:0])):
        with pytest.raises(DataError, match=r"Images must be \[n, h, w, c\]"):
            _batches(bad)
        with pytest.raises(DataError, match=r"Images must be \[n, h, w, c\]"):
            evaluation_batches(*bad, batch_size=2, preprocess=_identity)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_evaluation_in_order(pairs, batch_size):
    dataset = evaluation_batches(*pairs, batch_size=batch_size, preprocess=_identity)
    batches = [(x.numpy(), y.numpy()) for x, y in dataset]
    assert len(batches) == dataset.cardinality() == -(-N // batch_size)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), pairs[0])
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), pairs[1])
    assert all(len(y) == batch_size for _, y in batches[:-1])
    assert batches[0][0].dtype == np.float32
    assert batches[0][1].dtype == np.int32
    with pytest.raises(DataError, match="at least 1"):
        evaluation_batches(*pairs, batch_size=0, preprocess=_identity)
