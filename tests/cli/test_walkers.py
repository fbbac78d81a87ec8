"""`walkers`: a run, its pictures, questions through a pipe, going on, and every refusal."""

import json
import os
import struct
import sys

import pytest

from esgd_tf.walkers.records import Records
from tests.cli.helpers import esgd_tf

TINY = ("--dataset", "fashion_mnist_small", "--n_samples_train", "60", "--n_samples_test", "40",
        "--n_hidden", "4", "-b", "20", "--n_steps", "6", "--freq", "3", "--c1", "0", "--c2", "1",
        "--resolution", "2")  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two coupled workers with its pictures."""
    logdir = tmp_path_factory.mktemp("runs")
    (logdir / "schedule.csv").write_text("step,name,value\n3,lr,0.05\n")
    status = esgd_tf(
        "walkers", *TINY, "--n_workers", "2", "--alpha", "0.1", "--schedule",
        logdir / "schedule.csv", "--logdir", logdir, "-n", "two",
    )  # fmt: skip
    assert status == 0
    return logdir / "two"


def rows(folder):
    return [json.loads(line) for line in (folder / "table.jsonl").read_text().splitlines()]


def refused(capsys, status, *words):
    """Return the one line that the command writes to stderr."""
    assert esgd_tf("walkers", *words) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_run_and_its_pictures(finished, capsys, tmp_path):
    names = {path.name for path in finished.iterdir()}
    assert names >= {"two-results.csv", "two-metadata.csv", "two-interpolations.csv",
                     "two-distances.csv", "table.jsonl", "control.json", "state.npz"}  # fmt: skip
    found = rows(finished)
    assert [r["value"] for r in found if r["kind"] == "control"] == [0.05]
    assert {r["worker"] for r in found if r["kind"] == "stats"} == {0, 1, 2}
    assert found[-1] == {"kind": "end", "step": 6, "by": "n_steps"}
    assert esgd_tf("walkers", "plot", finished) == 0
    assert capsys.readouterr().out == f"{finished / 'walkers.png'}\n"
    content = (finished / "walkers.png").read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1000
    assert height > 600
    assert esgd_tf("walkers", "plot", finished, "--out", tmp_path / "page.svg") == 0
    assert (tmp_path / "page.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_questions_through_a_pipe_and_going_on(tmp_path, capsys, monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write("lr 0.01\n\nmomentum 0.9\nspeed 3\nsteps 1\n")
    run = ("--logdir", tmp_path, "-n", "asked")
    with os.fdopen(reading) as answers:
        monkeypatch.setattr(sys, "stdin", answers)
        status = esgd_tf("walkers", *TINY, "--n_workers", "0", *run, "--user_input")
    assert status == 0
    out = capsys.readouterr().out
    assert "step 0: lr is 0.01 now, was 0.1 (prompt)" in out
    assert "step 3: momentum is 0.9 now, was 0.5 (prompt)" in out
    assert "there is no 'speed'" in out
    assert "no more answers" in out
    found = rows(tmp_path / "asked")
    assert found[-1]["step"] == 4
    assert [r["source"] for r in found if r["kind"] == "control"] == ["prompt"] * 3

    assert esgd_tf("walkers", "-rl", *run, "--n_steps", "7") == 0
    assert "going on after 4 of 7 steps" in capsys.readouterr().out
    found = rows(tmp_path / "asked")
    assert (found[-1]["kind"], found[-1]["step"]) == ("end", 7)
    held = json.loads((tmp_path / "asked" / "control.json").read_text())
    assert (held["lr"], held["momentum"]) == (0.01, 0.9)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--lr", "0"), "--lr=0.0: must be above 0"),
        (("--lr", "fast"), "--lr=fast: must be a number"),
        (("--momentum", "1"), "--momentum=1.0: must be below 1"),
        (("--n_workers", "-1"), "n_workers"),
        (("--dataset", "nothing"), "--dataset=nothing: must be one of"),
        (("--model", "nothing"), "--model=nothing: unknown model"),
        (("--n_hidden", "0"), "n_hidden"),
        (("--corrupt", "nothing"), "--corrupt=nothing: there is no corruption"),
        (("--coupling", "glue"), "coupling"),
        (("--c1", "0.33"), "--c1=0.33: must be a multiple of 1 / resolution"),
        (("--explore_from", "0,7"), "--explore_from=7: must name workers, 0 ... 1"),
        (("--explore_from", "x"), "--explore_from=x: must be numbers"),
        (("--schedule", "/nothing.csv"), "--schedule=/nothing.csv: /nothing.csv: No such file"),
        (("--ask_every", "3"), "--ask_every belongs to --user_input"),
        (("--name", "a/b"), "--name=a/b: must be the name of a folder"),
        (("-rl",), "--restore_last needs the --name"),
        (("-rl", "-n", "x", "--lr", "1"), "--lr: a run that goes on keeps its settings"),
        (("somewhere",), "one word too many"),
        (("--no_such_flag",), "no_such_flag"),
        (("plot",), "give RUN"),
        (("plot", "x", "--out", "x.txt"), "--out=x.txt: must be the name of a .png or"),
    ],
)
def test_bad_flags(capsys, flags, sentence):
    assert sentence in refused(capsys, 2, *flags)


def test_a_run_that_died_before_its_first_state_starts(tmp_path, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "state.npz")

    run = ("--logdir", tmp_path, "-n", "run")
    with monkeypatch.context() as patch:
        patch.setattr(Records, "save", full)
        assert esgd_tf("walkers", *TINY, "--n_workers", "0", *run) == 1
    err = capsys.readouterr().err
    assert "No space left on device: state.npz" in err
    assert esgd_tf("walkers", "-rl", *run, "--n_steps", "2") == 0
    assert "has no state yet: it starts anew" in capsys.readouterr().out
    assert rows(tmp_path / "run")[-1] == {"kind": "end", "step": 2, "by": "n_steps"}


def test_a_schedule_for_workers_that_are_not_there(tmp_path, capsys):
    (tmp_path / "s.json").write_text('[[3, "walk", 2]]')
    assert "walk must name a worker, 0 ... 1" in refused(
        capsys, 2, "--schedule", tmp_path / "s.json"
    )


def test_other_refusals(finished, tmp_path, capsys):
    logdir = finished.parent
    where = ("--logdir", logdir, "-n", "two")
    assert "holds a run already: go on with it by -rl" in refused(capsys, 1, *TINY, *where)
    assert "no run folder" in refused(capsys, 1, "-rl", "--logdir", tmp_path, "-n", "none")
    assert "is no walkers run" in refused(capsys, 1, "plot", tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"command": "train"}')
    assert "is no run of walkers" in refused(capsys, 1, "-rl", "--logdir", tmp_path, "-n", "broken")
    (broken / "config.json").write_text('{"command": "walkers", "settings": {"lr": -1}}')
    assert "damaged or of another version" in refused(
        capsys, 1, "-rl", "--logdir", tmp_path, "-n", "broken"
    )
    (broken / "table.jsonl").write_text("{")
    assert "is damaged" in refused(capsys, 1, "plot", broken)
    # Nothing of a run that could not begin is left.
    flags = ("--logdir", tmp_path / "new", "--dataset", "fashion_mnist_small")
    assert "There are 8,750 training images" in refused(
        capsys, 1, *flags, "--n_samples_train", "9000"
    )
    assert "must sum to 1" in refused(capsys, 1, *flags, "--soft_labels", "--p", "0.5")
    assert not (tmp_path / "new").exists()


def test_a_worker_that_diverges(tmp_path, capsys):
    status = esgd_tf("walkers", *TINY, "--n_workers", "0", "--lr", "1e30", "--logdir", tmp_path)
    assert status == 1
    assert "Worker 0 has left after 3 steps: its training loss is nan" in capsys.readouterr().err
