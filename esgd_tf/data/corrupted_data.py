"""Corrupt the pixels and labels of a data set; `corruption` says what each kind means.

Noise on inputs is added after preprocessing, batch by batch, by `input_noise`. Nothing here needs
TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from esgd_tf.data.corruption import (
    BOTH,
    TEST,
    TRAIN,
    Corruption,
    check_lines,
    check_seed,
    check_sequence,
    generator,
)
from esgd_tf.data.errors import DataError
from esgd_tf.data.sources import ImageData

Pixel = TypeVar("Pixel", bound=np.generic)

__all__ = ["corrupt_data", "corrupt_new_images"]


def corrupt_data(
    images: ImageData, corruptions: Sequence[Corruption], *, seed: int = 0
) -> ImageData:
    """Apply the corruptions of pixels and labels; `input_corruption` adds the noise on inputs.

    Call it before `preprocessor`, which then fits what the network will see. Under one seed the
    wrong labels are nested: those that are wrong at one rate are wrong at every higher rate, and
    are the same there.

    Args:
        images: ImageData. The data set, whose arrays are not written to.
        corruptions: sequence of Corruption. What to do, in this order. Noise on inputs is checked,
            and not applied.
        seed: int of 64 bits. Each kind of corruption has its own random numbers under it. Defaults
            to 0.

    Returns:
        The corrupted set, with the same numbers of images and classes. "double" makes images
        [n, h, 2 w, c], and names the classes "sum 0" ... "sum K - 1", since a label is now a sum.

    Raises:
        DataError: The seed does not fit 64 bits, noise is followed by a kind that moves pixels, a
            kind is named twice, there is a single class and so no wrong label, or an image has
            fewer than k rows or columns.
    """
    check_sequence(corruptions)
    check_seed(seed)
    apply: dict[str, Callable[[ImageData, int], ImageData]] = {
        "double": _double,
        "scrambled": _scrambled,
        "pixel_shuffle": _pixel_shuffle,
        "random_pixels": _random_pixels,
    }
    for corruption in corruptions:
        if corruption.kind in apply:
            images = apply[corruption.kind](images, seed)
        elif corruption.kind == "label_noise":
            images = _label_noise(images, corruption.amount, seed)
        elif corruption.kind == "some_noise":
            check_lines(int(corruption.amount), images.train_images.shape[1:3])
    return images


def corrupt_new_images(
    images: NDArray[Pixel], corruptions: Sequence[Corruption], *, seed: int = 0
) -> NDArray[Pixel]:
    """Corrupt images from outside the data set as `corrupt_data` corrupted the test images.

    Only the order of the pixels is changed. Where "double" is among the corruptions, the images
    must be pairs already: two of them side by side.

    Args:
        images: array of shape [n, h, w, c], or [n, h, 2 w, c] if "double" is among the
            corruptions. The images.
        corruptions: sequence of Corruption. What was done to the data set, in this order.
        seed: int of 64 bits. The seed of the data set's corruption. Defaults to 0.

    Returns:
        Images of the same shape.

    Raises:
        DataError: The seed does not fit 64 bits.
    """
    check_seed(seed)
    kinds = [corruption.kind for corruption in corruptions]
    if "pixel_shuffle" not in kinds:
        return images
    if "double" in kinds[kinds.index("pixel_shuffle") :]:  # paired after the shuffling
        halves = np.split(images, 2, axis=2)
        return np.concatenate([_shuffled(half, seed) for half in halves], axis=2)
    return _shuffled(images, seed)


def _double(data: ImageData, seed: int) -> ImageData:
    def pair(
        images: NDArray[np.uint8], labels: NDArray[np.int32], split: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        other = generator(seed, "double", split).permutation(len(labels))
        sums = (labels + labels[other]) % data.num_classes
        return np.concatenate([images, images[other]], axis=2), sums.astype(labels.dtype)

    train_images, train_labels = pair(data.train_images, data.train_labels, TRAIN)
    test_images, test_labels = pair(data.test_images, data.test_labels, TEST)
    return dataclasses.replace(
        data,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        label_names=tuple(f"sum {k}" for k in range(data.num_classes)),
    )


def _scrambled(data: ImageData, seed: int) -> ImageData:
    rng = generator(seed, "scrambled", TRAIN)
    return dataclasses.replace(data, train_labels=rng.permutation(data.train_labels))


def _label_noise(data: ImageData, rate: float, seed: int) -> ImageData:
    labels, others = data.train_labels, data.num_classes - 1
    if others < 1:
        raise DataError("label_noise needs at least 2 classes to choose a wrong one from.")
    # Every label takes two random numbers whatever the rate. So the wrong labels are nested, and
    # those of the first n images do not depend on how many images follow.
    coins, samples = generator(seed, "label_noise", TRAIN).random((len(labels), 2)).T
    shifts = 1 + np.floor(samples * others).astype(labels.dtype)
    wrong = (labels + shifts) % data.num_classes
    noisy = np.where(coins < rate, wrong, labels).astype(labels.dtype)
    return dataclasses.replace(data, train_labels=noisy)


def _pixel_shuffle(data: ImageData, seed: int) -> ImageData:
    return dataclasses.replace(
        data,
        train_images=_shuffled(data.train_images, seed),
        test_images=_shuffled(data.test_images, seed),
    )


def _shuffled(images: NDArray[Pixel], seed: int) -> NDArray[Pixel]:
    """Return images with their pixels in the order that their size and the seed determine."""
    _, height, width, channels = images.shape
    order = generator(seed, "pixel_shuffle", BOTH).permutation(height * width)
    # With -1 for the channels, NumPy could not reshape a set without test images.
    flat = images.reshape(len(images), height * width, channels)
    return np.take(flat, order, axis=1).reshape(images.shape)


def _random_pixels(data: ImageData, seed: int) -> ImageData:
    rng = generator(seed, "random_pixels", TRAIN)
    shuffled = np.empty_like(data.train_images)
    # A pixel moves with all its channels.
    for image, target in zip(data.train_images, shuffled, strict=True):
        flat = image.reshape(-1, image.shape[2])
        target[:] = flat[rng.permutation(len(flat))].reshape(image.shape)
    return dataclasses.replace(data, train_images=shuffled)
