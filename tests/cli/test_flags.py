"""The command line before TensorFlow: help, presets, and one clear sentence for every bad flag."""

import subprocess
import sys
from pathlib import Path

import pytest

import config
from esgd_tf.cli.train import main

ROOT = Path(__file__).resolve().parents[2]


def run(*flags):
    return main(config.PRESETS, ["train.py", *flags])


@pytest.mark.parametrize("flag", ["-h", "--help", "--presets"])
def test_help_and_presets_do_not_import_tensorflow(flag):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['train.py', '{flag}']\n"
        "try:\n"
        "    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "loaded = [m for m in ('tensorflow', 'keras', 'matplotlib') if m in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_help_shows_the_main_flags_first_and_names_all(capsys):
    assert run("-h") == 0
    text = capsys.readouterr().out
    assert text.index("-opt, --optimizer") < text.index("-L, --langevin_steps")
    assert text.index("-L, --langevin_steps") < text.index(
        "--langevin_lr, --langevin_learning_rate"
    )
    main_flags = (
        "-opt -L -d -m -n -b -e -lr -l2 --gamma --scoping --noise --langevin_lr --averaging "
        "--dropout -s -v -rl -r --preset --raw_dir --data_dir --logdir --checkpoint_dir "
        "--jit_compile --mixed_precision --limit_steps --bn_reestimate"
    )
    for flag in main_flags.split():
        assert f"  {flag}," in text or f"  {flag} " in text, flag


def test_help_of_a_preset_shows_its_numbers(capsys):
    assert run("--help") == 0
    assert "(preset: cifar10)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["-opt", "lbfgs"], "entropy-sgd"),
        (["-L", "-1"], "--langevin_steps"),
        (["-L", "many"], "--langevin_steps"),
        (["--lr", "nan"], "--lr"),
        (["--lr", "-0.5"], "--lr"),
        (["--averaging", "1.0"], "--averaging"),
        (["--dropout", "1"], "--dropout"),
        (["--seed", "-3"], "--seed"),
        (["-d", "imagenet"], "cifar10"),
        (["-m", "resnet50"], "resnet50"),
        (["-m", "wrn-27-10"], "wrn-27-10"),
        (["--preset", "vgg"], "quickstart"),
        (["-b", "0"], "--batch_size"),
        (["-e", "0"], "--epochs"),
        (["--lr_drops", "5,3"], "--lr_drops"),
        (["--lr_drops", "a"], "--lr_drops"),
        (["-opt", "sgd", "-L", "20"], "no meaning for -opt sgd"),
        (["-opt", "momentum", "--gamma", "1"], "no meaning for -opt momentum"),
        (["-opt", "adam", "--momentum", "0.5"], "no meaning for -opt adam"),
        (["-rl", "-r", "x"], "exclude"),
        (["-n", "a/b"], "--name"),
        (["--no_such_flag"], "no_such_flag"),
        # In words of its own, not of Python's and absl's.
        (["-L", "many"], "--langevin_steps=many: must be a whole number of at least 0"),
        (["-L", "1.5"], "must be a whole number of at least 0"),
        (["--lr", "x"], "--lr=x: must be a finite number at least 0"),
        (["--lr", "inf"], "must be a finite number"),
        (["--lr_drops", "inf"], "must be growing finite numbers above 0"),
        (["--lr_drops", "1,nan"], "must be growing finite numbers above 0"),
        (["--seed", "99999999999"], "must be a whole number from 0 to 2,147,483,647"),
        (["-e", "1" * 30], "must be a whole number from 1 to 1,000,000"),
        (["-e", "1" * 400], "1...: must be a whole number from 1 to 1,000,000"),
        (["-e", "1" * 5000], "1...: must be a whole number"),
        (["-b", "1" * 30], "must be a whole number from 1 to 2,147,483,647"),
        (["--noverbose=1"], "--noverbose=1 does not take an argument"),
        (["--nohelp=1"], "--nohelp=1 does not take an argument"),
        (["--verbose=maybe"], "--verbose=maybe: is on or off"),
        (["--devices", ""], "--devices=: must be names with commas"),
        (["--devices", "CPU:0,"], "must be names with commas"),
        (["--logdir="], "--logdir=: must be a path"),
        (["--flagfile", "/nonexistent"], "the file of --flagfile cannot be read"),
        # Names of runs that would lie elsewhere.
        (["-n", ""], "--name=: must be the name of a folder"),
        (["-n", ".."], "--name=..: must be the name of a folder"),
        (["-n", "."], "--name=.: must be the name of a folder"),
        (["-rl", "-n", ".."], "--name=..: must be the name of a folder"),
        (["-n", "x" * 300], "is longer than file systems allow"),
        # What was meant.
        (["--epoch", "3"], "there is no flag --epoch; did you mean --epochs"),
        (["-opt", "entropy_sgd"], "did you mean entropy-sgd"),
        (["-d", "mnits"], "did you mean mnist"),
        (["--preset", "quikstart"], "did you mean quickstart"),
        (["-m", "mnistcon"], "did you mean mnistconv"),
        (["stray"], "stray"),
    ],
)
def test_bad_flags_get_one_sentence(flags, says, capsys, tmp_path):
    assert run("--logdir", str(tmp_path), *flags) == 2
    output = capsys.readouterr()
    assert says in output.err
    assert output.err.count("\n") == 1
    assert output.err.startswith("train.py: ")
    assert len(output.err) < 400
    for foreign in ("literal", "could not convert", "<", "non-negative integer", "command line"):
        assert foreign not in output.err or "-<" in output.err
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_go_on_with(capsys, tmp_path):
    assert run("--logdir", str(tmp_path), "-rl") == 1
    assert "no run" in capsys.readouterr().err
    assert run("--logdir", str(tmp_path), "-rl", "-n", "mine") == 1
    assert "no run folder" in capsys.readouterr().err
    assert run("-r", str(tmp_path / "last.keras")) == 1
    assert "no checkpoint" in capsys.readouterr().err
    (tmp_path / "gone.keras").symlink_to(tmp_path / "nowhere")
    assert run("-r", str(tmp_path / "gone.keras")) == 1
    assert "a link to nothing" in capsys.readouterr().err


def test_the_home_of_the_user_in_every_path(monkeypatch):
    """The shell does not see a ~ after a =."""
    from esgd_tf.cli.flags import define_flags, parse

    monkeypatch.setenv("HOME", "/home/of/me")
    fv = define_flags()
    names = ("logdir", "checkpoint_dir", "data_dir", "raw_dir", "restore_path")
    parse(fv, ["train.py", *(f"--{name}=~/x" for name in names)])
    assert [fv[name].value for name in names] == ["/home/of/me/x"] * len(names)


def test_debug_shows_the_traceback(capsys):
    assert run("-L", "many", "--debug") == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.splitlines()[-1].startswith("train.py: --langevin_steps=many")
