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
    assert text.index("-L, --langevin_steps") < text.index("--langevin_lr")
    main_flags = (
        "-opt -L -d -m -n -b -e --lr --l2 --gamma --scoping --noise --langevin_lr --averaging "
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
        (["stray"], "stray"),
    ],
)
def test_bad_flags_get_one_sentence(flags, says, capsys, tmp_path):
    assert run("--logdir", str(tmp_path), *flags) == 2
    output = capsys.readouterr()
    assert says in output.err
    assert output.err.count("\n") == 1
    assert output.err.startswith("train.py: ")
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_go_on_with(capsys, tmp_path):
    assert run("--logdir", str(tmp_path), "-rl") == 1
    assert "no run" in capsys.readouterr().err
    assert run("--logdir", str(tmp_path), "-rl", "-n", "mine") == 1
    assert "no run folder" in capsys.readouterr().err
    assert run("-r", str(tmp_path / "last.keras")) == 1
    assert "no checkpoint" in capsys.readouterr().err
