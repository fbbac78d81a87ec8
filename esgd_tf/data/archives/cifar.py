"""Read CIFAR-10 and CIFAR-100, python and binary version, as tar archives or unpacked.

A record is its label bytes (for CIFAR-100 the coarse one, then the fine one) and 3,072 pixel bytes:
the red plane, the green and the blue, each row by row. The python version holds the same rows as
pickled arrays. `members` reads the files of an archive or folder; this module decodes and checks
them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esgd_tf.data.archives.members import read_members
from esgd_tf.data.archives.pickles import RefusedPickleError, safe_loads
from esgd_tf.data.archives.raw import RawImages, RawSplit, check_counts, check_labels
from esgd_tf.data.catalog import CifarArchive, Entry
from esgd_tf.data.errors import DataError


def read_cifar(path: Path, archive: CifarArchive, entry: Entry) -> RawImages:
    """Read one archive.

    Args:
        path: Path. The tar archive, or the folder that it was unpacked to.
        archive: CifarArchive. The names of the files in the archive.
        entry: Entry. The data set that the archive must hold.

    Returns:
        Both splits, in the archive's order.

    Raises:
        DataError: The archive is damaged or malicious, or holds another set.
    """
    members = read_members(path, archive, entry)
    _check_names(members, path, archive, entry)
    read = _pickled if archive.pickled else _binary
    raw = RawImages(
        train=_split(read, members, archive.train, path, archive, entry, entry.num_train),
        test=_split(read, members, archive.test, path, archive, entry, entry.num_test),
    )
    check_counts(raw, entry, path)
    return raw


def _check_names(
    members: dict[str, bytes], path: Path, archive: CifarArchive, entry: Entry
) -> None:
    for label_key, member, names_key in archive.names:
        expected = entry.coarse_names if label_key == "coarse_labels" else entry.label_names
        try:
            if archive.pickled:
                listed = safe_loads(members[member]).get(names_key)
                listed = listed if isinstance(listed, list) else []
                names = [n.decode("latin1") if isinstance(n, bytes) else n for n in listed]
            else:
                names = members[member].decode("latin1").split()
        except RefusedPickleError as error:
            raise _refused(path, archive, member, error) from error
        if tuple(names) != expected:
            raise DataError(
                f"{archive.folder}/{member} in {path} does not list the {len(expected)} classes "
                f"of {entry.name} in their order; download the archive again."
            )


_Rows = tuple[NDArray[np.uint8], list[NDArray[np.integer]]]


def _split(
    read: Callable[[bytes, Path, CifarArchive, str, int], _Rows],
    members: dict[str, bytes],
    names: tuple[str, ...],
    path: Path,
    archive: CifarArchive,
    entry: Entry,
    count: int,
) -> RawSplit:
    height, width, channels = entry.image_shape
    pixels, labels = [], []
    for name in names:
        rows, numbers = read(members[name], path, archive, name, height * width * channels)
        pixels.append(rows)
        limits = [
            len(entry.coarse_names) if key == "coarse_labels" else entry.num_classes
            for key, _, _ in archive.names
        ]
        labels.append(
            [
                check_labels(number, limit, path, f"{archive.folder}/{name}")
                for number, limit in zip(numbers, limits, strict=True)
            ]
        )
    planes = np.concatenate(pixels)
    if len(planes) != count:
        raise DataError(
            f"{path} holds {len(planes)} images in {', '.join(names)} and not {count}; "
            "download it again."
        )
    columns = [np.concatenate(column) for column in zip(*labels, strict=True)]
    return RawSplit(
        images=np.ascontiguousarray(
            planes.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
        ),
        labels=columns[-1],
        coarse_labels=columns[0] if len(columns) > 1 else None,
    )


def _binary(content: bytes, path: Path, archive: CifarArchive, name: str, pixels: int) -> _Rows:
    label_bytes = len(archive.names)
    if len(content) % (label_bytes + pixels):
        raise DataError(
            f"{archive.folder}/{name} in {path} is damaged: its {len(content)} bytes are not a "
            f"whole number of {label_bytes + pixels}-byte records; download the archive again."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + pixels)
    return records[:, label_bytes:], [records[:, i] for i in range(label_bytes)]


def _pickled(content: bytes, path: Path, archive: CifarArchive, name: str, pixels: int) -> _Rows:
    try:
        batch = safe_loads(content)
    except RefusedPickleError as error:
        raise _refused(path, archive, name, error) from error
    rows = batch.get("data")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape[1:] != (pixels,):
        raise DataError(
            f"{archive.folder}/{name} in {path} is not a CIFAR batch: it has no array 'data' of "
            f"rows of {pixels} bytes; download the archive again."
        )
    columns: list[NDArray[np.integer]] = []
    for key, _, _ in archive.names:
        labels = batch.get(key, ())
        # type(x), because True is an instance of int; the bound, because a large integer may not
        # fit an array.
        whole = isinstance(labels, list) and all(type(x) is int and abs(x) < 1000 for x in labels)
        if not whole or len(labels) != len(rows):
            raise DataError(
                f"{archive.folder}/{name} in {path} is not a CIFAR batch: it has no list "
                f"'{key}' of {len(rows)} whole numbers; download the archive again."
            )
        columns.append(np.asarray(labels, np.int64))
    return rows, columns


def _refused(path: Path, archive: CifarArchive, name: str, error: RefusedPickleError) -> DataError:
    return DataError(
        f"{archive.folder}/{name} in {path} is refused: {error}, and no published CIFAR batch "
        "does; download the archive again."
    )
