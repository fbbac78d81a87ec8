"""Opening a `.npz` file, NumPy's zip archive of arrays, that may be damaged or made to do harm."""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = ["open_npz"]

# RuntimeError: an encrypted or oddly compressed member; MemoryError: a shape that lies.
_DAMAGE = (KeyError, EOFError, OverflowError, MemoryError, RuntimeError, struct.error, zlib.error,
           zipfile.BadZipFile)  # fmt: skip


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Give the arrays of a file by name; each is read when it is asked for. No pickle is read.

    Args:
        path: Path. The file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, or an array that is asked for is not there or a pickle.
    """
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("it is one array and no archive of arrays")
        with stored:
            yield stored
    except _DAMAGE as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
