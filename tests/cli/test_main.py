"""`python3 -m esgd_tf`: the list of commands, their help without TensorFlow, unknown commands."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import esgd_tf as package
from esgd_tf.cli import commands
from tests.cli.helpers import esgd_tf

ROOT = Path(__file__).resolve().parents[2]
# A command whose module is not there yet cannot be called.
THERE = [
    name for name, (module, _) in commands.COMMANDS.items() if importlib.util.find_spec(module)
]


def test_help_lists_the_commands(capsys):
    assert esgd_tf("--help") == 0
    out = capsys.readouterr().out
    for name, (_, summary) in commands.COMMANDS.items():
        assert f"  {name} " in out
        assert summary in out
    assert max(map(len, out.splitlines())) <= 80
    assert esgd_tf("-h") == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in THERE), ["evaluate"],
                                   ["predict", "--tpo", "3", "RUN", "x.png"],
                                   ["export", "RUN"]])  # fmt: skip
@pytest.mark.few(5)
def test_help_and_bad_flags_do_not_import_tensorflow(words):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['esgd_tf', *{words!r}]\n"
        "try:\n"
        "    runpy.run_module('esgd_tf', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    status = end.code\n"
        "loaded = [m for m in ('tensorflow', 'keras', 'matplotlib') if m in sys.modules]\n"
        "assert not loaded, loaded\n"
        "sys.exit(status)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in result.stderr
    if "--help" in words:
        assert result.returncode == 0
        assert result.stderr == ""
        assert max(len(line) for line in result.stdout.splitlines()) <= 80
    else:
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", THERE)
def test_each_help_names_its_flags_with_their_defaults(name, capsys, monkeypatch):
    # The help of `train` names the command as it was called; pytest is called in many ways.
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert esgd_tf(name, "--help") == 0
    out = capsys.readouterr().out
    assert ("python3 train.py" if name == "train" else f"python3 -m esgd_tf {name}") in out
    assert "-h, --help" in out


def test_the_version(capsys):
    assert esgd_tf("--version") == 0
    assert capsys.readouterr().out.startswith(f"esgd_tf {package.__version__} (TensorFlow ")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name a command: train, launch, evaluate"),
        (["evalute"], "did you mean evaluate"),
        (["dance"], "there is no command 'dance'"),
        (["--split"], "there is no command '--split'"),
    ],
)
def test_a_missing_or_unknown_command(words, says, capsys):
    assert esgd_tf(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("\n") == 1


def test_ctrl_c_is_one_sentence(monkeypatch, tmp_path, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("esgd_tf.runs.stored_run.StoredRun.open", interrupt)
    assert esgd_tf("evaluate", tmp_path) == 130
    assert capsys.readouterr().err.count("\n") == 1
