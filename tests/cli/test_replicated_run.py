"""train.py with replicas, from flags to files."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.replicas import OwnMinibatches
from esgd_tf.runs.checkpoints import load_model
from esgd_tf.runs.components import Batches
from esgd_tf.training import strategies
from tests.cli.helpers import SMALL, esgd_tf, interrupted_at, train
from tests.cli.test_training_run import history, state

# 5 minibatches of a pass, shared by two replicas: an epoch is 2 steps of both, up to rounding.
FLAGS = (*SMALL, "-m", "mnistfc", "--dropout", "0.3", "--replicas", "2", "--monitor", "100")
COUPLED = {
    "rsgd": ("-opt", "rsgd", "-L", "0", "--coupling_every", "2", "--focusing_growth", "5"),
    "parle": ("-opt", "parle", "-L", "3", "-e", "3"),
}


@pytest.fixture(scope="module", params=["rsgd", "parle"])
def whole(request, tmp_path_factory):
    logdir = tmp_path_factory.mktemp(request.param)
    assert train(*FLAGS, *COUPLED[request.param], "--logdir", logdir, "-n", "whole") == 0
    return request.param, logdir / "whole"


@pytest.mark.slow
def test_history_has_what_the_papers_log(whole):
    optimizer, run = whole
    rows = history(run)
    assert [int(row["gradient_evaluations"]) for row in rows] == [
        4 * (k + 1) for k in range(len(rows))
    ]
    names = ["coupling", "distance", "distance_0", "distance_1", "norm", "norm_center"]
    names += [
        f"{split}_{who}_{what}"
        for split in ("train", "test")
        for who in ("center", "replica0", "replica1", "ensemble")
        for what in ("loss", "accuracy")
    ]
    for name in names:
        assert np.isfinite(float(rows[-1][name])), name
    if optimizer == "rsgd":  # independent starts: the distance was measured, and gamma grew
        assert float(rows[-1]["coupling"]) > float(rows[0]["coupling"]) > 0


@pytest.mark.slow
def test_going_on_after_ctrl_c_within_an_epoch(whole, tmp_path, monkeypatch, capsys):
    optimizer, run = whole
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        flags = (*FLAGS, *COUPLED[optimizer], "--logdir", tmp_path, "-n", "whole")
        assert train(*flags) == 130
    assert "after 6 gradient evaluations" in capsys.readouterr().out
    assert train("-rl", "--logdir", tmp_path) == 0
    ours, extra = state(tmp_path / "whole" / "checkpoints" / "last.keras")
    theirs, expected = state(run / "checkpoints" / "last.keras")
    assert extra == expected
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    for row, wanted in zip(history(tmp_path / "whole"), history(run), strict=True):
        for name in wanted:
            if name != "seconds":
                assert float(row[name]) == pytest.approx(float(wanted[name]), rel=1e-5), name


@pytest.mark.slow
def test_evaluate_measures_the_center(whole, capsys):
    _, run = whole
    assert esgd_tf("evaluate", run) == 0
    last, out = history(run)[-1], capsys.readouterr().out
    assert f"accuracy, at the center     {100 * float(last['val_accuracy']):.2f} %" in out
    assert f"after {int(last['gradient_evaluations'])} gradient evaluations" in out


@pytest.mark.slow  # tests/replicas/test_engines.py has it without the command line
def test_one_replica_a_device_is_what_one_device_computes(
    whole, tmp_path, two_cpus, monkeypatch, capsys
):
    # One strategy for all tests: see `two_cpus`.
    monkeypatch.setattr(strategies, "make_strategy", lambda *_, **__: two_cpus)
    optimizer, run = whole
    flags = (
        *FLAGS,
        *COUPLED[optimizer],
        "--logdir",
        tmp_path,
        "-n",
        "two",
        "--strategy",
        "mirrored",
    )
    assert train(*flags, "--devices", "CPU:0,CPU:1") == 0
    assert "one a device" in capsys.readouterr().out
    for row, wanted in zip(history(tmp_path / "two"), history(run), strict=True):
        for name in ("loss", "val_loss", "distance", "coupling", "test_ensemble_loss"):
            assert float(row[name]) == pytest.approx(float(wanted[name]), rel=2e-4), name


def test_three_replicas_on_two_devices_are_refused(tmp_path, two_cpus, monkeypatch, capsys):
    monkeypatch.setattr(strategies, "make_strategy", lambda *_, **__: two_cpus)
    flags = (*FLAGS, "-opt", "rsgd", "-L", "0", "--replicas", "3", "--logdir", tmp_path)
    assert train(*flags, "--strategy", "mirrored", "--devices", "CPU:0,CPU:1") == 1
    assert "--replicas=3 and 2 devices" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:A coupling of 0.1 with learning rate")
@pytest.mark.slow
def test_checkpoint_steps_count_all_replicas_and_nothing_bad_is_saved(tmp_path, capsys):
    """Every gradient but the first two is infinite; 2 evaluations a step."""
    flags = (*FLAGS, *COUPLED["rsgd"], "--monitor", "0", "--budget", "each", "-e", "1")
    flags += ("--logdir", tmp_path, "--lr", "1e30", "--coupling_gamma", "0.1")
    assert train(*flags, "-n", "stopped", "--checkpoint_steps", "2") == 1
    error = capsys.readouterr().err
    assert "at minibatch 2 of epoch 1" in error
    assert "last.keras is from before" in error
    _, extra = state(tmp_path / "stopped" / "checkpoints" / "last.keras")
    assert extra["batches"] == 1
    assert train("-rl", "--logdir", tmp_path, "-n", "stopped") == 1
    assert "at minibatch 2 of epoch 1" in capsys.readouterr().err


@pytest.mark.slow
def test_skipped_minibatches_are_counted_over_all_replicas(tmp_path, monkeypatch):
    """Every replica's first two minibatches have a NaN."""
    training = Batches.training

    def poisoned(self, done):
        def poison(number, batch):
            images, labels = batch
            return tf.where(number < 2, np.float32("nan") * images, images), labels

        own = training(self, done)
        return OwnMinibatches(lambda a: own.make(a).enumerate().map(poison))

    monkeypatch.setattr(Batches, "training", poisoned)
    flags = (*FLAGS, *COUPLED["rsgd"], "--monitor", "0", "--budget", "each", "-e", "1")
    flags += ("--logdir", tmp_path, "-n", "skipped", "--on_nan", "skip", "--bn_reestimate", "0")
    flags += ("--coupling_gamma", "0.1")
    assert train(*flags) == 0
    (row,) = history(tmp_path / "skipped")
    counts = {name: int(row[name]) for name in ("gradient_evaluations", "outer_updates", "skipped")}
    assert counts == {"gradient_evaluations": 6, "outer_updates": 6, "skipped": 4}


