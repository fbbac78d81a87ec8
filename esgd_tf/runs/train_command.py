"""The command that starts training: `python3 train.py` in a clone, `esgd-tf train` elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["train_command"]


def train_command() -> list[str]:
    """Return the words by which this process was called, or would train."""
    called = Path(sys.argv[0]).name
    if called in ("esgd-tf", "esgd-tf.exe"):
        return ["esgd-tf", "train"]
    if called == "__main__.py":  # python3 -m esgd_tf
        return ["python3", "-m", "esgd_tf", "train"]
    return ["python3", "train.py"]
