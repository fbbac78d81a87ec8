"""Signals and terminals: a closed one, one in ASCII, and Ctrl-C before anything has begun."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from esgd_tf.runs.figures import plot_history
from esgd_tf.runs.guard import Guard
from tests.cli.helpers import SMALL, STEPS, interrupted_at, train

ROOT = Path(__file__).resolve().parents[2]


class Hangup(io.StringIO):
    """A terminal that is closed after some lines."""

    def __init__(self, lines):
        super().__init__()
        self.left = lines

    def write(self, text):
        self.left -= text.count("\n")
        if self.left < 0:
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


@pytest.mark.slow
def test_a_closed_terminal_saves_and_does_not_end_in_an_error(tmp_path, monkeypatch, capsys):
    """SIGHUP comes, and from then on nothing can be printed either."""
    terminal = Hangup(12)
    monkeypatch.setattr(sys, "stdout", terminal)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2, signal.SIGHUP)
        status = train(*SMALL, "--logdir", tmp_path, "-n", "cut", "-v")
    assert status == 128 + signal.SIGHUP
    error = capsys.readouterr().err
    assert error.count("Standard output cannot be written to (Input/output error)") == 1
    assert "Traceback" not in error
    import zipfile

    with zipfile.ZipFile(tmp_path / "cut" / "checkpoints" / "last.keras") as archive:
        assert json.loads(archive.read("esgd_tf.json"))["batches"] == 2
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    assert STEPS > 2


def test_a_run_under_nohup_does_not_hear_its_terminal_close():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Guard():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with Guard() as guard:
        assert signal.getsignal(signal.SIGHUP) == guard._receive


@pytest.mark.slow  # its like is in test_door.py, without a training
def test_verbose_on_a_terminal_in_ascii(tmp_path, monkeypatch, capsys):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    flags = (*SMALL, "--limit_steps", 3, "--logdir", tmp_path, "-n", "plain", "-v", "--gamma", 0)
    assert train(*flags) == 0
    assert b"|grad f|" in raw.getvalue()
    assert "Traceback" not in capsys.readouterr().err


def test_curves_of_a_scope_of_zero_warn_of_nothing(tmp_path):
    rows = [{"epoch": e, "gradient_evaluations": 5 * e, "loss": 0.0, "accuracy": 1.0,
             "val_loss": 0.0, "val_accuracy": 1.0, "scope": 0.0, "seconds": 1.0}
            for e in (1.0, 2.0)]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_history(rows, tmp_path / "curves.png", "gamma 0")
        plot_history([dict(rows[0], coupling=0.0)], tmp_path / "of replicas.png", "no coupling")
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.slow
def test_ctrl_c_while_tensorflow_loads(tmp_path):
    """One sentence, whatever was being imported."""
    command = [sys.executable, "train.py", *map(str, SMALL), "--logdir", str(tmp_path)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        process.stdout.readline()  # the table of settings, after which TensorFlow is imported
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert error == "train.py: Stopped before the training began; nothing was written.\n"
    assert process.returncode == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # ten seconds of patience, after those of TensorFlow
def test_a_worker_whose_peer_never_comes_says_so_and_can_be_stopped(tmp_path):
    cluster = {"worker": ["localhost:23471", "localhost:23472"]}
    job = {"cluster": cluster, "task": {"type": "worker", "index": 1}}
    environment = {**os.environ, "TF_CONFIG": json.dumps(job)}
    command = [sys.executable, "train.py", *map(str, SMALL), "--logdir", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stderr.readline()
        assert line.startswith("train.py: Worker 1 of 2 waits for the others: are all of them")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().startswith("train.py: Stopped before the training began")
    assert process.returncode == -signal.SIGINT
