"""The files of a CIFAR archive, from the archive or from the folder that it was unpacked to.

Members are read by their expected names, never written to disk: what else an archive contains,
whatever it is called, is not looked at.
"""

from __future__ import annotations

import gzip
import math
import tarfile
import zlib
from pathlib import Path
from typing import IO, cast

from tqdm import tqdm

from esgd_tf.data.catalog import CifarArchive, Entry
from esgd_tf.data.errors import DataError

__all__ = ["find_cifar", "read_members"]

# Lists of names and of file names, beside the pixels.
_SLACK = 16 << 20


def find_cifar(folder: Path, archive: CifarArchive) -> Path | None:
    """Return where an archive lies in a folder: the tar file, or else its files; None if nowhere.

    Args:
        folder: Path. Where to look: what lies in it under the names of the home page or of Keras,
            or the folder with the files itself.
        archive: CifarArchive. What to look for.
    """
    inner = archive.folder
    files = (archive.file, archive.file.removesuffix(".gz"), f"{inner}.tar.gz", f"{inner}.tar",
             f"{inner}-target_archive", f"{inner}_archive")  # fmt: skip
    for name in files:
        if (folder / name).is_file():
            return folder / name
    places = (folder / inner, folder / f"{inner}-target" / inner, folder / inner / inner, folder)
    # One file may be missing, and is then named; a file called `train` alone says nothing.
    wanted = _wanted(archive)
    return next((p for p in places if sum((p / w).is_file() for w in wanted) > 1), None)


def _wanted(archive: CifarArchive) -> list[str]:
    lists = {member for _, member, _ in archive.names}
    return [*archive.train, *archive.test, *sorted(lists)]


def read_members(path: Path, archive: CifarArchive, entry: Entry) -> dict[str, bytes]:
    """Read all files that a set needs.

    Args:
        path: Path. The tar archive, compressed by gzip or not, or the folder with the files.
        archive: CifarArchive. How the archive is laid out.
        entry: Entry. What the archive must hold: nothing is read that is much bigger.

    Returns:
        By name, without the folder.

    Raises:
        DataError: It is damaged, incomplete, or bigger than it may be.
    """
    limit = max(entry.num_train, entry.num_test) * (math.prod(entry.image_shape) + 64) + _SLACK
    wanted = _wanted(archive)
    read = _from_folder if path.is_dir() else _from_tar
    found = read(path, archive, entry, wanted, limit)
    missing = [base for base in wanted if base not in found]
    if missing:
        raise DataError(
            f"{path} lacks {archive.folder}/{missing[0]}, so it is not the published "
            f"{archive.file}; download it again."
        )
    return found


def _from_folder(
    path: Path, archive: CifarArchive, entry: Entry, wanted: list[str], limit: int
) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for base in wanted:
        if not (path / base).exists():
            continue
        if not (path / base).is_file():
            raise DataError(f"{path / base} is no file; unpack {archive.file} again.")
        try:
            with (path / base).open("rb") as stream:
                content = stream.read(limit + 1)
        except OSError as error:
            raise DataError(f"Cannot read {path / base}: {error.strerror or error}.") from error
        if len(content) > limit:
            raise DataError(
                f"{path / base} is refused: it has more than {limit} bytes, which no file of "
                f"{entry.name} has; unpack {archive.file} again."
            )
        found[base] = content
    return found


class _Bounded:
    """A stream that ends a decompression bomb instead of unpacking it."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, limit: int, path: Path) -> None:
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


def _from_tar(
    path: Path, archive: CifarArchive, entry: Entry, wanted: list[str], limit: int
) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        # Read as a stream: one pass over the compressed bytes.
        with (
            _opened(path) as compressed,
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
    return found


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    with path.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else path.open("rb")
