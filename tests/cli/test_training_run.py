"""train.py from flags to files, in this process: the embedded data, a small batch budget."""

import csv
import json
import re
import shutil
import signal
import zipfile

import numpy as np
import pytest
import tensorflow as tf

import config
from esgd_tf.runs import training_run
from esgd_tf.runs.checkpoints import load_model
from esgd_tf.runs.components import Batches, learning_rate
from esgd_tf.runs.recorder import Recorder
from tests.cli.helpers import SMALL, STEPS, interrupted_at, train


def history(run):
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def state(path):
    """Every number of a checkpoint but the time it took and whose it is."""
    model = load_model(path)
    with zipfile.ZipFile(path) as archive:
        extra = json.loads(archive.read("esgd_tf.json"))
    del extra["seconds"], extra["run"]
    return [v.numpy() for v in model.weights + model.optimizer.variables], extra


def test_the_run_folder(finished, capsys):
    names = {p.name for p in finished.rglob("*") if p.is_file()}
    assert {"config.json", "history.csv", "curves.png", "last.keras", "best.keras"} <= names
    assert not [name for name in names if name.startswith(".partial")]
    stored = json.loads((finished / "config.json").read_text())
    assert stored["experiment"]["langevin_steps"] == 3
    assert "batch_size" in stored["overridden"]
    rows = history(finished)
    assert [float(row["epoch"]) for row in rows] == [1, 2]
    assert [int(row["gradient_evaluations"]) for row in rows] == [STEPS, 2 * STEPS]
    assert [int(row["outer_updates"]) for row in rows] == [1, 3]
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "scope", "learning_rate",
                 "gradient_norm", "outer_gradient_norm", "cosine", "mean_distance",
                 "noise_norm", "seconds"):  # fmt: skip
        assert np.isfinite(float(rows[-1][name])), name
    assert float(rows[0]["scope"]) == pytest.approx(1e-4 * 1.001**2)


def test_plain_keras_evaluates_the_checkpoint_as_the_run_did(finished):
    from esgd_tf import data

    images = data.load("fashion_mnist_small")
    prepare = data.preprocessor("meanstd", images)
    test = data.evaluation_batches(
        images.test_images, images.test_labels, batch_size=500, preprocess=prepare
    )
    model = load_model(finished / "checkpoints" / "last.keras")
    loss, accuracy = model.evaluate(test, verbose=0)
    last = history(finished)[-1]
    assert loss == pytest.approx(float(last["val_loss"]), rel=1e-4)
    assert accuracy == pytest.approx(float(last["val_accuracy"]), abs=1e-6)


def goes_on_to_the_same_bits(cut, finished):
    assert len(history(cut)) == 1
    assert train("-rl", "--logdir", str(cut.parent)) == 0
    ours, extra = state(cut / "checkpoints" / "last.keras")
    theirs, expected = state(finished / "checkpoints" / "last.keras")
    assert extra == expected
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    for row, wanted in zip(history(cut), history(finished), strict=True):
        for name in wanted:
            if name != "seconds":
                assert float(row[name]) == pytest.approx(float(wanted[name]), rel=1e-5), name


@pytest.mark.slow
def test_going_on_after_ctrl_c_within_an_epoch(finished, interrupted, tmp_path):
    cut = shutil.copytree(interrupted, tmp_path / "cut")
    _, extra = state(cut / "checkpoints" / "last.keras")
    assert extra["batches"] == STEPS + 2
    goes_on_to_the_same_bits(cut, finished)


@pytest.mark.slow
def test_going_on_after_sigterm_at_the_end_of_an_epoch(finished, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupted_at(patch, STEPS, signal.SIGTERM)
        status = train(*SMALL, "--logdir", str(tmp_path), "-n", "cut")
    assert status == 128 + signal.SIGTERM
    assert "saved to" in capsys.readouterr().out
    _, extra = state(tmp_path / "cut" / "checkpoints" / "last.keras")
    assert extra["batches"] == STEPS
    goes_on_to_the_same_bits(tmp_path / "cut", finished)


def test_a_finished_run_says_so_and_can_be_given_more(finished, tmp_path, capsys):
    before = (finished / "history.csv").read_bytes()
    assert train("-rl", "--logdir", str(finished.parent), "-n", "whole") == 0
    assert "more by -e" in capsys.readouterr().out
    assert (finished / "history.csv").read_bytes() == before


def test_an_existing_run_is_not_overwritten(finished, capsys):
    before = (finished / "config.json").read_bytes()
    assert train(*SMALL, "--logdir", str(finished.parent), "-n", "whole") == 1
    assert "holds a run already" in capsys.readouterr().err
    assert (finished / "config.json").read_bytes() == before


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, capsys):
    flags = [*SMALL, "--logdir", str(tmp_path), "-n", "wild"]
    assert train(*flags, "--langevin_lr", "1e30", "--lr", "1e30") == 1
    error = capsys.readouterr().err
    assert "gradient was not finite at minibatch 2 of epoch 1" in error
    assert "--langevin_lr" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "wild" / "checkpoints" / "last.keras").exists()


