"""The versions that a report of a defect needs, without importing TensorFlow or Keras."""

from __future__ import annotations

import importlib.metadata

from esgd_tf._version import __version__

__all__ = ["version_line"]

# TensorFlow and Keras are each installed from one of several distributions.
_DISTRIBUTIONS = {
    "TensorFlow": ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu"),
    "Keras": ("keras", "keras-nightly"),
}


def version_line() -> str:
    """Return the versions of this library, TensorFlow and Keras, as `--version` shows them."""
    others = (f"{name} {_version(names)}" for name, names in _DISTRIBUTIONS.items())
    return f"esgd_tf {__version__} ({', '.join(others)})"


def _version(distributions: tuple[str, ...]) -> str:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "is not installed"
