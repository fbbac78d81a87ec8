"""Checks that the packages are installed that a part of the library needs.

The optimizers need TensorFlow and nothing more. What a part needs is an extra of the distribution,
so that a user's environment holds what is used. Each room asks before it imports anything: Keras
without TensorFlow fails in its own words.
"""

from __future__ import annotations

import importlib.util

__all__ = ["MissingExtraError", "require"]

#: The distribution of each module that is an extra's.
_DISTRIBUTIONS = {"PIL": "pillow", "absl": "absl-py", "tensorflow_datasets": "tensorflow-datasets"}


class MissingExtraError(ImportError):
    """A package is not installed that a part of the library needs; the message says which extra."""


def require(part: str, extra: str, *modules: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        part: str. What needs them, as the subject of a sentence.
        extra: str. The extra that brings them.
        *modules: str. The modules that are needed.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        *others, last = (_DISTRIBUTIONS.get(name, name) for name in missing)
        names = f"{', '.join(others)} and {last}" if others else last
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(
            f"{part} needs {names}, which {verb} not installed: "
            f"python3 -m pip install 'esgd-tf[{extra}]'."
        )
