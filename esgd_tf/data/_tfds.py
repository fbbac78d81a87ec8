"""Calling TFDS without the announcements that it prints and logs."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def tfds_manners() -> Iterator[None]:
    """Silence TFDS' announcements, which name temporary folders, and its deprecation warnings."""
    absl_log = logging.getLogger("absl")
    level = absl_log.level
    absl_log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_log.setLevel(level)
