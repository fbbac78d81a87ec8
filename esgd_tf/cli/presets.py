"""`esgd-tf train`, which is train.py for users without a clone of the repository.

The presets come from config.py, which a wheel contains inside the package.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from esgd_tf.runs.experiment import Experiment

__all__ = ["main", "presets"]

_PACKAGE = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: sequence of str. "train" and the flags of train.py.

    Returns:
        The exit status, as train.py returns it.
    """
    from esgd_tf.cli import train

    return train.main(presets(), argv, name="esgd-tf train")


def presets() -> Mapping[str, Mapping[str, Experiment]]:
    """Return `PRESETS` of config.py: experiments by preset and optimizer.

    Raises:
        FileNotFoundError: There is no config.py, neither in the package nor beside it.
    """
    return _module().PRESETS


def _module() -> ModuleType:
    if (_PACKAGE / "_presets.py").is_file():
        return importlib.import_module("esgd_tf._presets")
    path = _PACKAGE.parent / "config.py"
    spec = importlib.util.spec_from_file_location("config", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"There are no presets: {path} is missing; install esgd_tf anew.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
