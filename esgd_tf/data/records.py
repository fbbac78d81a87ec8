"""Read a user's own TFRecord files, whose records have the features `image` and `label`.

That is the form in which TFDS writes images. The files may be compressed by gzip or zlib.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf.data.errors import DataError
from esgd_tf.data.record_files import read_file

__all__ = ["read_records"]

_FEATURES = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "label": tf.io.FixedLenFeature([], tf.int64),
}


def read_records(
    patterns: Sequence[str], image_shape: tuple[int, ...], label_names: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Read all images and labels of TFRecord files.

    Args:
        patterns: sequence of str. Paths, or patterns with `*` and `?`.
        image_shape: tuple of three ints. Height, width and channels that every image must have.
        label_names: sequence of str. One name per class; labels must be below their number.

    Returns:
        uint8 [n, h, w, c] and int32 [n], in the order of the files and of the records in them.

    Raises:
        DataError: A file is missing or damaged, or a record has another shape or label.
    """
    images, labels = [], []
    for path in _files(patterns):
        for number, record in enumerate(read_file(path), start=1):
            where = f"Record {number} of {path}"
            image, label = _parse(record, where)
            if image.shape != tuple(image_shape):
                raise DataError(
                    f"{where} is an image of shape {image.shape}, and the network needs "
                    f"{tuple(image_shape)}."
                )
            if not 0 <= label < len(label_names):
                raise DataError(
                    f"{where} has the label {label}, and there are the classes 0 to "
                    f"{len(label_names) - 1}."
                )
            images.append(image)
            labels.append(label)
    if not images:
        raise DataError(f"There is no record in {', '.join(patterns)}.")
    return np.stack(images), np.array(labels, np.int32)


def _files(patterns: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for pattern in patterns:
        # A name that exists is not a pattern, even if it contains brackets.
        home = str(Path(pattern).expanduser())
        matches = [home] if Path(home).exists() else sorted(glob.glob(home))  # noqa: PTH207
        if not matches:
            raise DataError(f"There is no file {pattern}.")
        found += map(Path, matches)
    for path in found:
        if path.is_dir():
            raise DataError(f"{path} is a folder: name the TFRecord files in it, as '{path}/*'.")
    return found


def _parse(record: bytes, where: str) -> tuple[NDArray[np.uint8], int]:
    try:
        example = tf.io.parse_single_example(record, _FEATURES)
    except (tf.errors.OpError, ValueError):
        raise DataError(
            f"{where} has no features `image` (encoded bytes) and `label` (a whole number): "
            f"{_what_it_has(record)}."
        ) from None
    try:
        image = tf.io.decode_image(example["image"], expand_animations=False)
    except (tf.errors.OpError, ValueError):
        raise DataError(f"{where} holds no image that can be decoded.") from None
    return image.numpy(), int(example["label"])


def _what_it_has(record: bytes) -> str:
    try:
        features = tf.train.Example.FromString(record).features.feature
    except (
        Exception
    ):  # protobuf's own exception, which different versions define in different modules
        return "it is no tf.train.Example"
    if not features:
        return "it has none at all"
    kinds = (f"{name} ({features[name].WhichOneof('kind')})" for name in sorted(features))
    return "it has " + ", ".join(itertools.islice(kinds, 8))
