"""Everything that decides what a run computes, in one object. This module loads no TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import Any

from esgd_tf.runs.experiment import Experiment, RunSettings
from esgd_tf.runs.setting import setting_of

__all__ = ["Settings", "epoch_steps", "settings_table"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes.

    Args:
        preset: str. The name of the preset it started from.
        experiment: Experiment. The numbers in force.
        run: RunSettings. Seed, devices, precision and limits, which no experiment sets.
        overridden: tuple of str. The names of the numbers that came from flags.
    """

    preset: str
    experiment: Experiment
    run: RunSettings
    overridden: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as they are written to config.json."""
        return {
            "preset": self.preset,
            "experiment": dataclasses.asdict(self.experiment),
            "run": dataclasses.asdict(self.run),
            "overridden": list(self.overridden),
        }


def epoch_steps(one_pass: int, gradients: int, budget: str) -> int:
    """Return the training steps of an epoch.

    Args:
        one_pass: int >= 1. Minibatches of one pass over the data.
        gradients: int >= 1. Gradient evaluations of a step: one of each replica, two of SAM.
        budget: "shared" or "each". With "shared" an epoch has as many gradient evaluations as one
            pass has minibatches, up to rounding; with "each" every replica makes a pass.
    """
    return max(round(one_pass / gradients), 1) if budget == "shared" else one_pass


def settings_table(settings: Settings) -> str:
    """Return the settings as lines of at most 80 columns; a star marks values from flags.

    Settings without meaning for the optimizer are left out, and quiet ones with their defaults.

    Args:
        settings: Settings. The settings in force.
    """
    e = settings.experiment
    rows: dict[str, Any] = {"preset": settings.preset}
    for part in (e, settings.run):
        for field in dataclasses.fields(part):
            value, known = getattr(part, field.name), setting_of(field)
            is_default = known.is_quiet and value == field.default
            has_meaning = known.has_meaning(e.optimizer, inner_loop=e.langevin_steps > 0)
            if value is not None and has_meaning and not is_default:
                rows[field.name] = value
    cells = [
        f"{name}{'*' if name in settings.overridden else ''}: {_shown(value)}"
        for name, value in rows.items()
    ]
    lines, line = [], ""
    for cell in cells:
        if line and len(line) + 2 + len(cell) > 80:
            lines.append(line)
            line = ""
        line = f"{line}, {cell}" if line else cell
    return "\n".join([*lines, line])


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(v if isinstance(v, str) else f"{v:g}" for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
