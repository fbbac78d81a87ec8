"""Open a `.npz` file (NumPy's zip archive of arrays) that may be damaged or malicious."""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = ["open_npz"]

# RuntimeError comes from an encrypted or unusually compressed member, MemoryError from a shape
# that is far larger than the data.
_DAMAGE = (KeyError, EOFError, OverflowError, MemoryError, RuntimeError, struct.error, zlib.error,
           zipfile.BadZipFile)  # fmt: skip


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Open a file whose arrays are read by name, each when it is asked for. No pickle is read.

    Args:
        path: Path. The file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged, or an array that is asked for is missing or is a pickle.
    """
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("it is one array and no archive of arrays")
        with stored:
            yield stored
    except _DAMAGE as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
