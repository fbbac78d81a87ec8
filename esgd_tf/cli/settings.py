"""From flags and presets to the one set of numbers that is in force. No TensorFlow here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import flags

from esgd_tf.cli.flags import FlagError
from esgd_tf.models import check_name

__all__ = ["Settings", "choose_preset", "make_settings", "resume_settings", "settings_table"]

# An `Experiment` of config.py: the library knows its fields, not the module at the top level.
Experiment = Any
Presets = Mapping[str, Mapping[str, Experiment]]

_DEFAULT_PRESET = "wrn-cifar10"
# These may be given anew when a run goes on: they change how far and how it runs, not what it is.
_MAY_CHANGE = (
    "epochs", "limit_steps", "jit_compile", "strategy", "devices", "logical_devices", "tpu",
    "checkpoint_steps", "keep_every", "on_nan",
)  # fmt: skip
_OF_THE_RUN = (
    "seed", "strategy", "devices", "logical_devices", "tpu", "scale_lr", "sync_bn", "jit_compile",
    "mixed_precision", "checkpoint_steps", "keep_every", "on_nan", "limit_steps",
)  # fmt: skip
# Not worth a place in the table.
_QUIET = {"strategy": "auto", "scale_lr": False, "sync_bn": False, "on_nan": "stop"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes.

    Attributes:
        preset: Name of the preset it started from.
        experiment: The numbers in force, an `Experiment` of config.py.
        run: Seed, devices, precision and limits: the flags that no experiment sets.
        overridden: Names of the numbers that came from flags.
    """

    preset: str
    experiment: Experiment
    run: dict[str, Any]
    overridden: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what goes into config.json."""
        return {
            "preset": self.preset,
            "experiment": dataclasses.asdict(self.experiment),
            "run": self.run,
            "overridden": list(self.overridden),
        }


def choose_preset(fv: flags.FlagValues, presets: Presets) -> str:
    """Return --preset, or the preset whose data set and model are those of the flags.

    Raises:
        FlagError: There is no such preset.
    """
    if fv.preset is not None:
        if fv.preset not in presets:
            raise FlagError(f"--preset={fv.preset}: there are {', '.join(presets)}")
        return fv.preset
    # fashion_mnist has no experiment in the papers; its images are of MNIST's size and number.
    dataset = {"fashion_mnist": "mnist"}.get(fv.dataset, fv.dataset)

    def fits(name: str, *, by_dataset: bool, by_model: bool) -> bool:
        experiment = presets[name][fv.optimizer]
        return (not by_dataset or dataset in (None, experiment.dataset)) and (
            not by_model or fv.model in (None, experiment.model)
        )

    for by_model in (True, False):
        for name in presets:
            if fits(name, by_dataset=True, by_model=by_model):
                return name
    return _DEFAULT_PRESET


def make_settings(fv: flags.FlagValues, presets: Presets) -> Settings:
    """Return the settings of a new run: the preset, overridden by flags.

    Raises:
        FlagError: Flags contradict each other or the preset.
    """
    preset = choose_preset(fv, presets)
    experiment = presets[preset][fv.optimizer]
    fields = [field.name for field in dataclasses.fields(experiment)]
    given = {name: _value(fv, name) for name in fields if name in fv and fv[name].present}
    given.pop("optimizer", None)
    if not fv.optimizer.startswith("entropy-"):
        idle = [
            name
            for name in given
            if name.startswith("langevin")
            or name in ("gamma", "scoping", "noise", "averaging", "outer_momentum")
        ]
        if idle:
            raise FlagError(f"--{idle[0]} has no meaning for -opt {fv.optimizer}")
    if fv.optimizer in ("sgd", "adam") and "momentum" in given:
        raise FlagError(f"--momentum has no meaning for -opt {fv.optimizer}: see -opt momentum")
    if fv.optimizer == "entropy-adam" and "outer_momentum" in given:
        raise FlagError("--outer_momentum has no meaning for -opt entropy-adam")
    if "epochs" in given and "lr_drops" not in given:
        stretch = given["epochs"] / experiment.epochs
        given["lr_drops"] = tuple(round(drop * stretch, 6) for drop in experiment.lr_drops)
    if fv.scale_lr and "batch_size" in given:
        # The linear rule (Goyal et al., arXiv 1706.02677): a batch k times as large averages over
        # k of the old ones, so one step may go as far as k did. Of entropy-*, only the inner loop
        # sees minibatches.
        rate = "langevin_lr" if fv.optimizer.startswith("entropy-") else "lr"
        factor = given["batch_size"] / experiment.batch_size
        given[rate] = given.get(rate, getattr(experiment, rate)) * factor
    experiment = dataclasses.replace(experiment, **given)
    try:
        check_name(experiment.model)
    except ValueError as error:
        raise FlagError(f"--model={experiment.model}: {str(error).rstrip('.')}") from None
    run = {name: _value(fv, name) for name in _OF_THE_RUN}
    return Settings(preset, experiment, run, tuple(given))


def resume_settings(fv: flags.FlagValues, presets: Presets, config: dict[str, Any]) -> Settings:
    """Return the settings of a run that goes on: its config.json, with what may change from flags.

    Raises:
        FlagError: A flag differs from what the run was started with, or config.json is not one.
    """
    try:
        stored = dict(config["experiment"])
        # A run of an earlier version lacks the flags that came later.
        run = {name: fv[name].default for name in _OF_THE_RUN} | dict(config["run"])
        kind = type(presets[_DEFAULT_PRESET]["momentum"])
        stored["lr_drops"] = tuple(stored["lr_drops"])
        experiment = kind(**stored)
        settings = Settings(config["preset"], experiment, run, tuple(config["overridden"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FlagError(f"config.json of this run is not of this version ({error!r})") from None
    changes: dict[str, Any] = {}
    for name in (*stored, *_OF_THE_RUN, "preset"):
        if name not in fv or not fv[name].present:
            continue
        before = settings.preset if name == "preset" else stored.get(name, run.get(name))
        value = _value(fv, name)
        if value == before:
            continue
        if name not in _MAY_CHANGE:
            raise FlagError(
                f"--{name}={value} differs from the run that is to go on, which has {before}: "
                "leave the flag out, or start a new run with another --name"
            )
        changes[name] = value
    # A limit stops one call of train.py; going on means going past it.
    run["limit_steps"] = changes.pop("limit_steps", None)
    run.update({name: changes.pop(name) for name in _OF_THE_RUN if name in changes})
    return dataclasses.replace(
        settings, experiment=dataclasses.replace(experiment, **changes), run=run
    )


def settings_table(settings: Settings) -> str:
    """Return the settings as lines of at most 80 columns; a star marks what came from a flag."""
    rows = {"preset": settings.preset, **dataclasses.asdict(settings.experiment), **settings.run}
    if not settings.experiment.optimizer.startswith("entropy-"):
        for name in ("gamma", "scoping", "noise", "averaging", "outer_momentum"):
            rows.pop(name)
        rows = {k: v for k, v in rows.items() if not k.startswith("langevin")}
    cells = [
        f"{name}{'*' if name in settings.overridden else ''}: {_shown(value)}"
        for name, value in rows.items()
        if value is not None and (name not in _QUIET or value != _QUIET[name])
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


def _value(fv: flags.FlagValues, name: str) -> Any:
    value = fv[name].value
    if name != "lr_drops":
        return value
    try:
        drops = tuple(float(drop) for drop in value)
    except ValueError:
        drops = (float("nan"),)
    if not all(drop > 0 for drop in drops) or sorted(drops) != list(drops):
        raise FlagError(f"--lr_drops={','.join(value)}: must be growing numbers above 0")
    return drops
