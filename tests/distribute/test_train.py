"""train.py itself on two processes."""

import csv
import json
import sys
from pathlib import Path

import pytest

from esgd_tf.cli.commands import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow  # two processes; tests/cli/test_sweep.py has two devices
def test_validation_counts_the_images_of_all_workers(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    command = [
        sys.executable,
        "train.py",
        "--preset",
        "quickstart",
        "-m",
        "lenet-4-8-32",
        "-b",
        500,
    ]
    command += ["-e", 1, "-opt", "momentum", "--logdir", tmp_path, "-n", "run"]
    assert main(["esgd_tf", "launch", "--workers", "2", "--", *map(str, command)]) == 0
    assert "2 devices, 2 workers: 250 images each at a time" in capfd.readouterr().out
    run = tmp_path / "run"
    found = tmp_path / "found.json"
    assert main(["esgd_tf", "evaluate", str(run), "--json", str(found)]) == 0
    evaluated = json.loads(found.read_text())
    with (run / "history.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["val_accuracy"]) == pytest.approx(evaluated["accuracy"], abs=1e-6)
    assert float(row["val_loss"]) == pytest.approx(evaluated["loss"], rel=1e-4)
