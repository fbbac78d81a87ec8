"""Manners of the command line: a reader that goes, versions, colors, suggestions, completion."""

import contextlib
import errno
import importlib.metadata
import io
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import config
from esgd_tf import __version__
from esgd_tf.cli import commands, completion, version
from esgd_tf.cli.completion_bash import script as bash_script
from esgd_tf.cli.completion_table import commands as completed_commands
from esgd_tf.cli.completion_zsh import script as zsh_script
from esgd_tf.cli.door import READER_GONE, enter
from esgd_tf.cli.flags import define_flags
from esgd_tf.cli.parsers import FlagError
from esgd_tf.cli.settings import choose_preset
from esgd_tf.cli.suggestions import did_you_mean
from tests.cli.helpers import esgd_tf, train

ROOT = Path(__file__).resolve().parents[2]


def in_shell(command, folder=ROOT, **environment):
    """Run a command in bash, where $PY is this Python."""
    environment = {"PYTHONUNBUFFERED": "", "PYTHONPATH": str(ROOT), "PY": sys.executable,
                   **environment}  # fmt: skip
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env={**os.environ, **environment},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


class Gone(io.StringIO):
    """A pipe whose reader has ended."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@contextlib.contextmanager
def closed_pipe():
    """Give a stream into a pipe whose reader has ended; it fails when it is closed, as at the end
    of Python, if something is left in its buffer."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        yield stream


# ---- a reader that goes ----


@pytest.mark.parametrize(
    "command",
    ["$PY -m esgd_tf --help", "$PY -m esgd_tf completion bash", "$PY train.py --presets"],
)
def test_what_nobody_reads_ends_quietly(command):
    """The pipe is closed before the first word; `head` of a long output closes it later."""
    result = in_shell(f"(sleep 0.2; exec {command}) | true; exit ${{PIPESTATUS[0]}}")
    assert (result.returncode, result.stderr, result.stdout) == (128 + signal.SIGPIPE, "", "")


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], *(["train", flag] for flag in ("--presets", "--version")),
     *(["completion", shell] for shell in completion.SHELLS), ["walkers", "plot", "--help"],
     *([name, "--help"] for name in commands.COMMANDS)],
)  # fmt: skip
def test_every_command_without_a_reader(words, monkeypatch, capsys):
    with monkeypatch.context() as patch, closed_pipe() as stream:
        patch.setattr(sys, "stdout", stream)
        assert esgd_tf(*words) == READER_GONE
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_head_of_a_long_output(unbuffered):
    result = in_shell(
        "$PY -m esgd_tf completion bash | head -1; echo ${PIPESTATUS[0]}",
        PYTHONUNBUFFERED=unbuffered,
    )
    # The pipe may hold all of a short output before `head` has ended.
    first, status = result.stdout.splitlines()
    assert first.startswith("# Completion of esgd-tf")
    assert status in ("0", "141")
    assert result.stderr == ""


def test_a_reader_that_goes_before_an_error(monkeypatch, capsys):
    """The error is told with its own status, and nothing is left in the buffer for Python's end."""

    def body():
        print("a table")
        raise FlagError("--x=1: is odd")

    with monkeypatch.context() as patch, closed_pipe() as stream:
        patch.setattr(sys, "stdout", stream)
        assert enter("x", body) == 2
    assert capsys.readouterr().err == "x: --x=1: is odd.\n"


@pytest.mark.parametrize("debug", [False, True])
def test_the_status_is_that_of_sigpipe(debug, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Gone())
    assert enter("x", lambda: print("one") or 0, debug=debug) == READER_GONE == 141
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_training_outlives_its_reader(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Gone())
        flags = ("-opt", "sgd", "-m", "mnistfc", "-b", "1750", "--bn_reestimate", "0")
        place = ("--logdir", tmp_path, "-n", "unread", "--limit_steps", "2")
        assert train("--preset", "quickstart", *flags, *place) == 0
    error = capsys.readouterr().err
    assert error.count("going on without it") == 1
    assert "Traceback" not in error
    assert (tmp_path / "unread" / "checkpoints" / "last.keras").is_file()
    assert len((tmp_path / "unread" / "history.csv").read_text().splitlines()) == 2


def test_help_says_that_a_training_outlives_its_reader(capsys):
    assert train("--help") == 0
    assert "outlives its output" in capsys.readouterr().out
    assert esgd_tf("walkers", "--help") == 0
    assert "outlives its output" in capsys.readouterr().out


# ---- versions ----


