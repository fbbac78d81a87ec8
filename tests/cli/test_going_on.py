"""A run in parts shows, keeps and says what a run in one does."""

import shlex

import pytest

from esgd_tf.runs.recorder import Recorder
from tests.cli.helpers import SMALL, STEPS, interrupted_at, train
from tests.cli.test_training_run import history, state


class Killed(BaseException):
    """Nothing in the code under test catches it, as nothing catches a kill."""


def of_tensorboard(run, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    accumulator = EventAccumulator(str(run / "tensorboard" / "train"))
    accumulator.Reload()
    return {e.step: float(make_ndarray(e.tensor_proto)) for e in accumulator.Tensors(tag)}


@pytest.mark.slow
def test_an_equal_limit_is_one_more_and_all_show_the_whole_epoch(finished, tmp_path, capsys):
    flags = ("--logdir", tmp_path, "-n", "parts")
    assert train(*SMALL, *flags, "--limit_steps", "3") == 0
    capsys.readouterr()
    assert train("-rl", *flags, "--limit_steps", "3") == 0
    _, extra = state(tmp_path / "parts" / "checkpoints" / "last.keras")
    assert extra["batches"] == 6
    whole = history(finished)[0]
    _, row, part = history(tmp_path / "parts")
    assert float(part["epoch"]) == pytest.approx(6 / STEPS)
    shown = capsys.readouterr().out
    for name, short in (("loss", "loss"), ("accuracy", "acc")):
        expected = float(whole[name])
        assert float(row[name]) == pytest.approx(expected, rel=1e-5)
        assert of_tensorboard(tmp_path / "parts", f"epoch_{name}")[0] == pytest.approx(expected)
        assert f"{short}: {expected:.4f}" in shown


@pytest.mark.slow
def test_a_kill_just_after_the_last_checkpoint_loses_nothing(drawn, tmp_path, monkeypatch, capsys):
    write_last = Recorder._write_last

    def write_and_die(self, *arguments, **keywords):
        write_last(self, *arguments, **keywords)
        if self.progress.batches == 2 * STEPS:
            raise Killed

    flags = ("--logdir", tmp_path, "-n", "killed", "--keep_every", "1")
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_write_last", write_and_die)
        with pytest.raises(Killed):
            train(*SMALL, *flags)
    run = tmp_path / "killed"
    kept = [run / "checkpoints" / "kept" / f"epoch-0000{k}.keras" for k in (1, 2)]
    assert [state(path)[1]["batches"] for path in kept] == [STEPS, 2 * STEPS]
    assert kept[1].read_bytes() == (run / "checkpoints" / "last.keras").read_bytes()
    assert not (run / "curves.png").exists()
    for _ in range(2):
        assert train("-rl", *flags) == 0
        assert "has had its 2 epochs" in capsys.readouterr().out
        drawn_at = (run / "curves.png").stat().st_mtime_ns
    # Drawn once.
    assert train("-rl", *flags) == 0
    assert (run / "curves.png").stat().st_mtime_ns == drawn_at


@pytest.mark.slow
def test_the_line_to_go_on_with_does_so(tmp_path, monkeypatch, capsys):
    checkpoints = tmp_path / "it's elsewhere"
    flags = ("--logdir", tmp_path / "my runs", "-n", "a run; of mine", "--checkpoint_dir",
             checkpoints, "--data_dir", "tfrecords/", "--nodownload", "-e", "1")  # fmt: skip
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2)
        assert train(*SMALL, *flags) == 130
    line = capsys.readouterr().out.partition("Go on with:\n")[2].splitlines()[0]
    python, script, *words = shlex.split(line)
    assert (python, script) == ("python3", "train.py")
    assert words[-3:] == ["--data_dir", "tfrecords/", "--nodownload"]
    assert train(*words) == 0
    assert state(checkpoints / "last.keras")[1]["batches"] == STEPS
