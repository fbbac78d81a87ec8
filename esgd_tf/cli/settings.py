"""Make the settings in force from flags and presets. This module loads no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from esgd_tf.cli.parsers import FlagError
from esgd_tf.cli.suggestions import did_you_mean
from esgd_tf.data import DataError, parse_corruptions
from esgd_tf.data.catalog import ENTRIES
from esgd_tf.models import check_name
from esgd_tf.models import names as model_names
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.experiment import Experiment, RunSettings
from esgd_tf.runs.schema import check_config, renamed
from esgd_tf.runs.setting import settings_of
from esgd_tf.runs.settings import Settings

__all__ = ["choose_preset", "make_settings", "resume_settings", "stretched"]

Presets = Mapping[str, Mapping[str, Experiment]]

_DEFAULT_PRESET = "wrn-cifar10"
_OF_THE_RUN = settings_of(RunSettings)


def choose_preset(fv: flags.FlagValues, presets: Presets) -> str:
    """Return --preset, or the preset with the data set and model that the flags name.

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
    known = settings_of(type(experiment), RunSettings)
    for name in (*given, *(n for n in _OF_THE_RUN if fv[n].present)):
        if not known[name].has_meaning(fv.optimizer, inner_loop=inner_loop):
            instead = f": {known[name].instead}" if known[name].instead else ""
            raise FlagError(f"--{name} has no meaning for -opt {fv.optimizer}{instead}")
    if "epochs" in given and "lr_drops" not in given:
        stretch = given["epochs"] / experiment.epochs
        given["lr_drops"] = tuple(round(drop * stretch, 6) for drop in experiment.lr_drops)
    if fv.scale_lr and "batch_size" in given:
        # The linear rule (Goyal et al., arXiv 1706.02677): a batch k times as large averages over
        # k of the old ones, so one step may go as far as k did. If there is an inner loop, only
        # that one sees minibatches.
        steps = given.get("langevin_steps", experiment.langevin_steps)
        inner = fv.optimizer.startswith("entropy-") or steps > 0
        rate = "langevin_learning_rate" if inner else "learning_rate"
        factor = given["batch_size"] / experiment.batch_size
        given[rate] = given.get(rate, getattr(experiment, rate)) * factor
    if given.get("lr_schedule") == "cosine":
        if given.get("lr_drops") and fv["lr_drops"].present:
            raise FlagError("--lr_drops has no meaning with --lr_schedule=cosine: leave it out")
        given["lr_drops"] = ()
    experiment = dataclasses.replace(experiment, **given)
    _check_size(experiment)
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
    run = RunSettings(**{name: fv[name].value for name in _OF_THE_RUN})
    return Settings(preset, experiment, run, tuple(given))


def resume_settings(
    fv: flags.FlagValues, presets: Presets, config: Any, path: Path = Path("config.json")
) -> Settings:
    """Return the settings of a resumed run: its config.json, with the changes that flags may make.

    Args:
        fv: flags.FlagValues. The flags.
        presets: mapping of experiments by preset and optimizer. `PRESETS` of config.py.
        config: any JSON value. The content of config.json.
        path: Path. The file it was read from, for messages. Defaults to Path('config.json').

    Raises:
        FlagError: A flag that may not change differs from the run's own value.
        RunFolderError: config.json is damaged or of another version.
    """
    kind = type(presets[_DEFAULT_PRESET]["momentum"])
    known = settings_of(kind, RunSettings)
    needed = [
        field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING
    ]
    stored, of_the_run = check_config(
        config, path, {"experiment": needed, "run": ["seed"]}, all_known=True, experiment=kind
    )
    # A run of an earlier version lacks the flags that came later.
    run = {name: fv[name].default for name in _OF_THE_RUN} | of_the_run
    run = {name: value for name, value in run.items() if name in _OF_THE_RUN}
    stored["lr_drops"] = tuple(stored["lr_drops"])
    experiment = kind(**stored)
    overridden = tuple(renamed(dict.fromkeys(config.get("overridden", ()))))
    preset = config.get("preset", _DEFAULT_PRESET)
    try:
        check_name(experiment.model)
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged or of another version: {error}") from None
    changes: dict[str, Any] = {}
    for name in (*stored, *_OF_THE_RUN, "preset"):
        if name not in fv or not fv[name].present:
            continue
        before = preset if name == "preset" else stored.get(name, run.get(name))
        value = fv[name].value
        # A limit that is given again, even the same, counts from the current step of the run.
        if value == before and name != "limit_steps":
            continue
        if name == "preset" or not known[name].may_change:
            raise FlagError(
                f"--{name}={value} differs from the run that is to go on, which has {before}: "
                "leave the flag out, or start a new run with another --name"
            )
        changes[name] = value
    # A limit stops one call of train.py, so a resumed run goes past the old limit.
    run["limit_steps"] = changes.pop("limit_steps", None)
    run.update({name: changes.pop(name) for name in _OF_THE_RUN if name in changes})
    experiment = dataclasses.replace(experiment, **changes)
    return Settings(preset, experiment, RunSettings(**run), overridden)


def _with_inner_loop(replicas: Experiment, entropy: Experiment) -> Experiment:
    """Return the preset for replicas of Entropy-SGD, coupled as replicas of SGD are."""
    of_replicas = [
        name
        for name, known in settings_of(type(replicas)).items()
        if not known.has_meaning("momentum", inner_loop=False)
        and not known.has_meaning("entropy-sgd", inner_loop=True)
    ]
    coupled = {name: getattr(replicas, name) for name in of_replicas}
    if replicas.coupling_max is not None:
        # At its largest coupling, a step goes as far to the center with either learning rate.
        coupled["coupling_max"] = (
            replicas.coupling_max * replicas.learning_rate / entropy.learning_rate
        )
    return dataclasses.replace(entropy, optimizer=replicas.optimizer, **coupled)


def stretched(before: dict[str, Any], settings: Settings) -> str | None:
    """Return what to say of a schedule that a new number of epochs stretches.

    Args:
        before: dict. The config.json of the run so far.
        settings: Settings. The settings with which the run goes on.
    """
    e, epochs = settings.experiment, before["experiment"]["epochs"]
    grows = e.optimizer == "rsgd" and e.focusing != "none" and e.focusing_growth > 1
    if e.epochs == epochs:
        return None
    if e.lr_schedule == "cosine":
        return (
            f"--epochs={e.epochs}: the step size, which was to fall to 0 over {epochs} epochs, "
            f"falls over {e.epochs} from the start, so it jumps to where that law has it by now"
        )
    if not grows:
        return None
    where = "back" if e.epochs > epochs else "on"
    return (
        f"--epochs={e.epochs}: the coupling, which was to grow over {epochs} epochs, grows over "
        f"{e.epochs} from the start, so it jumps {where} to where that law has it by now"
    )


def _check_size(experiment: Experiment) -> None:
    held_out, count = experiment.validation_images, ENTRIES[experiment.dataset].num_train
    if held_out >= count:
        raise FlagError(
            f"--validation_images={held_out}: {experiment.dataset} has {count:,} training images: "
            "hold out fewer"
        )


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
    if e.lookahead_alpha > 1:
        raise FlagError(f"--lookahead_alpha={e.lookahead_alpha:g}: must be at most 1")
    if e.lpf_growth < 1:
        raise FlagError(f"--lpf_growth={e.lpf_growth:g}: must be at least 1")
    if e.focusing_growth < 1:
        raise FlagError(f"--focusing_growth={e.focusing_growth:g}: must be at least 1")
