"""Read TFRecord files, plain or compressed as a whole by gzip or zlib.

TensorFlow must be told that a file is compressed, and it stops without an error at the end of one
that was cut off. Compressed files are therefore unpacked first, by readers that check their ends
and checksums, and a plain file must be used up to its last byte.
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

# Bytes around each record: its length and two checksums.
_FRAME = 16
_CHUNK = 1 << 20


def read_file(path: Path) -> Iterator[bytes]:
    """Return the records of a file, plain or compressed.

    Args:
        path: Path. The file.

    Raises:
        DataError: The file is damaged, cannot be read, or is no TFRecord file.
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
            # A pipe has no size, so what follows its last whole record cannot be seen.
            left = plain.stat().st_size - read if plain.is_file() else 0
        except (tf.errors.OpError, OSError) as error:
            raise _damaged(path, plain_reason(error)) from error
        if left:
            # TensorFlow ignores trailing bytes that are fewer than a record's header.
            raise _damaged(path, f"{left} bytes after its last whole record belong to none")


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged or no TFRecord file ({reason}).")


def is_compressed(path: Path) -> bool:
    """Return whether a file begins as gzip or zlib files do, and not with a record.

    Args:
        path: Path. The file. One that cannot be read counts as not compressed.
    """
    if _kind(path) is None:
        return False
    # The length of a record may begin with the same bytes. Then its checksums are right.
    try:
        for _ in tf.data.TFRecordDataset(str(path)).take(1):
            return False
    except tf.errors.OpError:
        return True
    return False


def _kind(path: Path) -> str | None:
    if not path.is_file():  # bytes that are read from a pipe are lost to the next reader
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
    """Write the content of a compressed file to another file.

    Args:
        path: Path. A file for which `is_compressed` is true.
        target: Path. The file to write.
        limit: int >= 0. The most bytes that the content may have. Defaults to None, which means any
            number.

    Raises:
        DataError: The file is damaged or holds more, or there is no room for its content.
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
