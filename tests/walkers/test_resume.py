"""A run that is killed and goes on is the run that was not killed."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from esgd_tf.runs.errors import DamagedCheckpointError, RunFolderError
from esgd_tf.runs.run_folder import RunFolder
from esgd_tf.walkers import Experiment, Settings
from tests.walkers.helpers import experiment, linear, of_kind, problem, weights_of

ROOT = Path(__file__).resolve().parents[2]
RUN = {"n_workers": 2, "n_steps": 10, "freq": 2, "weight_init_std": 0.3}
SHORT = {"n_workers": 1, "n_steps": 6, "freq": 2, "alpha": 0.2}
SCHEDULE = ((3, "lr", 0.1), (3, "momentum", 0.9), (6, "alpha", 0.2))


def files(folder):
    """What a run has written, but for the state, pictures and networks."""
    return {p.name: p.read_text() for p in folder.iterdir() if p.suffix in (".csv", ".jsonl")}


class Killed(BaseException):
    """Ends a run without any of its clean-up."""


@pytest.mark.parametrize(
    "settings", [{"optimization": "LBFGS", "n_workers": 1, "n_steps": 8}, {"schedule": SCHEDULE}]
)
@pytest.mark.few(1)
def test_a_run_goes_on_where_it_was_cut(tmp_path, settings):
    whole = experiment(tmp_path / "a" / "run", **{**RUN, **settings})
    whole.run()
    cut = experiment(tmp_path / "b" / "run", **{**RUN, **settings})
    count = cut.workers.advance

    def advance():
        count()
        if cut.workers.steps == 7:
            raise Killed

    cut.workers.advance = advance
    with pytest.raises(Killed):
        cut.run()
    # What a killed process may have written after the last state.
    with (tmp_path / "b" / "run" / "run-results.csv").open("a") as file:
        file.write("0,0.1,8,half a li")
    again = experiment(tmp_path / "b" / "run", {"resume": True}, **{**RUN, **settings})
    again.run()
    assert files(tmp_path / "b" / "run") == files(tmp_path / "a" / "run")
    for k in whole.workers.ids:
        for a, b in zip(weights_of(again, k), weights_of(whole, k), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not list((tmp_path / "b" / "run").glob(".partial*"))


def with_batch_norm(seed):
    inputs = keras.Input((3,))
    uniform = keras.initializers.RandomUniform(-0.5, 0.5, seed=seed + 1)
    hidden = keras.layers.Dense(4, kernel_initializer=uniform)(inputs)
    outputs = keras.layers.Dense(2)(keras.layers.BatchNormalization(momentum=0.5)(hidden))
    return keras.Model(inputs, outputs)


@pytest.mark.slow
def test_statistics_of_batch_norm_are_those_of_a_run_that_was_not_cut(tmp_path, monkeypatch):
    """They are estimated from minibatches, which must not depend on where it was cut."""
    monkeypatch.setattr("tests.walkers.helpers.linear", with_batch_norm)
    settings = {**RUN, "optimizer": "entropy-sgd", "langevin_steps": 3, "alpha": 0.2, "n_steps": 8}
    whole = experiment(tmp_path / "a" / "run", **settings)
    whole.run()
    cut = experiment(tmp_path / "b" / "run", **settings, schedule=((4, "quit", True),))
    cut.run()
    again = experiment(tmp_path / "b" / "run", {"resume": True}, **settings)
    again.run()
    ours, theirs = (
        {(r["step"], r["worker"]): r for r in of_kind(exp, "stats")} for exp in (again, whole)
    )
    assert ours.keys() == {(step, k) for step in (6, 8) for k in range(3)}
    for key, row in ours.items():
        assert row == theirs[key]


def test_a_schedule_that_comes_with_going_on(tmp_path):
    folder = tmp_path / "run"
    experiment(folder, n_workers=0, n_steps=4).run()
    added = ((2, "lr", 0.9), (4, "lr", 0.05), (6, "momentum", 0.9), (9, "lr", 0.01))
    said = []
    more = {"resume": True, "n_steps": 7, "say": said.append}
    exp = experiment(folder, more, n_workers=0, n_steps=4, schedule=added)
    exp.run()
    changes = [(r["step"], r["name"], r["value"]) for r in of_kind(exp, "control")]
    assert changes == [(4, "lr", 0.05), (6, "momentum", 0.9)]
    assert "WARNING: the schedule's lr 0.9 at step 2 is in the past" in said
    # It is part of the run from now on, and nothing is applied twice.
    stored = Settings.from_dict(RunFolder(folder).read_config()["settings"])
    assert (stored.schedule, stored.n_steps) == (added, 7)
    last = Experiment(
        stored, folder, problem=problem(), build=linear, resume=True, n_steps=10, say=said.append
    )
    last.run()
    changes = [(r["step"], r["name"], r["value"]) for r in of_kind(last, "control")]
    assert changes == [(9, "lr", 0.01)]
    assert said.count("WARNING: the schedule's lr 0.9 at step 2 is in the past") == 1


@pytest.mark.slow
def test_more_steps_and_no_state(tmp_path):
    exp = experiment(tmp_path / "run", n_workers=0, n_steps=4)
    exp.run()
    more = experiment(tmp_path / "run", {"resume": True, "n_steps": 8}, n_workers=0, n_steps=4)
    more.run()
    assert more.workers.steps == 8
    one = experiment(None, n_workers=0, n_steps=8)
    one.run()
    for a, b in zip(weights_of(more, 0), weights_of(one, 0), strict=True):
        np.testing.assert_array_equal(a, b)
    state = tmp_path / "run" / "state.npz"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 255
    state.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="is damaged"):
        experiment(tmp_path / "run", {"resume": True}, n_workers=0, n_steps=4).run()
    state.unlink()
    with pytest.raises(RunFolderError, match="holds no state to go on from"):
        experiment(tmp_path / "run", {"resume": True}, n_workers=0, n_steps=4).run()


@pytest.mark.slow  # `Killed` above is a kill but for the process' end
def test_after_a_real_kill(tmp_path):
    """SIGKILL between two steps, by the process itself."""
    code = (
        "import os, signal, sys\n"
        "from tests.walkers.helpers import experiment\n"
        "from tests.walkers.test_resume import SHORT\n"
        f"exp = experiment({str(tmp_path / 'b' / 'run')!r}, **SHORT)\n"
        "count = exp.workers.advance\n"
        "def advance():\n"
        "    count()\n"
        "    if exp.workers.steps == 5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "exp.workers.advance = advance\n"
        "exp.run()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False)
    assert done.returncode == -9
    again = experiment(tmp_path / "b" / "run", {"resume": True}, **SHORT)
    again.run()
    whole = experiment(tmp_path / "a" / "run", **SHORT)
    whole.run()
    assert files(tmp_path / "b" / "run") == files(tmp_path / "a" / "run")
