"""A validation set, held out of the training images.

Settings that are chosen by the error on the test images fit these too, and their error is then no
estimate any more. `hold_out` sets training images aside, on which settings can be chosen with the
test images untouched.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from esgd_tf.data.errors import DataError
from esgd_tf.data.sources import ImageData

__all__ = ["hold_out"]

# Of its own, and not that of a run: all settings are compared on the same images.
_SEED = 20061206


def hold_out(images: ImageData, count: int) -> ImageData:
    """Return a data set whose test images are some of its training images, which lose them.

    The images are the same in every call. They have the classes in the shares that the training
    images have, up to rounding, and those held out for a smaller count are among those held out for
    a larger one.

    Args:
        images: ImageData. The data set, whose arrays are not written to.
        count: int >= 0. How many training images are held out; 0 returns the data set as it is.

    Raises:
        DataError: No training image would be left.
    """
    if not count:
        return images
    labels = images.train_labels
    if not 0 < count < len(labels):
        raise DataError(
            f"{count:,} validation images cannot be held out of the {len(labels):,} training "
            f"images of {images.name}: hold out 1 to {len(labels) - 1:,}."
        )
    rng = np.random.Generator(np.random.PCG64(_SEED))
    # Where in a random order of its class each image stands, from 0 to 1: the first ones of every
    # class are held out.
    place = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        place[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    order = np.argsort(place, kind="stable")
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    return dataclasses.replace(
        images,
        train_images=images.train_images[kept],
        train_labels=labels[kept],
        test_images=images.train_images[held],
        test_labels=labels[held],
    )
