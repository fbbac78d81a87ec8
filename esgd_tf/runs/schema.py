"""Checks of config.json: its values must be allowed for the settings of the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esgd_tf.data import DataError, parse_corruptions
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.experiment import Experiment, RunSettings
from esgd_tf.runs.setting import settings_of

__all__ = ["check_config", "is_of_walkers", "renamed"]

# The number of characters of a bad value that an error shows.
_SHOWN = 40
# Settings that had other names in files of earlier versions.
_RENAMED = {
    "lr": "learning_rate", "l2": "weight_decay", "langevin_lr": "langevin_learning_rate",
}  # fmt: skip


def is_of_walkers(config: Any) -> bool:
    """Return whether a config.json belongs to a run of `walkers`, which is no training."""
    return isinstance(config, dict) and config.get("command") == "walkers"


def check_config(
    config: Any,
    path: Path,
    needed: Mapping[str, Sequence[str]],
    *,
    all_known: bool = False,
    experiment: type = Experiment,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check the content of the config.json of a run of train.py.

    Args:
        config: any JSON value. The content.
        path: Path. The path of the file, for messages.
        needed: mapping from "experiment" and "run" to names. The names that are required.
        all_known: bool. Whether an unknown name in "experiment" is an error. Defaults to False.
        experiment: type. The dataclass of the experiment. Defaults to Experiment.

    Returns:
        Its parts "experiment" and "run", with the names that the settings have now.

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
    checked = []
    for part, kind in (("experiment", experiment), ("run", RunSettings)):
        values = config.get(part)
        if not isinstance(values, dict):
            raise damaged(f"it has no {part!r}")
        values = renamed(values)
        for name in needed[part]:
            if name not in values:
                raise damaged(f"{name!r} is missing")
        for name, value in values.items():
            if part == "experiment" and all_known and name not in settings_of(kind):
                raise damaged(f"{name[:_SHOWN]!r} is unknown")
            if not _is_good(kind, name, value):
                raise damaged(f"{name!r} is {_shown(value)}")
        checked.append(values)
    return checked[0], checked[1]


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under the names that they have now.

    Args:
        values: mapping from str. The settings, perhaps under names of earlier versions.
    """
    return {_RENAMED.get(name, name): value for name, value in values.items()}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value is not None else []


def _is_good(kind: type, name: str, value: Any) -> bool:
    """Return whether a setting may have the value; names that are not settings are not checked."""
    known = settings_of(kind).get(name)
    if known is None:
        return True
    if value is None:
        return known.may_be_none
    if name == "corrupt" and isinstance(value, str):
        try:
            parse_corruptions(value)
        except DataError:
            return False
    return known.kind.accepts(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