@pytest.mark.few(1)
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
@pytest.mark.slow
def test_a_network_that_gives_nan_is_no_success(on_nan, tmp_path, capsys):
    """The only gradient was finite, the step with it was not."""
    flags = [*SMALL[:6], "-opt", "sgd", "--lr", "1e30", "--limit_steps", "1", "--on_nan", on_nan]
    assert train(*flags, "--logdir", str(tmp_path), "-n", "wild") == 1
    error = capsys.readouterr().err
    assert "The test loss is nan after minibatch 1 of epoch 1; nothing was saved yet" in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "wild" / "checkpoints").iterdir())
    assert not (tmp_path / "wild" / "history.csv").exists()


@pytest.mark.slow  # tests/training/test_nonfinite_guard.py has it without the command line
@pytest.mark.parametrize("optimizer", ["sgd", "rsgd"])
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_what_loss_scaling_skips_is_seen(optimizer, on_nan, tmp_path, capsys):
    flags = [
        "--preset",
        "quickstart",
        "-m",
        "lenet-2-3-8",
        "-b",
        "25",
        "-e",
        "2",
        "-opt",
        optimizer,
    ]
    flags += ["--lr", "1e30", "--mixed_precision", "float16", "--on_nan", on_nan]
    assert train(*flags, "--logdir", str(tmp_path), "-n", "wild") == 1
    error = capsys.readouterr().err
    assert ("even with the loss scaled by 0.5" if on_nan == "stop" else "last 100 mini") in error
    assert not list((tmp_path / "wild" / "checkpoints").iterdir())


@pytest.fixture
def a_nan_at_minibatch_3(monkeypatch):
    """The first image of the third minibatch of the run is not finite."""
    training = Batches.training

    def poisoned(self, done):
        def poison(number, batch):
            images, labels = batch
            bad = tf.logical_and(number == 2 - done, tf.range(len(images)) == 0)
            return tf.where(bad[:, None, None, None], float("nan"), images), labels

        return training(self, done).enumerate().map(poison)

    monkeypatch.setattr(Batches, "training", poisoned)


@pytest.mark.slow
def test_on_nan_skip_leaves_the_minibatch_out(a_nan_at_minibatch_3, tmp_path, capsys):
    flags = [*SMALL, "--on_nan", "skip", "--logdir", str(tmp_path)]
    assert train(*flags, "-n", "whole") == 0
    assert "minibatches skipped, not finite  1" in capsys.readouterr().out
    rows = history(tmp_path / "whole")
    assert [int(row["gradient_evaluations"]) for row in rows] == [STEPS - 1, 2 * STEPS - 1]
    assert [int(row["skipped"]) for row in rows] == [1, 1]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values() if value)


@pytest.mark.slow
def test_on_nan_skip_and_going_on_within_the_epoch(a_nan_at_minibatch_3, tmp_path):
    """To the same bits."""
    flags = [*SMALL, "--on_nan", "skip", "--logdir", str(tmp_path)]
    assert train(*flags, "-n", "whole") == 0
    rows = history(tmp_path / "whole")
    assert train(*flags, "-n", "parts", "--limit_steps", "4") == 0
    assert train("-rl", "--logdir", str(tmp_path), "-n", "parts") == 0
    ours, extra = state(tmp_path / "parts" / "checkpoints" / "last.keras")
    theirs, expected = state(tmp_path / "whole" / "checkpoints" / "last.keras")
    assert extra == expected
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    for row, expected in zip(history(tmp_path / "parts")[-2:], rows, strict=True):
        for key in ("loss", "accuracy"):
            assert float(row[key]) == pytest.approx(float(expected[key]), rel=1e-5)


@pytest.mark.slow
def test_on_nan_stop_saves_nothing_that_is_not_finite(a_nan_at_minibatch_3, tmp_path, capsys):
    flags = [*SMALL, "--checkpoint_steps", "1", "--logdir", str(tmp_path), "-n", "stopped"]
    assert train(*flags) == 1
    error = capsys.readouterr().err
    assert "minibatch 3 of epoch 1" in error
    assert "last.keras is from before" in error
    weights, extra = state(tmp_path / "stopped" / "checkpoints" / "last.keras")
    assert extra["batches"] == 2
    assert not any(np.isnan(w).any() for w in weights[:14])


@pytest.mark.slow
def test_the_last_good_checkpoint_survives_a_later_nan(tmp_path, monkeypatch, capsys):
    count = Recorder.on_train_batch_end

    def poison(self, batch, logs=None):
        count(self, batch, logs)
        if self.progress.batches == STEPS + 1:
            self.model.trainable_variables[0].assign(
                np.full(self.model.trainable_variables[0].shape, np.nan)
            )

    monkeypatch.setattr(Recorder, "on_train_batch_end", poison)
    assert train(*SMALL, "--logdir", str(tmp_path), "-n", "nan") == 1
    assert "last.keras is from before" in capsys.readouterr().err
    weights, extra = state(tmp_path / "nan" / "checkpoints" / "last.keras")
    assert extra["batches"] == STEPS
    assert all(np.isfinite(w).all() for w in weights if w.dtype.kind == "f")


