"""Read the `.npz` file in which Keras stores MNIST, with x_train, y_train, x_test and y_test.

It is a zip archive of NumPy's own files. An array of objects in it would be a pickle and is
refused.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esgd_tf.data.archives.raw import RawImages, RawSplit, check_counts, check_labels
from esgd_tf.data.catalog import Entry
from esgd_tf.data.errors import DataError
from esgd_tf.data.npz import open_npz

__all__ = ["read_npz"]

_HEADER = 1 << 16


def read_npz(path: Path, entry: Entry) -> RawImages:
    """Read one file.

    Args:
        path: Path. The file.
        entry: Entry. The data set that the file must hold. Images may lack the last dimension
            where it is 1, and labels may have one more of size 1: both occur.

    Returns:
        Both splits, in the file's order.

    Raises:
        DataError: The file is damaged or holds another set.
    """
    splits = []
    try:
        with open_npz(path) as stored:
            for split, count in (("train", entry.num_train), ("test", entry.num_test)):
                shape = (count, *entry.image_shape)
                images = _array(path, stored, f"x_{split}", math.prod(shape))
                numbers = _array(path, stored, f"y_{split}", 8 * count)
                if images.dtype != np.uint8 or images.size != math.prod(shape):
                    raise ValueError(
                        f"x_{split} is {images.dtype} {images.shape} and not uint8 {shape}"
                    )
                if numbers.dtype.kind not in "ui" or numbers.size != count:
                    raise ValueError(
                        f"y_{split} is {numbers.dtype} {numbers.shape} and not {count} integers"
                    )
                if images.shape not in (shape, shape[:-1]) or len(numbers) != count:
                    raise ValueError(
                        f"the first dimension of x_{split} and y_{split} is not images"
                    )
                labels = check_labels(numbers.ravel(), entry.num_classes, path, f"y_{split}")
                splits.append(RawSplit(images.reshape(shape), labels))
    except ValueError as error:
        raise DataError(
            f"{path} is not Keras' file of {entry.name} ({error}); download it again."
        ) from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    raw = RawImages(*splits)
    check_counts(raw, entry, path)
    return raw


def _array(path: Path, stored: np.lib.npyio.NpzFile, name: str, length: int) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise ValueError(f"it has no {name}")
        # The size is checked before unpacking, in case of a decompression bomb.
        if archive.getinfo(f"{name}.npy").file_size > length + _HEADER:
            raise ValueError(f"its {name} is bigger than it may be")
    return stored[name]
