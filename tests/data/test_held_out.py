"""Validation images, held out of the training images."""

from pathlib import Path

import numpy as np
import pytest

from esgd_tf.data import DataError, ImageData, hold_out


@pytest.fixture
def images():
    """A data set whose images tell which they are: 60 of class 0, 30 of 1, 10 of 2."""
    labels = np.repeat([0, 1, 2], [60, 30, 10]).astype(np.int32)
    pixels = np.arange(100, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ImageData(
        "made", pixels, labels[::-1].copy(), pixels[:5] + 200, labels[:5], 3, ("a", "b", "c"),
        Path(),
    )  # fmt: skip


def numbers(array):
    return array.ravel().tolist()


def test_every_training_image_is_in_one_of_the_two_sets_with_its_label(images):
    split = hold_out(images, 20)
    train, held = numbers(split.train_images), numbers(split.test_images)
    assert len(held) == 20
    assert sorted(train + held) == list(range(100))
    assert split.train_labels.tolist() == images.train_labels[train].tolist()
    assert split.test_labels.tolist() == images.train_labels[held].tolist()


def test_the_classes_keep_their_shares(images):
    assert np.bincount(hold_out(images, 20).test_labels).tolist() == [12, 6, 2]


def test_the_images_are_the_same_every_time_and_nested(images):
    first, again, more = (set(numbers(hold_out(images, n).test_images)) for n in (20, 20, 50))
    assert first == again
    assert first < more


def test_nothing_is_held_out_by_default(images):
    assert hold_out(images, 0) is images


@pytest.mark.parametrize("count", [-1, 100, 101])
def test_some_images_must_be_left_to_train_on(images, count):
    with pytest.raises(DataError, match=r"hold out 1 to 99\.$"):
        hold_out(images, count)
