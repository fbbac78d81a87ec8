"""A run keeps the weights that it began with, and its bound is made of them."""

import json
import shutil

import numpy as np
import pytest

from esgd_tf import models
from esgd_tf.runs.checkpoints import load_network
from esgd_tf.runs.components import replica_seed
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.initial_weights import read_initial_weights
from esgd_tf.runs.stored_run import StoredRun
from tests.cli.helpers import SMALL, esgd_tf, interrupted_at, train


def initial(path):
    model, _ = load_network(path / "checkpoints" / "last.keras")
    return read_initial_weights(StoredRun.open(path), [w.shape for w in model.weights])


def built(path, seed=None):
    run = StoredRun.open(path)
    model, _ = load_network(path / "checkpoints" / "last.keras")
    seed = run.run["seed"] if seed is None else seed
    return models.build(
        run.experiment["model"], model.input_shape[1:], model.output_shape[-1],
        dropout=run.experiment["dropout"], seed=seed,
    ).get_weights()  # fmt: skip


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_they_are_those_of_the_network_before_its_first_step(finished):
    assert_equal(initial(finished), built(finished))
    trained = load_network(finished / "checkpoints" / "last.keras")[0].get_weights()
    assert any(not np.array_equal(a, b) for a, b in zip(initial(finished), trained, strict=True))


def test_going_on_leaves_them(interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path / "cut")
    before = (tmp_path / "cut" / "initial.npz").stat()
    assert train("-rl", "--logdir", tmp_path, "-e", "2") == 0
    after = (tmp_path / "cut" / "initial.npz").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert_equal(initial(tmp_path / "cut"), built(tmp_path / "cut"))


@pytest.mark.slow
def test_of_replicas_they_are_those_of_the_center(tmp_path, monkeypatch):
    interrupted_at(monkeypatch, 1)
    flags = (*SMALL, "-L", "0", "-opt", "rsgd", "--replicas", "2", "--logdir", tmp_path)
    assert train(*flags, "-n", "replicas") == 130
    run = tmp_path / "replicas"
    seed = StoredRun.open(run).run["seed"]
    first, second = (built(run, replica_seed(seed, a)) for a in (0, 1))
    means = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    found = initial(run)
    for one, other in zip(found, means, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def refusal(copy):
    with pytest.raises(RunFolderError) as error:
        initial(copy)
    return str(error.value)


def test_a_run_of_before_has_none(copy):
    (copy / "initial.npz").unlink()
    assert "begun by a version that did not keep them" in refusal(copy)


def test_damaged_ones_and_those_of_another_run(copy):
    whole = (copy / "initial.npz").read_bytes()
    for content in (b"", b"no zip", whole[: len(whole) // 2]):
        (copy / "initial.npz").write_bytes(content)
        assert "is damaged" in refusal(copy)
    np.savez(copy / "initial.npz", weight_0000=np.array([{}], dtype=object), run=np.array("x"))
    assert "is damaged" in refusal(copy)
    (copy / "initial.npz").write_bytes(whole)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "id": "another"}))
    assert "is of another run" in refusal(copy)
    np.savez(copy / "initial.npz", weight_0000=np.zeros(3), run=np.array("another"))
    assert "is of another network" in refusal(copy)


QUICK = ("--pac_bayes", "-N", "40", "--bound_samples", "5")


def test_the_bound_of_a_run(finished, tmp_path, capsys):
    assert esgd_tf("landscape", finished, *QUICK, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "holds with probability" in printed
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80
    (entry,) = json.loads((tmp_path / "out" / "landscape.json").read_text())["results"]
    found = entry["result"]
    assert found["examples"] == 40
    assert 0 < found["risk"] <= found["risk_bound"] <= found["bound"] <= 1
    assert found["distance"] > 0.1
    assert [row[1] for row in entry["numbers"]] == ["bound", "risk", "kl", "sigma"]
    assert (tmp_path / "out" / "pac_bayes.png").exists()


def test_no_bound_without_them(copy, tmp_path, capsys):
    (copy / "initial.npz").unlink()
    assert esgd_tf("landscape", copy, *QUICK, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--pac_bayes of copy failed: copy has no initial weights" in error
