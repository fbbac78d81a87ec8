"""Warnings that point at the user's own line."""

from __future__ import annotations

import inspect
import warnings

__all__ = ["warn"]

# Packages whose lines a user cannot change.
_OURS = {"esgd_tf", "keras", "tensorflow", "contextlib"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's that led here, through whatever of Keras is in between."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
