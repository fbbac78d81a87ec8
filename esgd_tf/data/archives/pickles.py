"""Read the pickled CIFAR batches without letting a pickle run any code.

The published batches are dictionaries of byte strings, lists of integers and one uint8 array,
pickled by Python 2. An array's pickle names three globals (`_reconstruct`, `ndarray`, `dtype`),
and byte strings pickled by Python 3 name a fourth (`_codecs.encode`). Each of the four is replaced
by a function of this module that accepts only the arguments that those pickles have. Every other
global is refused, so a pickle can neither run code nor allocate memory of a size of its choice.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np


class RefusedPickleError(Exception):
    """The pickle asks for something that no CIFAR batch needs."""


class _ArrayType:
    """Stands for numpy.ndarray, which a pickle may name but not call."""


def _latin1_bytes(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1"):
        raise RefusedPickleError("it calls a codec other than latin1")
    return text.encode("latin1")


def _empty_array(kind: object, shape: object, code: object) -> np.ndarray:
    # A pickled array begins empty; its content follows as a string of matching length.
    if kind is not _ArrayType or shape != (0,) or code not in (b"b", "b"):
        raise RefusedPickleError("it makes an array in an unusual way")
    return np.empty((0,), np.uint8)


def _byte_type(code: object, *flags: object) -> np.dtype:
    if code not in ("u1", b"u1") or any(flag not in (0, 1) for flag in flags):
        raise RefusedPickleError(f"it holds an array of type {code!r} and not of bytes")
    # A copy, because the pickle then sets the state of the object that it received.
    return np.dtype("u1", copy=True)


_ALLOWED: dict[tuple[str, str], Callable[..., Any] | type] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _byte_type,
    ("_codecs", "encode"): _latin1_bytes,
}


class _CifarUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of one of the four known globals."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise RefusedPickleError(f"it asks for {module}.{name}") from None


def safe_loads(content: bytes) -> dict[str, Any]:
    """Unpickle one CIFAR batch.

    Args:
        content: bytes. The pickle.

    Returns:
        Its dictionary, with byte-string keys decoded to str. Values are as pickled.

    Raises:
        RefusedPickleError: The pickle is damaged, is no dictionary, or asks for a global that
            no CIFAR batch needs.
    """
    try:
        batch = _CifarUnpickler(io.BytesIO(content), encoding="bytes").load()
    except RefusedPickleError:
        raise
    except Exception as error:
        # A damaged pickle is a damaged program and can fail with nearly any exception.
        raise RefusedPickleError(f"it is damaged ({type(error).__name__})") from error
    if not isinstance(batch, dict):
        raise RefusedPickleError("it is not a dictionary")
    return {_text(key): value for key, value in batch.items()}


def _text(key: object) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
