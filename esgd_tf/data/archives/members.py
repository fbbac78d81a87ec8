"""Read the files of a CIFAR archive, from the archive or from the folder that it was unpacked to.

Members are read by their expected names and never written to disk. All other members of an archive
are ignored.
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

# Bytes that an archive may have beside pixels and labels, for lists of names and of file names.
_SLACK = 16 << 20


def find_cifar(folder: Path, archive: CifarArchive) -> Path | None:
    """Return the path of an archive in a folder: the tar file, or the folder with its files.

    Args:
        folder: Path. The folder to look in. It may hold the archive under the names of the home
            page or of Keras, or be the folder with the files itself.
        archive: CifarArchive. The archive to look for.

    Returns:
        The path; None if the archive is not there.
    """
    inner = archive.folder
    files = (archive.file, archive.file.removesuffix(".gz"), f"{inner}.tar.gz", f"{inner}.tar",
             f"{inner}-target_archive", f"{inner}_archive")  # fmt: skip
    for name in files:
        if (folder / name).is_file():
            return folder / name
    places = (folder / inner, folder / f"{inner}-target" / inner, folder / inner / inner, folder)
    # Two files are enough, so that an error can name a missing one. A single file called `train`
    # may be anything.
    wanted = _wanted(archive)
    return next((p for p in places if sum((p / w).is_file() for w in wanted) > 1), None)


def _wanted(archive: CifarArchive) -> list[str]:
    lists = {member for _, member, _ in archive.names}
    return [*archive.train, *archive.test, *sorted(lists)]


def read_members(path: Path, archive: CifarArchive, entry: Entry) -> dict[str, bytes]:
    """Read all files that a set needs.

    Args:
        path: Path. The tar archive, compressed by gzip or not, or the folder with the files.
        archive: CifarArchive. The names of the files in the archive.
        entry: Entry. The data set that the archive must hold. Nothing much larger is read.

    Returns:
        The content of each file, by its name without the folder.

    Raises:
        DataError: The archive is damaged, incomplete, or larger than it may be.
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
    """A stream that refuses to unpack more than a given number of bytes."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, limit: int, path: Path) -> None:
        self._stream = stream
        self._left = limit
        self._path = path

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes, or raise DataError if the limit is exceeded."""
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
        # Read as a stream, in one pass over the compressed bytes.
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
            # Read to the end, because the checksum of the whole stream stands there.
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