@pytest.mark.slow  # with processes of their own in tests/faults/test_storage.py
def test_a_second_training_in_one_folder_is_refused(finished, capsys):
    from esgd_tf.runs.run_folder import RunFolder

    with RunFolder(finished):
        flags = ["-rl", "-e", "3", "--logdir", str(finished.parent), "-n", "whole"]
        assert train(*flags) == 1
    assert "Another training" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other model"])
@pytest.mark.few(1)
def test_a_damaged_or_foreign_checkpoint_is_refused(finished, tmp_path, capsys, damage):
    run = tmp_path / "copy"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_bytes((finished / "config.json").read_bytes())
    content = bytearray((finished / "checkpoints" / "last.keras").read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        settings = json.loads((run / "config.json").read_text())
        settings["experiment"]["model"] = "mnistconv"
        (run / "config.json").write_text(json.dumps(settings))
    (run / "checkpoints" / "last.keras").write_bytes(content)
    assert train("-rl", "--logdir", str(tmp_path), "-n", "copy") == 1
    error = capsys.readouterr().err
    says = {"truncated": "no whole checkpoint", "flipped": "damaged", "other model": "another"}
    assert says[damage] in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_baseline_run_with_a_limit(drawn, tmp_path, capsys):
    flags = [*SMALL[:6], "-opt", "momentum", "--l2", "1e-4", "--limit_steps", "2", "-v"]
    assert train(*flags, "--logdir", str(tmp_path)) == 0
    run = tmp_path / "quickstart-momentum"
    (row,) = history(run)
    assert int(row["gradient_evaluations"]) == 2
    assert float(row["epoch"]) == pytest.approx(2 / STEPS)
    assert "scope" not in row
    assert (run / "curves.png").exists()
    assert re.search(r"^  gradient evaluations +2$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
def test_going_on_past_a_limit_gives_the_same_bits(finished, tmp_path):
    flags = [*SMALL, "--logdir", str(tmp_path), "-n", "parts"]
    assert train(*flags, "--limit_steps", "3") == 0
    assert train("-rl", "--logdir", str(tmp_path), "-n", "parts") == 0
    ours, _ = state(tmp_path / "parts" / "checkpoints" / "last.keras")
    theirs, _ = state(finished / "checkpoints" / "last.keras")
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_missing_data_is_one_sentence(tmp_path, capsys):
    flags = [
        "-d",
        "cifar10",
        "-m",
        "wrn-16-4",
        "--nodownload",
        "--data_dir",
        str(tmp_path / "none"),
    ]
    assert train(*flags, "--logdir", str(tmp_path / "runs")) == 1
    error = capsys.readouterr().err
    assert "cifar" in error
    assert "--raw_dir" in error or "raw_dir" in error
    assert not (tmp_path / "runs").exists()


def test_tensorboard_has_train_validation_and_hyperparameters(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def tags(part):
        accumulator = EventAccumulator(str(finished / "tensorboard" / part))
        accumulator.Reload()
        return accumulator.Tags()["scalars"] + accumulator.Tags()["tensors"], accumulator

    train_tags, _ = tags("train")
    for name in ("loss", "accuracy", "scope", "gradient_norm", "outer_gradient_norm", "cosine",
                 "mean_distance", "noise_norm", "learning_rate"):  # fmt: skip
        assert f"epoch_{name}" in train_tags
    validation_tags, accumulator = tags("validation")
    assert "epoch_accuracy" in validation_tags
    assert (
        "hparams"
        in accumulator.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name
    )


@pytest.mark.parametrize(
    ("done", "total", "expected"),
    [
        (0, 10, [(0, 2, 5)]),
        (3, 10, [(0, 1, 2), (1, 2, 5)]),
        (5, 10, [(1, 2, 5)]),
        (3, 4, [(0, 1, 1)]),
        (0, 12, [(0, 2, 5), (2, 3, 2)]),
        (0, 2, [(0, 1, 2)]),
        (7, 17, [(1, 2, 3), (2, 3, 5), (3, 4, 2)]),
        (10, 10, []),
    ],
)
def test_segments_of_a_run(done, total, expected):
    assert list(training_run.segments(done, total, 5)) == expected


def test_learning_rate_drops_after_so_many_outer_updates():
    experiment = config.PRESETS["lenet"]["entropy-sgd"]  # L = 20, a drop after 40 epochs
    schedule = learning_rate(experiment, steps_per_epoch=469)
    updates = round(40 * 469 / 20)
    assert float(schedule(updates - 1)) == pytest.approx(1.0)
    assert float(schedule(updates)) == pytest.approx(0.1)