def test_versions_without_tensorflow():
    for door, words in (("train.py", ["-L", "many", "--version"]), ("esgd_tf", ["--version"])):
        run = "run_path" if door.endswith(".py") else "run_module"
        code = (
            "import sys, runpy\n"
            f"sys.argv = {[door, *words]}\n"
            "try:\n"
            f"    runpy.{run}({door!r}, run_name='__main__')\n"
            "except SystemExit as end:\n"
            "    assert end.code == 0, end.code\n"
            "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        of = importlib.metadata.version
        assert result.stderr == ""
        assert result.stdout == (
            f"esgd_tf {__version__} (TensorFlow {of('tensorflow')}, Keras {of('keras')})\n"
        )


def test_versions_of_other_distributions(monkeypatch):
    there = {"tensorflow-cpu": "2.21.0"}

    def find(name):
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(importlib.metadata, "version", find)
    assert version.version_line() == (
        f"esgd_tf {__version__} (TensorFlow 2.21.0, Keras is not installed)"
    )


# ---- colors ----


class Terminal(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("no_color", "colored"), [(None, True), ("", True), ("1", False)])
def test_colors_of_the_progress_bar(no_color, colored, monkeypatch):
    import keras

    def body():
        bar = keras.utils.Progbar(2, width=10)
        bar.update(1, [("loss", 1.0)])
        bar.update(2, [("loss", 1.0)], finalize=True)
        print("\x1b[1;31mred\x1b[0m\x1b[K", file=sys.stderr)
        return 0

    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    out, error = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)
    assert enter("x", body) == 0
    assert ("\x1b[32m" in out.getvalue()) == colored
    assert ("\x1b[" in out.getvalue()) == colored
    assert "2/2" in out.getvalue()
    assert "━━━━━━━━━━" in out.getvalue()
    assert "\r" in out.getvalue()  # it is a terminal still
    # What moves the cursor or clears the line stays.
    assert error.getvalue() == ("\x1b[1;31mred\x1b[0m\x1b[K\n" if colored else "red\x1b[K\n")


