"""The launcher, with workers that are a few lines of Python and no TensorFlow."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esgd_tf.cli.commands import main

ROOT = Path(__file__).resolve().parents[2]
HEAD = (
    "import json, os, sys, time\n"
    "config = json.loads(os.environ['TF_CONFIG'])\n"
    "index = config['task']['index']\n"
)


@pytest.fixture
def launch(tmp_path):
    def call(script, *flags, arguments=()):
        path = tmp_path / "worker.py"
        path.write_text(HEAD + script)
        return main(["esgd_tf", "launch", *flags, "--", str(path), *arguments])

    return call


def test_every_worker_gets_its_place_and_its_output_a_number(launch, capfd):
    script = "print(json.dumps([config, sys.argv[1:]]))\nprint('to the right', file=sys.stderr)\n"
    assert launch(script, "--workers", "3", arguments=["--flag", "x"]) == 0
    out, err = capfd.readouterr()
    assert sorted(err.splitlines()) == [f"[{i}] to the right" for i in range(3)]
    seen = {}
    for line in out.splitlines():
        number, _, rest = line.partition(" ")
        seen[number], arguments = json.loads(rest)
        assert arguments == ["--flag", "x"]
    assert [seen[f"[{i}]"]["task"] for i in range(3)] == [
        {"type": "worker", "index": i} for i in range(3)
    ]
    (addresses,) = {tuple(config["cluster"]["worker"]) for config in seen.values()}
    assert len(set(addresses)) == 3


def test_one_that_fails_stops_all_and_its_error_is_shown(launch, capfd):
    script = "if index == 1:\n    sys.exit('the reason')\ntime.sleep(600)\n"
    started = time.monotonic()
    assert launch(script) == 1
    assert time.monotonic() - started < 60
    err = capfd.readouterr().err
    assert "worker 1 ended with 1. The others were stopped." in err
    assert err.rstrip().endswith("the reason")


def test_one_that_is_killed_gives_its_signal_as_status(launch, capfd):
    assert launch("os.kill(os.getpid(), 9) if index else time.sleep(600)\n") == 128 + 9
    assert "worker 1 was killed by SIGKILL" in capfd.readouterr().err


@pytest.mark.slow
def test_who_ignores_the_request_is_killed_after_the_grace(launch, capfd):
    script = (
        "import signal\n"
        "if index == 0:\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    print('deaf', flush=True)\n"
        "    time.sleep(600)\n"
        "time.sleep(1)\n"
        "sys.exit(3)\n"
    )
    assert launch(script, "--grace", "0.5") == 3
    assert "[0] deaf" in capfd.readouterr().out


def status_after(number, script, tmp_path):
    """Return what the workers printed after a signal to the launcher, and its status."""
    (tmp_path / "worker.py").write_text(HEAD + script)
    command = [sys.executable, "-m", "esgd_tf", "launch", "--", str(tmp_path / "worker.py")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launcher:
        ready = [launcher.stdout.readline() for _ in range(2)]
        assert sorted(ready) == ["[0] ready\n", "[1] ready\n"]
        launcher.send_signal(number)
        out, _ = launcher.communicate(timeout=60)
    return sorted(out.splitlines()), launcher.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(tmp_path, number):
    script = (
        "import signal\n"
        "def saved(number, frame):\n"
        "    print('saved', flush=True)\n"
        "    sys.exit(128 + number)\n"
        "for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
        "    signal.signal(n, saved)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    assert status_after(number, script, tmp_path) == (["[0] saved", "[1] saved"], 128 + number)


def test_a_worker_that_saves_after_ctrl_c_is_not_ended_because_another_has_saved(tmp_path):
    script = (
        "import signal\n"
        "def saves(number, frame):\n"
        "    time.sleep(0 if index else 1)\n"
        "    print('saved', flush=True)\n"
        "    sys.exit(128 + number)\n"
        "signal.signal(signal.SIGINT, saves)\n"  # SIGTERM kills
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    assert status_after(signal.SIGINT, script, tmp_path) == (["[0] saved", "[1] saved"], 130)


def test_workers_end_with_a_launcher_that_is_killed(tmp_path):
    pids = tmp_path / "pids"
    pids.mkdir()
    script = f"open({str(pids)!r} + f'/{{os.getpid()}}', 'w').close()\ntime.sleep(600)\n"
    (tmp_path / "worker.py").write_text(HEAD + script)
    command = [sys.executable, "-m", "esgd_tf", "launch", "--", str(tmp_path / "worker.py")]
    with subprocess.Popen(command, cwd=ROOT) as launcher:
        _until(lambda: len(list(pids.iterdir())) == 2)
        launcher.kill()
    for pid in pids.iterdir():
        _until(lambda pid=pid: not _runs(int(pid.name)))


def _until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid):
    """Whether there is such a process; one that has ended and waits for its parent is none."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_gpus_are_shared_out(launch, capfd):
    assert launch("print(os.environ['CUDA_VISIBLE_DEVICES'])\n", "--gpus_per_worker", "2") == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["[0] 0,1", "[1] 2,3"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "what to run must follow --"),
        (["train.py"], "what to run must follow --"),
        (["--workers", "0", "--", "train.py"], "workers"),
        (["--workers", "two", "--", "train.py"], "workers"),
        (["--wrokers", "2", "--", "train.py"], "--wrokers; did you mean --workers?"),
        (["--workers", "2000000000", "--", "train.py"], "a whole number from 1 to 1,024"),
        (["--grace", "x", "--", "train.py"], "--grace=x: must be a finite number at least 0"),
        (["--nohelp=1", "--", "train.py"], "does not take an argument"),
    ],
)
def test_bad_flags(words, says, capsys):
    assert main(["esgd_tf", "launch", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert "--help" in line


def test_workers_outlive_the_reader_of_their_output(launch, tmp_path, monkeypatch, capsys):
    """`launch ... | head`: the workers go on, no thread dies of it, and it is said once."""
    import errno
    import io

    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Gone())
    script = f"for k in range(3): print(k)\nopen({str(tmp_path)!r} + f'/done{{index}}', 'w')\n"
    assert launch(script) == 0
    assert sorted(p.name for p in tmp_path.glob("done*")) == ["done0", "done1"]
    error = capsys.readouterr().err
    assert error == (
        "esgd_tf launch: Standard output cannot be written to (Broken pipe): going on without it.\n"
    )


def test_a_command_that_is_not_there(capsys):
    assert main(["esgd_tf", "launch", "--", "no-such-program"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no-such-program" in line


def test_help(capsys):
    assert main(["esgd_tf", "launch", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--workers" in text
    assert max(map(len, text.splitlines())) <= 80
