"""Whose a run folder, a name and a checkpoint are: what is taken, passed over, refused."""

import json
import os
import shutil
import time

import pytest

from esgd_tf import data
from esgd_tf.cli import train as train_module
from esgd_tf.runs.run_folder import RunFolder
from tests.cli.helpers import SMALL, esgd_tf, train


@pytest.fixture
def own(finished, tmp_path):
    """A copy of the run."""
    return shutil.copytree(finished, tmp_path / "own")


@pytest.fixture
def other(finished, tmp_path):
    """Another run of the same experiment, with checkpoints that are not its own."""
    folder = shutil.copytree(finished, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    assert len(config["id"]) == 32
    config["id"] = "of another run"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(capsys, status, *flags):
    """The sentence with which train.py refuses."""
    assert train(*flags) == status
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("train.py: ")]
    return line


def test_a_run_does_not_go_on_from_the_checkpoint_of_another(own, other, tmp_path, capsys):
    before = (other / "history.csv").read_bytes()
    place = ("--logdir", tmp_path, "-n", "other", "-e", 3)
    # In the place of its own, by a path, and as what is left when the last one is damaged.
    assert "last.keras is of another run" in refused(capsys, 1, "-rl", *place)
    for path in (other / "checkpoints").iterdir():
        path.unlink()
    foreign = own / "checkpoints" / "best.keras"
    assert f"{foreign} is of another run" in refused(capsys, 1, "-r", foreign, *place)
    assert (other / "history.csv").read_bytes() == before
    assert not list((other / "checkpoints").iterdir())


