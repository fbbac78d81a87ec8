"""What config.json must hold: values that the flags of the same names take. No TensorFlow here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from esgd_tf.cli.flags import MAY_BE_NONE, define_flags
from esgd_tf.data import DataError, parse_corruptions
from esgd_tf.runs.errors import RunFolderError

__all__ = ["check_config", "is_of_walkers"]

# What a text of a config.json shows of a bad value.
_SHOWN = 40


def is_of_walkers(config: Any) -> bool:
    """Whether a config.json is that of a run of `walkers`, which is no training."""
    return isinstance(config, dict) and config.get("command") == "walkers"


def check_config(
    config: Any,
    path: Path,
    needed: Mapping[str, Sequence[str]],
    known: Sequence[str] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check what was read from the config.json of a run of train.py.

    Args:
        config: It.
        path: From where, for messages.
        needed: What must be there, by part ("experiment", "run").
        known: What may be there in "experiment"; None for anything.

    Returns:
        Its parts "experiment" and "run".

    Raises:
        RunFolderError: It is damaged or of another version, or of a run of `walkers`.
    """
    if is_of_walkers(config):
        raise RunFolderError(
            f"{path.parent} is a run of walkers, not of train.py: see python3 -m esgd_tf walkers "
            "--help."
        )

    def damaged(what: str) -> RunFolderError:
        return RunFolderError(f"{path} is damaged or of another version: {what}.")

    if not isinstance(config, dict):
        raise damaged("it is no JSON object")
    texts = [config.get("preset", ""), config.get("id") or "", *_listed(config.get("overridden"))]
    if not all(isinstance(text, str) for text in texts):
        raise damaged("'preset', 'id' or 'overridden' is no text")
    fv = define_flags()
    for part, names in needed.items():
        values = config.get(part)
        if not isinstance(values, dict):
            raise damaged(f"it has no {part!r}")
        for name in names:
            if name not in values:
                raise damaged(f"{name!r} is missing")
        for name, value in values.items():
            if part == "experiment" and known is not None and name not in known:
                raise damaged(f"{name[:_SHOWN]!r} is unknown")
            if not _is_good(fv, name, value, of_experiment=part == "experiment"):
                raise damaged(f"{name!r} is {_shown(value)}")
    return config["experiment"], config["run"]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value is not None else []


def _is_good(fv: flags.FlagValues, name: str, value: Any, *, of_experiment: bool) -> bool:
    """Whether the flag of this name could have given the value; what is no flag is not judged."""
    if name not in fv:
        return True
    if value is None:
        # Presets leave nothing out but these; of the run's own flags those without a default.
        return name in MAY_BE_NONE if of_experiment else fv[name].default is None
    if name == "corrupt" and isinstance(value, str):
        try:
            parse_corruptions(value)
        except DataError:
            return False
    return fv[name].parser.accepts(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
