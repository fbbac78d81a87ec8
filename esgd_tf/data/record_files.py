"""Files of TFRecords, plain or compressed as a whole by gzip or zlib.

TensorFlow reads compressed files only if it is told so, and ends without a word at one that was
cut off at its end: so they are unpacked first, by readers that check their ends and checksums, and
a plain file is read to its last byte.
"""

from __future__ import annotations

import contextlib
import gzip
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from esgd_tf.data.errors import DataError, plain_reason

__all__ = ["is_compressed", "read_file", "unpack"]

# Around each record: its length and two checksums.
_FRAME = 16
_CHUNK = 1 << 20


def read_file(path: Path) -> Iterator[bytes]:
    """Return the records of a file, plain or compressed.

    Args:
        path: Path. The file.

    Raises:
        DataError: It is damaged, cannot be read, or is no TFRecord file.
    """
    with contextlib.ExitStack() as stack:
        plain = path
        if is_compressed(path):
            plain = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "records"
            unpack(path, plain)
        read = 0
        try:
            for record in tf.data.TFRecordDataset(str(plain)):
                content = record.numpy()
                read += len(content) + _FRAME
                yield content
            # What has no size, a pipe, is taken as it comes.
            left = plain.stat().st_size - read if plain.is_file() else 0
        except (tf.errors.OpError, OSError) as error:
            raise _damaged(path, plain_reason(error)) from error
        if left:
            # Less than the beginning of a record is no record to TensorFlow, and no error.
            raise _damaged(path, f"{left} bytes after its last whole record belong to none")


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged or no TFRecord file ({reason}).")


def is_compressed(path: Path) -> bool:
    """Whether a file begins as gzip or zlib files do, and not with a record.

    Args:
        path: Path. The file; one that cannot be read is not compressed.
    """
    if _kind(path) is None:
        return False
    # A record may begin with the same bytes, those of its length: then its checksums tell.
    try:
        for _ in tf.data.TFRecordDataset(str(path)).take(1):
            return False
    except tf.errors.OpError:
        return True
    return False


def _kind(path: Path) -> str | None:
    if not path.is_file():  # nor is a pipe looked into: what is read of it is gone
        return None
    try:
        with path.open("rb") as stream:
            start = stream.read(3)
    except OSError:
        return None
    if start == b"\x1f\x8b\x08":
        return "gzip"
    is_zlib = len(start) > 1 and start[0] == 0x78 and int.from_bytes(start[:2], "big") % 31 == 0
    return "zlib" if is_zlib else None


def unpack(path: Path, target: Path, limit: int | None = None) -> None:
    """Write what a compressed file holds to another file.

    Args:
        path: Path. A file for which `is_compressed` is true.
        target: Path. The file to write.
        limit: int >= 0. The most bytes that it may hold. Defaults to None, which means any number.

    Raises:
        DataError: It is damaged or holds more, or there is no room for what it holds.
    """
    kind = _kind(path)
    chunks = _of_gzip(path) if kind == "gzip" else _of_zlib(path)
    try:
        with target.open("wb") as out:
            for chunk in chunks:
                out.write(chunk)
                if limit is not None and out.tell() > limit:
                    raise _damaged(path, f"it unpacks to more than {limit} bytes")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, f"as a {kind} file: {error}") from error
    except OSError as error:
        raise DataError(f"Cannot unpack {path}: {error.strerror or error}.") from error


def _of_gzip(path: Path) -> Iterator[bytes]:
    with gzip.open(path) as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _of_zlib(path: Path) -> Iterator[bytes]:
    machine = zlib.decompressobj()
    with path.open("rb") as stream:
        while not machine.eof:
            waiting = machine.unconsumed_tail or stream.read(_CHUNK)
            if not waiting:
                raise EOFError("it ends before its end-of-stream marker was reached")
            yield machine.decompress(waiting, _CHUNK)
        if machine.unused_data or stream.read(1):
            raise zlib.error("there is more after its end")
