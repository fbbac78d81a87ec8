"""config.json against the flags: every field of every preset is known, and nothing else passes."""

import dataclasses
import json
import typing
from pathlib import Path

import pytest

import config
from esgd_tf.cli.flags import define_flags, parse
from esgd_tf.cli.settings import make_settings, resume_settings
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.schema import check_config
from esgd_tf.runs.setting import setting_of

PATH = Path("runs/x/config.json")


def parsed(*flags):
    fv = define_flags()
    parse(fv, ["train.py", *flags])
    return fv


def written(*flags):
    """What a new run writes, and what is read of it."""
    return json.loads(json.dumps(make_settings(parsed(*flags), config.PRESETS).to_dict()))


def goes_on(stored):
    return resume_settings(parsed("-rl"), config.PRESETS, stored, PATH)


def test_every_field_of_an_experiment_has_a_flag():
    fv = define_flags()
    hints = typing.get_type_hints(config.Experiment)
    for field in dataclasses.fields(config.Experiment):
        assert field.name in fv, field.name
        assert setting_of(field).may_be_none == (
            type(None) in typing.get_args(hints[field.name])
        ), field.name


@pytest.mark.parametrize("preset", config.PRESETS)
def test_what_is_written_can_be_read(preset):
    for optimizer in config.PRESETS[preset]:
        stored = written("--preset", preset, "-opt", optimizer)
        assert (
            goes_on(stored).to_dict()
            == make_settings(
                parsed("--preset", preset, "-opt", optimizer), config.PRESETS
            ).to_dict()
        )


def test_flags_of_all_kinds_come_back():
    flags = ["-d", "cifar10", "--devices", "CPU:0,CPU:1", "--lr_drops", "2,3.5", "--scale_lr",
             "--limit_steps", "3", "--corrupt", "label_noise:0.2"]  # fmt: skip
    back = goes_on(written(*flags))
    assert back.experiment.lr_drops == (2, 3.5)
    assert back.run.devices == ["CPU:0", "CPU:1"]


WRONG = [
    ("experiment", "batch_size", "many"),
    ("experiment", "batch_size", None),
    ("experiment", "batch_size", 0),
    ("experiment", "batch_size", True),
    ("experiment", "batch_size", 128.0),
    ("experiment", "epochs", "3"),
    ("experiment", "epochs", 10**30),
    ("experiment", "learning_rate", "0.1"),
    ("experiment", "learning_rate", -1),
    ("experiment", "learning_rate", float("nan")),
    ("experiment", "learning_rate", 10**400),
    ("experiment", "dropout", 1.0),
    ("experiment", "lr_drops", None),
    ("experiment", "lr_drops", 3),
    ("experiment", "lr_drops", ["3"]),
    ("experiment", "lr_drops", [5, 3]),
    ("experiment", "lr_drops", [float("inf")]),
    ("experiment", "corrupt", 3),
    ("experiment", "corrupt", "dubble"),
    ("experiment", "dataset", "imagenet"),
    ("experiment", "dataset", ["mnist"]),
    ("experiment", "model", None),
    ("experiment", "optimizer", "lbfgs"),
    ("experiment", "replicas", {}),
    ("experiment", "warp", 9),
    ("run", "jit_compile", True),
    ("run", "jit_compile", "maybe"),
    ("run", "seed", "x"),
    ("run", "seed", None),
    ("run", "on_nan", None),
    ("run", "limit_steps", 0),
    ("run", "devices", "CPU:0"),
    ("run", "sync_bn", "yes"),
]


@pytest.mark.parametrize(("part", "name", "value"), WRONG)
def test_a_value_that_no_flag_could_have_given(part, name, value):
    stored = written("--preset", "quickstart")
    stored[part][name] = value
    with pytest.raises(RunFolderError, match=f"damaged or of another version: {name!r} is "):
        goes_on(stored)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.clear(), "has no 'experiment'"),
        (lambda c: c["experiment"].pop("learning_rate"), "'learning_rate' is missing"),
        (lambda c: c.update(run=[]), "has no 'run'"),
        (lambda c: c.update(preset=3), "'preset', 'id' or 'overridden' is no text"),
        (lambda c: c.update(id=3), "'preset', 'id' or 'overridden' is no text"),
        (lambda c: c.update(overridden=[3]), "'preset', 'id' or 'overridden' is no text"),
        (lambda c: c.update(command="walkers"), "runs/x is a run of walkers, not of train.py"),
        (lambda c: c["experiment"].update(model="resnet"), "Unknown model 'resnet'"),
    ],
)
def test_a_config_that_is_not_one(change, says):
    stored = written("--preset", "quickstart")
    change(stored)
    with pytest.raises(RunFolderError, match=says):
        goes_on(stored)


@pytest.mark.parametrize("stored", [None, [], 3, "text"])
def test_json_that_is_no_config(stored):
    with pytest.raises(RunFolderError, match="it is no JSON object"):
        check_config(stored, PATH, {"experiment": (), "run": ()})


def test_a_run_of_before_a_flag_existed_goes_on():
    stored = written("--preset", "quickstart")
    for name in ("corrupt", "replicas", "coupling_gamma"):
        del stored["experiment"][name]
    del stored["run"]["monitor"], stored["overridden"]
    assert goes_on(stored).experiment.corrupt == "none"