@pytest.mark.slow
def test_without_reestimation_statistics_are_the_mean_of_the_replicas(tmp_path):
    flags = (*FLAGS, *COUPLED["rsgd"], "-m", "mnistconv", "--bn_reestimate", "0", "-e", "1")
    assert train(*flags, "--monitor", "0", "--logdir", tmp_path, "-n", "run") == 0
    model = load_model(tmp_path / "run" / "checkpoints" / "last.keras")
    center, *replicas = (
        [w.numpy() for w in m.non_trainable_variables if "moving" in w.path]
        for m in (model.center(), model.replica(0), model.replica(1))
    )
    assert len(center) > 1
    for found, *parts in zip(center, *replicas, strict=True):
        np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-6)


@pytest.mark.slow
def test_each_gives_every_replica_a_whole_budget(tmp_path):
    flags = (*FLAGS, *COUPLED["rsgd"], "--budget", "each", "-e", "1", "--logdir", tmp_path)
    assert train(*flags, "-n", "each") == 0
    assert int(history(tmp_path / "each")[-1]["gradient_evaluations"]) == 10


@pytest.mark.slow
def test_the_checkpoint_loads_as_a_model_with_a_center(whole, tmp_path):
    _, run = whole
    model = load_model(shutil.copy(run / "checkpoints" / "last.keras", tmp_path / "r.keras"))
    assert model.replicas == 2
    assert len(model.center().weights) == len(model.replica(1).weights)
