"""Read the idx files of MNIST and of the sets that were made after its model.

An idx file is two zero bytes, a type byte (8: unsigned byte), the number of dimensions, each
dimension as a big-endian 32-bit integer, and the values. The published files are gzip-compressed.
Unpacked files are read too, and names with a dot (`train-images.idx3-ubyte`), which some programs
make.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from esgd_tf.data.archives.raw import RawImages, RawSplit, check_counts, check_labels
from esgd_tf.data.catalog import Entry, IdxFiles
from esgd_tf.data.errors import DataError

_UNSIGNED_BYTE = 8


def find_idx(folder: Path, name: str) -> Path | None:
    """Return the file of a published name, or of one of the names that it has after unpacking.

    Args:
        folder: Path. The folder to look in.
        name: str. The published name of the file, with `.gz`.

    Returns:
        The path; None if there is no such file.
    """
    plain = name.removesuffix(".gz")
    dotted = plain.replace("-idx", ".idx")
    # Some programs unpack a file into a folder with its name.
    names = (name, plain, f"{dotted}.gz", dotted, f"{plain}/{plain}", f"{dotted}/{dotted}")
    return next((folder / n for n in names if (folder / n).is_file()), None)


def read_idx(folder: Path, files: IdxFiles, entry: Entry) -> RawImages:
    """Read the four files of an MNIST-like set.

    Args:
        folder: Path. The folder of the files.
        files: IdxFiles. The published names of the files.
        entry: Entry. The data set that the files must hold.

    Returns:
        Both splits, in the files' order.

    Raises:
        DataError: A file is missing or damaged, or belongs to another set.
    """
    splits = []
    for images, labels, count in (
        (files.train_images, files.train_labels, entry.num_train),
        (files.test_images, files.test_labels, entry.num_test),
    ):
        pixels = _read(_place(folder, images), (count, *entry.image_shape[:2]))
        numbers = _read(_place(folder, labels), (count,))
        splits.append(
            RawSplit(
                images=pixels.reshape(count, *entry.image_shape),
                labels=check_labels(numbers, entry.num_classes, _place(folder, labels)),
            )
        )
    raw = RawImages(*splits)
    check_counts(raw, entry, folder)
    return raw


def read_idx_labels(path: Path, count: int) -> NDArray[np.uint8]:
    """Read one file of labels, uint8 [count], without checking their range.

    Args:
        path: Path. The file.
        count: int >= 0. The number of labels that the file must have.

    Raises:
        DataError: The file is missing or damaged.
    """
    return _read(path, (count,))


def _place(folder: Path, name: str) -> Path:
    return find_idx(folder, name) or folder / name


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    with path.open("rb") as stream:
        start = stream.read(2)
    # A program that unpacks what it downloads may leave the suffix .gz in the name.
    plain = start == b"\0\0" or (path.suffix != ".gz" and start != b"\x1f\x8b")
    return path.open("rb") if plain else gzip.open(path, "rb")


def _read(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, _UNSIGNED_BYTE, len(shape), *shape)
    length = math.prod(shape)
    try:
        with _opened(path) as stream:
            # One byte more than the file should have shows that it is too long. A decompression
            # bomb is therefore never unpacked.
            content = stream.read(len(header) + length + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); download it again.") from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    if content[: len(header)] != header:
        raise DataError(
            f"{path} is not the idx file it should be: it must begin with {header.hex(' ', 4)} "
            f"(unsigned bytes, {' x '.join(map(str, shape))}) and begins with "
            f"{content[: len(header)].hex(' ', 4) or 'nothing'}; download it again."
        )
    if len(content) != len(header) + length:
        found = "more" if len(content) > len(header) + length else str(len(content) - len(header))
        raise DataError(
            f"{path} is damaged: {length} values must follow its header and {found} do; "
            "download it again."
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
