"""The tar archives of CIFAR-10 and CIFAR-100, python and binary version.

A record is its label bytes (CIFAR-100: coarse, then fine) and 3,072 pixel bytes: the red plane,
the green, the blue, each row by row. The python version holds the same rows as pickled arrays.
Members are read by their expected names, never written to disk: what else an archive contains,
whatever it is called, is not looked at.
"""

from __future__ import annotations

import gzip
import math
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from esgd_tf.data.archives.pickles import RefusedPickleError, safe_loads
from esgd_tf.data.archives.raw import RawImages, RawSplit, check_counts, check_labels
from esgd_tf.data.catalog import CifarArchive, Entry
from esgd_tf.data.errors import DataError

# Lists of names and of file names, beside the pixels.
_SLACK = 16 << 20


def read_cifar(path: Path, archive: CifarArchive, entry: Entry) -> RawImages:
    """Read one archive.

    Args:
        path: The .tar.gz file.
        archive: How it is laid out.
        entry: What it must hold.

    Returns:
        Both splits, in the archive's order.

    Raises:
        DataError: The archive is damaged, hostile, or another set's.
    """
    members = _read_members(path, archive, entry)
    _check_names(members, path, archive, entry)
    read = _pickled if archive.pickled else _binary
    raw = RawImages(
        train=_split(read, members, archive.train, path, archive, entry, entry.num_train),
        test=_split(read, members, archive.test, path, archive, entry, entry.num_test),
    )
    check_counts(raw, entry, path)
    return raw


class _Bounded:
    """A stream that ends a decompression bomb instead of unpacking it."""

    def __init__(self, stream: gzip.GzipFile, limit: int, path: Path) -> None:
        self._stream = stream
        self._left = limit
        self._path = path

    def read(self, size: int) -> bytes:
        """Read on, as long as the archive is not bigger than any archive of this set."""
        content = self._stream.read(min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise DataError(
                f"{self._path} is refused: it unpacks to far more than the published archive; "
                "download it again."
            )
        return content


def _read_members(path: Path, archive: CifarArchive, entry: Entry) -> dict[str, bytes]:
    lists = {member for _, member, _ in archive.names}
    wanted = [*archive.train, *archive.test, *sorted(lists)]
    limit = max(entry.num_train, entry.num_test) * (math.prod(entry.image_shape) + 64) + _SLACK
    found: dict[str, bytes] = {}
    try:
        # Read as a stream: one pass over the compressed bytes.
        with (
            gzip.open(path, "rb") as compressed,
            tqdm(total=len(wanted), desc=f"Reading {path.name}", unit="file", leave=False) as bar,
        ):
            stream = _Bounded(compressed, 4 * limit, path)
            tar = tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|")  # noqa: SIM115
            for member in tar:
                name = member.name.removeprefix("./")
                folder, _, base = name.rpartition("/")
                if member.size > limit:
                    raise DataError(
                        f"{path} is refused: its member {name!r} would be {member.size} bytes, "
                        f"which no file of {entry.name} is; download it again."
                    )
                if folder != archive.folder or base not in wanted:
                    continue
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or base in found:
                    raise DataError(
                        f"{path} is refused: its member {name!r} is no plain file or is there "
                        "twice; download it again."
                    )
                found[base] = content.read()
                bar.update()
            # To the end: only there stands the checksum of it all.
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{path} is not a whole tar.gz archive ({error}); download it again."
        ) from error
    except OSError as error:
        raise DataError(
            f"Cannot read {path} as a tar.gz archive ({error.strerror or error}); "
            "download it again."
        ) from error
    missing = [base for base in wanted if base not in found]
    if missing:
        raise DataError(
            f"{path} lacks {archive.folder}/{missing[0]}, so it is not the published "
            f"{archive.file}; download it again."
        )
    return found


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
        # `bool` is an `int` to Python, and so is a number too big for any label.
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
