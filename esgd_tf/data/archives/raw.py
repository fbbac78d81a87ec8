"""The images and labels of an archive, and the checks that every archive must pass."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esgd_tf.data.catalog import Entry
from esgd_tf.data.errors import DataError


@dataclasses.dataclass(frozen=True)
class RawSplit:
    """The training or the test images of an archive, with their labels.

    Attributes:
        images: uint8 [n, h, w, c].
        labels: int32 [n].
        coarse_labels: int32 [n], or None where the set has no coarse classes.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    coarse_labels: NDArray[np.int32] | None = None


@dataclasses.dataclass(frozen=True)
class RawImages:
    """Both splits of an archive, in the archive's order."""

    train: RawSplit
    test: RawSplit


def check_labels(
    labels: NDArray[np.integer],
    num_classes: int,
    path: Path,
    member: str = "",
    *,
    then: str = "download the file again",
) -> NDArray[np.int32]:
    """Return the labels as int32 [n] after checking their range.

    Args:
        labels: NumPy array of integers of any dtype, of shape [n]. The labels.
        num_classes: int >= 1. Labels must lie in 0 ... num_classes - 1.
        path: Path. The file they came from.
        member: str. The part of the file they came from. Defaults to ''.
        then: str. What to do about a bad label. Defaults to 'download the file again'.

    Raises:
        DataError: A label is out of range.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if bad.size:
        where = f"{member} in {path}" if member else str(path)
        raise DataError(
            f"{where} is damaged: label {int(labels[bad[0]])} of image {int(bad[0])} is not in "
            f"0 ... {num_classes - 1}; {then}."
        )
    return labels.astype(np.int32)


def check_counts(raw: RawImages, entry: Entry, path: Path) -> None:
    """Check that every class has as many images as in the published set.

    Args:
        raw: RawImages. The images.
        entry: Entry. The data set that they must be.
        path: Path. The file or folder that they came from.

    Raises:
        DataError: The files are those of another set, or labels are damaged.
    """
    for split, expected in (("train", entry.train_counts), ("test", entry.test_counts)):
        labels = getattr(raw, split).labels
        counts = tuple(np.bincount(labels, minlength=entry.num_classes).tolist())
        if counts != expected:
            first = next(
                i for i, pair in enumerate(zip(counts, expected, strict=True)) if pair[0] != pair[1]
            )
            raise DataError(
                f"{path} does not hold {entry.name}: its {split} split has {counts[first]} images "
                f"of class {first} and not {expected[first]}; put the right files there."
            )