# ---- suggestions ----


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "--langevin_step", "3"], "--langevin_step; did you mean --langevin_steps?"),
        (["train", "--langevin-steps", "3"], "did you mean --langevin_steps?"),
        (["train", "-langevin_stpes=3"], "no flag -langevin_stpes; did you mean --langevin_steps?"),
        (["train", "-otp", "sgd"], "no flag -otp; did you mean -opt?"),
        (["train", "--nodownlod"], "did you mean --nodownload?"),
        (["train", "--learning", "1"], "did you mean --learning_rate?"),
        (["train", "--zzzz"], "there is no flag --zzzz. See esgd-tf train --help."),
        (["train", "--preset", "Quikstart"], "did you mean quickstart?"),
        (["train", "--preset", "len"], "did you mean lenet?"),
        (["train", "-m", "wrn28-10"], "did you mean wrn-28-10?"),
        (["train", "-d", "MNIST"], "did you mean mnist?"),
        (["train", "-opt", "entropy_sgd"], "did you mean entropy-sgd?"),
        (["walkers", "--dataset", "mnits"], "did you mean mnist?"),
        (["walkers", "--model", "lnet"], "did you mean lenet?"),
        (["walkers", "-opt", "agd"], "did you mean sgd?"),
        (["walkers", "plt", "RUN"], "did you mean plot?"),
        (["evaluate", "RUN", "--spilt", "test"], "no flag --spilt; did you mean --split?"),
        (["evaluate", "RUN", "--split", "tset"], "did you mean test?"),
        (["launch", "--wrokers", "2"], "no flag --wrokers; did you mean --workers?"),
        (["landscape", "RUN", "--densty"], "did you mean --density?"),
        (["completion", "bsh"], "did you mean bash?"),
        (["evalute"], "there is no command 'evalute'; did you mean evaluate?"),
        (["Predict"], "did you mean predict?"),
    ],
)  # fmt: skip
def test_suggestions_are_of_one_style(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert esgd_tf(*words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert error.endswith(" --help.\n")
    assert "?." not in error
    assert "Did you mean" not in error  # absl's own
    assert list(tmp_path.iterdir()) == []


def test_what_is_near():
    assert did_you_mean("x", ["alpha", "beta"]) == ""
    assert did_you_mean("otp", ["tpu", "opt"]) == "; did you mean opt?"
    assert did_you_mean("OPT", ["tpu", "opt"]) == "; did you mean opt?"
    assert did_you_mean("batch-size", ["batchsize", "batch_size"]) == "; did you mean batch_size?"


# ---- completion ----

LINES = {
    # line, with | where the cursor is: what is offered, or None for files
    "esgd-tf ev|": ["evaluate"],
    "esgd-tf --v|": ["--version"],
    "esgd-tf train --preset qui|": ["quickstart"],
    "esgd-tf train --preset=qui|": ["quickstart"],
    "esgd-tf train --preset=|": list(config.PRESETS),
    "esgd-tf train -preset qui|": ["quickstart"],
    "esgd-tf train -opt e|": ["entropy-sgd", "entropy-adam", "easgd", "ema"],
    "esgd-tf train -d fashion_mnist_|": ["fashion_mnist_small"],
    "esgd-tf train -m wrn|": ["wrn-16-4", "wrn-28-10"],
    "esgd-tf train --corrupt label|": ["label_noise"],
    "esgd-tf train --langevin_s|": ["--langevin_steps"],
    "esgd-tf train --verbose --langevin_s|": ["--langevin_steps"],
    "esgd-tf train -L 20 --nodown|": ["--nodownload"],
    "esgd-tf train -op|": ["-opt"],
    "esgd-tf train --on_nan |": ["stop", "skip"],
    "esgd-tf train --logdir |": None,
    "esgd-tf evaluate |": None,
    "esgd-tf evaluate run --checkpoint b|": ["best"],
    "esgd-tf evaluate run --input |": None,
    "esgd-tf walkers p|": ["plot"],
    "esgd-tf walkers plot run --o|": ["--out"],
    "esgd-tf walkers --coupling p|": ["parle"],
    "esgd-tf completion |": ["bash", "zsh"],
    "esgd-tf launch --wo|": ["--workers"],
    "esgd-tf launch --workers 2 -- train.py --preset qui|": ["quickstart"],
    "python3 -m esgd_tf train --preset qui|": ["quickstart"],
    "python3 -X dev -m esgd_tf pre|": ["predict"],
    "python3 train.py --preset qui|": ["quickstart"],
    "python ./train.py --langevin_s|": ["--langevin_steps"],
    "./train.py --preset qui|": ["quickstart"],
    # None of ours.
    "python3 other/train.py --preset qui|": None,
    "python3 -m pip --v|": None,
    "python3 |": None,
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder with our train.py, somebody else's, and both scripts."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copy(ROOT / "train.py", folder)
    (folder / "other").mkdir()
    (folder / "other" / "train.py").write_text("import argparse\n")
    (folder / "c.bash").write_text(bash_script(completed_commands()) + "\n")
    (folder / "c.zsh").write_text(zsh_script(completed_commands()) + "\n")
    return folder


def test_bash_completes(clone):
    """In one bash: what its own table of completions calls, with the words as bash cuts them."""
    ask = (
        'ask() { local spec; COMP_CWORD=$(($# - 1)); COMP_WORDS=("$@"); COMPREPLY=()\n'
        'spec=$(complete -p "${1##*/}"); [[ $spec =~ -F\\ ([^ ]+) ]]\n'
        '"${BASH_REMATCH[1]}" "$1" "${!#}" ""; echo "${COMPREPLY[*]}"; }\n'
    )
    asked = []
    for line in LINES:
        words = line.removesuffix("|").split(" ")
        cut = [part for word in words for part in re.split("(=)", word) if part or not word]
        asked.append("ask " + shlex.join(cut))
    result = in_shell("\n".join(["source c.bash", ask, *asked]), clone)
    assert result.stderr == ""
    for (line, expected), offered in zip(LINES.items(), result.stdout.splitlines(), strict=True):
        assert sorted(offered.split()) == sorted(expected or []), line


def test_bash_offers_every_command_and_flag(clone):
    result = in_shell("source c.bash; COMP_WORDS=(esgd-tf ''); COMP_CWORD=1; _esgd_tf\n"
                      'echo "${COMPREPLY[*]}"; _esgd_tf_flags train', clone)  # fmt: skip
    names, of_train = result.stdout.splitlines()
    assert set(commands.COMMANDS) <= set(names.split())
    fv = define_flags()
    assert {f"--{fv[name].name}" for name in fv} <= set(of_train.split())
    assert {"-L", "-opt", "-rl", "-e"} <= set(of_train.split())


def test_bash_keeps_what_completed_python_before(clone):
    before = 'theirs() { COMPREPLY=(theirs "$@"); }; complete -F theirs python3; '
    twice = "source c.bash; source c.bash; "
    ask = 'COMP_WORDS=(python3 -m pip ""); COMP_CWORD=3; _esgd_tf_python python3 "" pip; '
    result = in_shell(before + twice + ask + 'echo "${COMPREPLY[*]}"', clone)
    assert (result.stdout, result.stderr) == ("theirs python3  pip\n", "")
    result = in_shell(twice + ask + 'echo "${#COMPREPLY[@]}"', clone)
    assert (result.stdout, result.stderr) == ("0\n", "")


def typed(shell, setup, keys, folder):
    """Type in a shell on a terminal; return the line that a function `said` prints."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "HOME": str(folder), "INPUTRC": os.devnull}
    with subprocess.Popen(
        shell, cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave,
        start_new_session=True, close_fds=True,
    ) as process:  # fmt: skip
        os.close(slave)
        seen, end = "", time.monotonic() + 30

        def wait_for(pattern):
            nonlocal seen
            while not re.search(pattern, seen):
                assert time.monotonic() < end, seen
                if select.select([master], [], [], 0.1)[0]:
                    seen += os.read(master, 4096).decode(errors="replace")

        try:
            os.write(master, f"{setup}; echo re''ady\n".encode())
            wait_for("\nready|\rready")
            os.write(master, keys.encode() + b"\t")
            time.sleep(0.5)
            os.write(master, b"\n")
            wait_for(r"said<[^<>$]*>")
            return re.search(r"said<([^<>$]*)>", seen)[1]
        finally:
            process.kill()
            os.close(master)


SAID = 'esgd-tf() { echo "sa\'\'id<$*>" | tr -d "\'"; }; python3() { esgd-tf "$@"; }'
BASH = ["bash", "--norc", "--noprofile", "-i"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [("esgd-tf train --preset qui", "train --preset quickstart"),
     ("esgd-tf train --preset=qui", "train --preset=quickstart"),
     ("python3 train.py --langevin_s", "train.py --langevin_steps"),
     ("python3 train.py --raw_dir oth", "train.py --raw_dir other/")],
)  # fmt: skip
def test_the_tab_key_in_bash(keys, said, clone):
    assert typed(BASH, f"source c.bash; {SAID}", keys, clone).strip() == said


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize(
    ("keys", "said"),
    [("esgd-tf ev", "evaluate"),
     ("esgd-tf train --preset qui", "train --preset quickstart"),
     ("esgd-tf train --preset=qui", "train --preset=quickstart"),
     ("esgd-tf train -m wrn-2", "train -m wrn-28-10"),
     ("esgd-tf train --langevin_s", "train --langevin_steps"),
     ("esgd-tf walkers plot run --o", "walkers plot run --out"),
     ("esgd-tf walkers --coupling p", "walkers --coupling parle"),
     ("esgd-tf completion b", "completion bash"),
     ("esgd-tf evaluate run --checkpoint be", "evaluate run --checkpoint best"),
     ("esgd-tf launch -- train.py --preset qui", "launch -- train.py --preset quickstart"),
     ("python3 -m esgd_tf train --preset qui", "-m esgd_tf train --preset quickstart"),
     ("python3 train.py --preset qui", "train.py --preset quickstart"),
     ("python3 train.py --raw_dir oth", "train.py --raw_dir other/"),
     ("python3 other/train.py --preset qui", "other/train.py --preset qui")],
)  # fmt: skip
def test_the_tab_key_in_zsh(keys, said, clone):
    setup = f"autoload -Uz compinit; compinit -u -D; source ./c.zsh; {SAID}"
    # zsh writes a completed `--flag` as `--flag=` where the value may follow an =.
    # It takes a slash at the end back when the line ends.
    written = typed(["zsh", "-f", "-i"], setup, keys, clone).strip()
    assert written.removesuffix("=") == said.removesuffix("/")


def test_completion_prints_the_scripts(clone, capsys):
    for shell in completion.SHELLS:
        assert esgd_tf("completion", shell) == 0
        assert capsys.readouterr().out == (clone / f"c.{shell}").read_text()
    assert esgd_tf("completion", "--help") == 0
    out = capsys.readouterr().out
    assert 'eval "$(python3 -m esgd_tf completion bash)"' in out
    assert "~/.bashrc" in out


def test_presets_that_are_completed_are_those_of_train():
    (train_command,) = (each for each in completed_commands() if each.name == "train")
    (preset,) = (flag for flag in train_command.flags if flag.names[0] == "preset")
    for name in preset.words:
        fv = define_flags()
        fv(["train.py", "--preset", name])
        assert choose_preset(fv, config.PRESETS) == name