def test_commands_do_not_take_the_checkpoint_of_another_run(
    own, other, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # `landscape` makes its folder there
    assert esgd_tf("evaluate", other) == 1
    assert "last.keras is of another run" in capsys.readouterr().err
    for command in ("evaluate", "landscape"):
        assert esgd_tf(command, other, "--checkpoint", own / "checkpoints" / "best.keras") == 1
        assert "best.keras is of another run" in capsys.readouterr().err
    assert esgd_tf("evaluate", own, "--checkpoint", own / "checkpoints" / "best.keras") == 0


@pytest.mark.slow
def test_a_run_of_before_runs_had_ids_is_taken(own, tmp_path, capsys):
    config = json.loads((own / "config.json").read_text())
    stored = config.pop("id")
    (own / "config.json").write_text(json.dumps(config))
    # Its checkpoints had none either.
    for path in {p.resolve() for p in (own / "checkpoints").glob("*.keras")}:
        content = path.read_bytes()
        assert stored.encode() in content
        without(path)
    assert train("-rl", "--logdir", tmp_path, "-n", "own") == 0
    assert "more by -e" in capsys.readouterr().out
    assert esgd_tf("evaluate", own) == 0


def without(path):
    """Take the id of its run out of a checkpoint."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    extra = json.loads(members["esgd_tf.json"])
    del extra["run"]
    members["esgd_tf.json"] = json.dumps(extra).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_two_runs_do_not_share_a_checkpoint_folder(own, tmp_path, capsys):
    shared = own / "checkpoints"
    before = (shared / "last.keras").read_bytes()
    flags = (*SMALL, "--logdir", tmp_path, "-n", "new", "--checkpoint_dir", shared)
    assert "name another --checkpoint_dir" in refused(capsys, 1, *flags)
    assert (shared / "last.keras").read_bytes() == before
    assert not (tmp_path / "new" / "config.json").exists()


@pytest.mark.parametrize("flags", [SMALL, ("-rl", "-e", 3)], ids=["new", "going on"])
def test_a_start_that_was_overtaken_while_it_loaded(own, tmp_path, monkeypatch, capsys, flags):
    """The first is over, and has let go of the lock, before the second comes to its data."""
    run = tmp_path / "own" if flags[0] == "-rl" else tmp_path / "new"
    load = data.load

    def overtaken(*arguments, **keywords):
        folder = RunFolder(run)
        with folder:
            folder.write_config(json.loads((own / "config.json").read_text()))
            folder.write_history(RunFolder(own).read_history())
        return load(*arguments, **keywords)

    monkeypatch.setattr(data, "load", overtaken)
    error = refused(capsys, 1, *flags, "--logdir", tmp_path, "-n", run.name)
    assert "Another training has written to" in error
    assert len(RunFolder(run).read_history()) == 2


@pytest.mark.slow
def test_starts_that_race_for_one_name(tmp_path, monkeypatch, capsys):
    strategy = train_module._strategy
    first = tmp_path / "runs" / "quickstart-entropy-sgd"

    def overtaken(run):
        first.mkdir(parents=True)
        (first / "config.json").write_text("of the faster one")
        return strategy(run)

    monkeypatch.setattr(train_module, "_strategy", overtaken)
    flags = (*SMALL, "--logdir", tmp_path / "runs", "--limit_steps", 1)
    assert train(*flags) == 0
    assert (first / "config.json").read_text() == "of the faster one"
    second = RunFolder(first.with_name("quickstart-entropy-sgd-2"))
    assert len(second.read_history()) == 1
    assert f"run folder: {second.path}" in capsys.readouterr().out


def test_a_start_that_fails_leaves_no_folder(tmp_path, capsys):
    flags = (*SMALL, "--logdir", tmp_path / "deep" / "runs", "--data_dir", tmp_path / "none")
    assert train("-d", "mnist", *flags, "--nodownload") == 1
    assert not (tmp_path / "deep").exists()


@pytest.mark.slow
def test_lines_that_a_history_has_lost_are_told(own, tmp_path, capsys):
    place = ("-rl", "--logdir", tmp_path, "-n", "own")
    lines = (own / "history.csv").read_text().splitlines(keepends=True)
    (own / "history.csv").write_text("".join([lines[0], lines[2]]))
    assert train(*place) == 0
    assert "history.csv has lost the lines of epoch 1:" in capsys.readouterr().err
    (own / "history.csv").unlink()
    assert train(*place) == 0
    assert "history.csv has lost the lines of 2 epochs, from 1 on:" in capsys.readouterr().err
    (own / "history.csv").write_text("".join(lines)[:-4])
    assert "its last line is cut" in refused(capsys, 1, *place)


@pytest.mark.slow
def test_going_on_from_a_kept_checkpoint(own, capsys):
    kept = own / "checkpoints" / "kept"
    kept.mkdir()
    shutil.copy(own / "checkpoints" / "last.keras", kept / "epoch-00002.keras")
    assert train("-r", kept / "epoch-00002.keras") == 0
    assert "more by -e" in capsys.readouterr().out


def test_a_checkpoint_in_no_run_folder(own, tmp_path, capsys):
    alone = tmp_path / "a" / "b" / "c" / "last.keras"
    alone.parent.mkdir(parents=True)
    shutil.copy(own / "checkpoints" / "last.keras", alone)
    assert "name its run by -n" in refused(capsys, 1, "-r", alone)
    assert train("-r", alone, "--logdir", tmp_path, "-n", "own") == 0


@pytest.mark.slow
def test_the_last_run_is_not_one_of_walkers(own, tmp_path, capsys):
    walkers = tmp_path / "walkers-nn-100-2"
    walkers.mkdir()
    (walkers / "config.json").write_text('{"command": "walkers", "settings": {}}')
    (walkers / "dangling").symlink_to(tmp_path / "nowhere")
    later = time.time() + 60
    os.utime(walkers / "config.json", (later, later))
    assert train("-rl", "--logdir", tmp_path) == 0
    captured = capsys.readouterr()
    assert f"{walkers} is newer, but a run of walkers: going on with {own}." in captured.err
    assert "more by -e" in captured.out
    shutil.rmtree(own)
    assert "which is one of walkers" in refused(capsys, 1, "-rl", "--logdir", tmp_path)
    named = ("--logdir", tmp_path, "-n", walkers.name)
    assert "is a run of walkers, not of train.py" in refused(capsys, 1, "-rl", *named)
    assert "holds a run already" in refused(capsys, 1, *SMALL, *named)
    assert esgd_tf("evaluate", walkers) == 1
    assert "is a run of walkers, not of train.py" in capsys.readouterr().err


def test_names_that_lead_to_files_and_to_nothing(tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, says in (("file", "is a file"), ("link", "is a link to nothing")):
        assert says in refused(capsys, 1, *SMALL, "--logdir", tmp_path, "-n", name)
        refused(capsys, 1, "-rl", "--logdir", tmp_path, "-n", name)
    assert "is a file" in refused(capsys, 1, *SMALL, "--logdir", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
    # A name that is made up goes around links to nothing.
    (tmp_path / "quickstart-entropy-sgd").symlink_to(tmp_path / "nowhere")
    from esgd_tf.cli.places import free_names

    class Settings:
        preset = "quickstart"

        class experiment:  # noqa: N801
            optimizer = "entropy-sgd"

    assert next(free_names(tmp_path, Settings)).name == "quickstart-entropy-sgd-2"
