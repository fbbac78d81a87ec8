"""From flags and presets to the one set of numbers that is in force. No TensorFlow here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from esgd_tf.cli.parsers import FlagError, did_you_mean
from esgd_tf.cli.schema import check_config
from esgd_tf.data import DataError, parse_corruptions
from esgd_tf.models import check_name
from esgd_tf.models import names as model_names
from esgd_tf.runs.errors import RunFolderError

__all__ = [
    "REPLICATED",
    "Settings",
    "choose_preset",
    "epoch_steps",
    "make_settings",
    "resume_settings",
    "settings_table",
    "stretched",
]

# An `Experiment` of config.py: the library knows its fields, not the module at the top level.
Experiment = Any
Presets = Mapping[str, Mapping[str, Experiment]]

_DEFAULT_PRESET = "wrn-cifar10"
# These may be given anew when a run goes on: they change how far and how it runs, not what it is.
_MAY_CHANGE = (
    "epochs", "limit_steps", "jit_compile", "strategy", "devices", "logical_devices", "tpu",
    "checkpoint_steps", "keep_every", "on_nan", "monitor",
)  # fmt: skip
_OF_THE_RUN = (
    "seed", "strategy", "devices", "logical_devices", "tpu", "scale_lr", "sync_bn", "jit_compile",
    "mixed_precision", "checkpoint_steps", "keep_every", "on_nan", "limit_steps", "monitor",
)  # fmt: skip
# Not worth a place in the table.
_QUIET = {
    "strategy": "auto", "scale_lr": False, "sync_bn": False, "on_nan": "stop", "corrupt": "none",
    "corruption_seed": 0,
}  # fmt: skip

REPLICATED = ("rsgd", "easgd", "parle")
_INNER_LOOP = ("langevin_steps", "langevin_lr", "gamma", "scoping", "averaging")
_OF_REPLICAS = (
    "replicas", "budget", "initialization", "coupling_gamma", "coupling_every", "focusing",
    "focusing_growth", "coupling_max", "monitor",
)  # fmt: skip


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


def epoch_steps(one_pass: int, replicas: int, budget: str) -> int:
    """Return the training steps of an epoch, each of which is a minibatch of every replica.

    Args:
        one_pass: Minibatches of one pass over the data.
        replicas: y; 1 for a network alone.
        budget: "shared": together they make one pass, up to rounding. "each": each makes one.
    """
    return max(round(one_pass / replicas), 1) if budget == "shared" else one_pass


def choose_preset(fv: flags.FlagValues, presets: Presets) -> str:
    """Return --preset, or the preset whose data set and model are those of the flags.

    Raises:
        FlagError: There is no such preset.
    """
    if fv.preset is not None:
        if fv.preset not in presets:
            near = did_you_mean(fv.preset, presets)
            raise FlagError(f"--preset={fv.preset}: there are {', '.join(presets)}{near}")
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
    given = {name: fv[name].value for name in fields if name in fv and fv[name].present}
    given.pop("optimizer", None)
    inner_loop = given.get("langevin_steps", experiment.langevin_steps) > 0
    if inner_loop and fv.optimizer in ("rsgd", "easgd"):
        experiment = _with_inner_loop(experiment, presets[preset]["entropy-sgd"])
    idle = _without_meaning(fv.optimizer, inner_loop=inner_loop)
    for name in (*given, *(["monitor"] if fv["monitor"].present else [])):
        if name in idle:
            raise FlagError(f"--{name} has no meaning for -opt {fv.optimizer}")
    if fv.optimizer in ("sgd", "adam") and "momentum" in given:
        raise FlagError(f"--momentum has no meaning for -opt {fv.optimizer}: see -opt momentum")
    if fv.optimizer == "entropy-adam" and "outer_momentum" in given:
        raise FlagError("--outer_momentum has no meaning for -opt entropy-adam")
    if "epochs" in given and "lr_drops" not in given:
        stretch = given["epochs"] / experiment.epochs
        given["lr_drops"] = tuple(round(drop * stretch, 6) for drop in experiment.lr_drops)
    if fv.scale_lr and "batch_size" in given:
        # The linear rule (Goyal et al., arXiv 1706.02677): a batch k times as large averages over
        # k of the old ones, so one step may go as far as k did. Where there is an inner loop, only
        # that sees minibatches.
        steps = given.get("langevin_steps", experiment.langevin_steps)
        inner = fv.optimizer.startswith("entropy-") or steps > 0
        rate = "langevin_lr" if inner else "lr"
        factor = given["batch_size"] / experiment.batch_size
        given[rate] = given.get(rate, getattr(experiment, rate)) * factor
    experiment = dataclasses.replace(experiment, **given)
    _check_replicas(experiment)
    try:
        parse_corruptions(experiment.corrupt)
    except DataError as error:
        raise FlagError(f"--corrupt={experiment.corrupt}: {str(error).rstrip('.')}") from None
    try:
        check_name(experiment.model)
    except ValueError as error:
        near = did_you_mean(experiment.model, model_names())
        message = str(error).rstrip(".")
        raise FlagError(f"--model={experiment.model}: {message}{near}") from None
    run = {name: fv[name].value for name in _OF_THE_RUN}
    return Settings(preset, experiment, run, tuple(given))


def resume_settings(
    fv: flags.FlagValues, presets: Presets, config: Any, path: Path = Path("config.json")
) -> Settings:
    """Return the settings of a run that goes on: its config.json, with what may change from flags.

    Args:
        fv: The flags.
        presets: Those of config.py.
        config: What was read from config.json.
        path: From where, for messages.

    Raises:
        FlagError: A flag differs from what the run was started with.
        RunFolderError: config.json is damaged or of another version.
    """
    fields = dataclasses.fields(presets[_DEFAULT_PRESET]["momentum"])
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    experiment_part, run_part = check_config(
        config, path, {"experiment": needed, "run": ["seed"]}, known=[f.name for f in fields]
    )
    stored = dict(experiment_part)
    # A run of an earlier version lacks the flags that came later.
    run = {name: fv[name].default for name in _OF_THE_RUN} | dict(run_part)
    kind = type(presets[_DEFAULT_PRESET]["momentum"])
    stored["lr_drops"] = tuple(stored["lr_drops"])
    experiment = kind(**stored)
    overridden = tuple(config.get("overridden", ()))
    settings = Settings(config.get("preset", _DEFAULT_PRESET), experiment, run, overridden)
    try:
        check_name(experiment.model)
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged or of another version: {error}") from None
    changes: dict[str, Any] = {}
    for name in (*stored, *_OF_THE_RUN, "preset"):
        if name not in fv or not fv[name].present:
            continue
        before = settings.preset if name == "preset" else stored.get(name, run.get(name))
        value = fv[name].value
        # An equal limit is one more limit: it counts from where the run stands.
        if value == before and name != "limit_steps":
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


def _with_inner_loop(replicas: Experiment, entropy: Experiment) -> Experiment:
    """Return the preset of replicas of Entropy-SGD: its numbers, coupled as those of momentum."""
    fields = [field.name for field in dataclasses.fields(replicas)]
    coupled = {name: getattr(replicas, name) for name in fields if name in _OF_REPLICAS}
    if replicas.coupling_max is not None:
        # Where the growth ends, a step goes as far to the center as it does with the other rate.
        coupled["coupling_max"] = replicas.coupling_max * replicas.lr / entropy.lr
    return dataclasses.replace(entropy, optimizer=replicas.optimizer, **coupled)


def stretched(before: dict[str, Any], settings: Settings) -> str | None:
    """Return what to say of a coupling whose growth a new number of epochs stretches.

    Args:
        before: config.json of the run so far.
        settings: As it goes on.
    """
    e, epochs = settings.experiment, before["experiment"]["epochs"]
    grows = e.optimizer == "rsgd" and e.focusing != "none" and e.focusing_growth > 1
    if not grows or e.epochs == epochs:
        return None
    where = "back" if e.epochs > epochs else "on"
    return (
        f"--epochs={e.epochs}: the coupling, which was to grow over {epochs} epochs, grows over "
        f"{e.epochs} from the start, so it jumps {where} to where that law has it by now"
    )


def _without_meaning(optimizer: str, *, inner_loop: bool) -> set[str]:
    """Return the names of the numbers that an optimizer does not use."""
    idle: set[str] = set()
    if not optimizer.startswith("entropy-"):
        idle |= {"outer_momentum", "noise", *_INNER_LOOP}
    if optimizer not in REPLICATED:
        idle |= set(_OF_REPLICAS)
    if optimizer == "parle":
        idle -= set(_INNER_LOOP)
    if optimizer in ("rsgd", "easgd"):
        # With -L, these are replicas of Entropy-SGD.
        idle -= {"langevin_steps"}
        if inner_loop:
            idle -= {"noise", *_INNER_LOOP}
    if optimizer in ("easgd", "parle"):
        idle |= {"focusing", "focusing_growth"}
    if optimizer == "easgd":
        idle |= {"coupling_max"}
    return idle


def _check_replicas(experiment: Experiment) -> None:
    e = experiment
    if e.optimizer == "parle" and e.langevin_steps < 1:
        raise FlagError("--langevin_steps=0: parle needs an inner loop of at least 1 step")
    if e.optimizer == "easgd" and e.coupling_gamma is not None and e.coupling_gamma > 1:
        raise FlagError(f"--coupling_gamma={e.coupling_gamma:g}: for easgd it is alpha, at most 1")
    if e.optimizer == "easgd" and (e.coupling_gamma or 0.0) * e.replicas > 1:
        raise FlagError(
            f"--coupling_gamma={e.coupling_gamma:g}: times --replicas={e.replicas} it is more than "
            "the whole way of the center to the replicas' mean; their product must be at most 1"
        )
    if e.optimizer == "rsgd" and e.coupling_gamma is None:
        if e.initialization == "same":
            raise FlagError(
                "--initialization=same: replicas that start at one point have no distance to "
                "measure --coupling_gamma by; give it"
            )
        if e.replicas == 1:
            raise FlagError("--replicas=1 has nothing to couple: see -opt momentum")
    if e.focusing_growth < 1:
        raise FlagError(f"--focusing_growth={e.focusing_growth:g}: must be at least 1")


def settings_table(settings: Settings) -> str:
    """Return the settings as lines of at most 80 columns; a star marks what came from a flag."""
    rows = {"preset": settings.preset, **dataclasses.asdict(settings.experiment), **settings.run}
    e = settings.experiment
    for name in _without_meaning(e.optimizer, inner_loop=e.langevin_steps > 0):
        rows.pop(name, None)
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
