"""A run that is killed and goes on is the run that was not killed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from esgd_tf.training.errors import DamagedCheckpointError, RunFolderError
from tests.walkers.helpers import experiment, weights_of

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
