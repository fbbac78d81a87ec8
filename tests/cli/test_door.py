"""The one door: a sentence and a status for every error, and output that may fail."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esgd_tf.cli.door import enter
from esgd_tf.cli.parsers import FlagError
from esgd_tf.cli.patience import waiting
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.training.errors import ClusterError

ROOT = Path(__file__).resolve().parents[2]


def deep():
    return deep()


def of_another_library():
    return os.fsencode(5)  # a TypeError in the standard library


RAISED = {
    "flag": (FlagError("--x=1: is odd"), 2, "--x=1: is odd. See the help."),
    "foreseen": (RunFolderError("There is no run."), 1, "There is no run."),
    "cluster": (ClusterError("TF_CONFIG is odd"), 1, "TF_CONFIG is odd."),
    "file": (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "Permission denied: x."),
    "disk": (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "make room"),
    "memory": (MemoryError(), 1, "There is not enough memory"),
    "ctrl-c": (KeyboardInterrupt(), 130, "Stopped; nothing half-written is left."),
    "key": (KeyError("weights"), 1, "(KeyError: 'weights'). It may be a defect of esgd_tf"),
    "type": (TypeError("a\nb"), 1, "(TypeError: a). It may be a defect of esgd_tf"),
    "value": (ValueError("math domain error"), 1, "(ValueError: math domain error). It may be"),
}


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("what", RAISED)
def test_every_error_is_a_sentence_and_its_traceback_is_for_debug(what, debug, capsys):
    error, status, says = RAISED[what]

    def body():
        raise error

    assert enter("train.py", body, see="the help", debug=debug) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("train.py: ")
    assert says in last
    assert ("Traceback" in captured.err) == debug
    assert debug or captured.err.count("\n") == 1


def test_errors_that_are_raised_on_the_way(capsys):
    assert enter("x", deep) == 1
    assert "nested too deeply" in capsys.readouterr().err
    assert enter("x", of_another_library) == 1
    assert "unforeseen went wrong (TypeError: " in capsys.readouterr().err


def test_a_value_error_of_this_library_is_its_sentence(capsys):
    from esgd_tf.models import check_name

    def body():
        check_name("resnet")

    assert enter("x", body) == 1
    error = capsys.readouterr().err
    assert error.startswith("x: Unknown model 'resnet'")
    assert "unforeseen" not in error


def test_what_ctrl_c_made_of_an_import_is_ctrl_c(capsys):
    def body():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    assert enter("x", body, stopped="Stopped before it began.") == 130
    assert capsys.readouterr().err == "x: Stopped before it began.\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_working_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        assert enter("x", lambda: 0) == 1
    assert "working folder does not exist any more" in capsys.readouterr().err


class Failing(io.StringIO):
    """A stream to a full disk; for one whose reader has gone see test_manners.py."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "stream",
    [Failing(), None, Path(os.devnull).open()],  # noqa: SIM115
    ids=["full", "none", "unwritable"],
)
def test_output_that_is_lost(stream, monkeypatch, capsys):
    def body():
        print("one")
        print("two")
        return 0

    monkeypatch.setattr(sys, "stdout", stream)
    assert enter("x", body) == 1
    error = capsys.readouterr().err
    assert error.startswith("x: Standard output cannot be written to (")
    assert error.count("\n") == 1
    # A training goes on, and says so once.
    assert enter("x", body, outlives_output=True) == 0
    error = capsys.readouterr().err
    assert error.endswith("going on without it.\n")
    assert error.count("\n") == 1
    assert sys.stdout is stream


def test_standard_error_that_is_lost_changes_nothing(monkeypatch, capsys):
    def body():
        print("a remark", file=sys.stderr)
        raise FlagError("bad")

    for stream in (Failing(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert enter("x", body) == 2


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "|grad f| +/- \\udcff"), ("latin-1", "|grad f| ± \\udcff"),
                            ("utf-8", "|∇f| ± \\udcff")]
)  # fmt: skip
def test_characters_that_a_terminal_lacks(encoding, shown, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert enter("x", lambda: print("|∇f| ± \udcff") or 0) == 0
    assert raw.getvalue().decode(encoding) == shown + "\n"
    assert sys.stdout.errors == "strict"  # as it was


def test_a_word_for_who_waits(capfd):
    with waiting(0.01, "still waiting", "stopped"):
        time.sleep(1.5)
    assert capfd.readouterr().err == "still waiting\n"
    with waiting(60, "not said", "nor this"):
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert capfd.readouterr().err == ""


def test_a_wait_that_holds_the_lock_of_python_can_be_stopped():
    """As TensorFlow holds it while it joins workers: neither a thread nor a handler gets to run."""
    code = (
        "import ctypes\n"
        "from esgd_tf.cli.patience import waiting\n"
        "with waiting(0.2, 'waits', 'stopped'):\n"
        "    print('ready', flush=True)\n"
        "    ctypes.PyDLL(None).sleep(60)\n"  # PyDLL keeps the lock
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        assert process.stderr.readline() == "waits\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "stopped\n"
    assert process.returncode == -signal.SIGINT


_OPENS = (
    "import os; from esgd_tf.cli.door import enter; "
    'raise SystemExit(enter("x", lambda: os.open(os.devnull, os.O_RDONLY) < 3))'
)


def shell(command, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PY": sys.executable}
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip


def test_commands_in_a_shell_without_output(tmp_path):
    """What only a real process shows: descriptors, and what Python does at its end."""
    sentence = "esgd_tf: Standard output cannot be written to"
    for command, status in (
        ("$PY -m esgd_tf --help > /dev/full", 1),
        ("$PY -m esgd_tf --help >&-", 1),
        ("$PY -m esgd_tf --help 2>&- | cat; exit ${PIPESTATUS[0]}", 0),
        # A file that is opened must not become what others print to.
        (f"$PY -c '{_OPENS}' >&- 2>&-", 0),
        ("mkdir gone; cd gone; rmdir ../gone; $PY -m esgd_tf --help", 1),
    ):
        result = shell(command, tmp_path)
        assert result.returncode == status, (command, result)
        assert result.stderr.count("\n") == bool(status), (command, result)
        assert status == 0 or sentence in result.stderr or "working folder" in result.stderr
