"""What an installed package is: presets, extras, commands. `.ci/run` installs the wheel itself."""

import configparser
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import config
from esgd_tf import _extras
from esgd_tf.__main__ import _NEEDS
from esgd_tf.cli import presets
from esgd_tf.runs.train_command import train_command

ROOT = Path(__file__).parents[1]
ROOMS = ["data", "landscape", "models", "optimizers", "replicas", "runs", "training", "walkers"]


def extras():
    """The distributions that each extra of setup.cfg brings, those of others included."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = {
        name: [line for line in text.split("\n") if line and not line.startswith("#")]
        for name, text in parser["options.extras_require"].items()
    }

    def brought(name):
        for line in lines[name]:
            if within := re.fullmatch(r"esgd-tf\[(.*)\]", line):
                for other in within[1].split(","):
                    yield from brought(other)
            else:
                yield re.split(r"[ <>=\[]", line)[0]

    return {name: set(brought(name)) for name in lines}


def test_each_missing_package_is_brought_by_the_extra_that_is_named(monkeypatch):
    asked = []
    for path in (ROOT / "esgd_tf").rglob("*.py"):
        for call in re.findall(r"^ *require\((.*)\)$", path.read_text(), re.MULTILINE):
            words = call.replace("*_NEEDS", ",".join(_NEEDS))
            asked.append([word.strip('" ') for word in words.split(",")])
    assert len(asked) >= 7
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for part, extra, *modules in asked:
        with pytest.raises(_extras.MissingExtraError) as raised:
            _extras.require(part, extra, *modules)
        assert str(raised.value).endswith(f"pip install 'esgd-tf[{extra}]'.")
        named = {_extras._DISTRIBUTIONS.get(name, name) for name in modules}
        assert named - {"keras"} <= extras()[extra], part


def test_what_is_there_is_not_missed():
    assert _extras.require("This", "tensorflow", "keras", "tensorflow") is None


def test_without_an_extra_there_is_one_sentence():
    """As in an environment without it: the module cannot be found."""
    code = (
        "import importlib.util as u, sys; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name in {missing!r} else find(name, *a);"
        "sys.argv = ['esgd-tf', 'evaluate', 'runs/x'];"
        "from esgd_tf.__main__ import main; sys.exit(main())"
    )
    for missing, says in (
        (
            ("absl",),
            "The command line needs absl-py, which is not installed: python3 -m pip install",
        ),
        (
            ("filelock", "PIL"),
            "The command line needs filelock and pillow, which are not installed",
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(missing=missing)],
            capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert says in done.stderr


@pytest.mark.parametrize("public", ["EntropySGD", "evaluate_at", *ROOMS])
def test_without_tensorflow_there_is_one_sentence(public):
    """TensorFlow can neither be found nor imported, which Keras does first of all."""
    code = (
        "import importlib.util as u, sys; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'tensorflow' else find(name, *a);"
        "sys.modules['tensorflow'] = None;"
        f"from esgd_tf import {public}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "needs tensorflow, which is not installed: python3 -m pip install 'esgd-tf[tensorflow]'."
    )


def test_presets_are_those_of_config():
    assert presets.presets() == config.PRESETS


@pytest.mark.parametrize(
    ("called", "words"),
    [
        ("train.py", "python3 train.py"),
        ("/usr/bin/esgd-tf", "esgd-tf train"),
        ("/somewhere/esgd_tf/__main__.py", "python3 -m esgd_tf train"),
    ],
)
def test_a_run_goes_on_by_the_command_that_began_it(monkeypatch, called, words):
    monkeypatch.setattr(sys, "argv", [called, "train"])
    assert " ".join(train_command()) == words


def test_the_command_train_is_train_py(capsys):
    assert presets.main(["train", "--presets"]) == 0
    assert "quickstart" in capsys.readouterr().out
    assert presets.main(["train", "--no_such_flag"]) == 2
    assert capsys.readouterr().err.startswith("esgd-tf train: ")
