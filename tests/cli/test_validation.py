"""--validation_images: a run that is evaluated on training images which it does not see."""

import csv
import json

import pytest

from tests.cli.helpers import SMALL, esgd_tf, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    flags = ("-e", "1", "--logdir", folder, "-n", "held", "--validation_images", "1750")
    assert train(*SMALL, *flags, "--lr_schedule", "cosine") == 0
    return folder / "held"


@pytest.fixture(scope="module")
def last(run):
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))[-1]


def test_the_images_held_out_are_not_trained_on(last):
    # 8,750 - 1,750 = 7,000 images in batches of 1,750.
    assert float(last["gradient_evaluations"]) == 4


def test_evaluate_sees_the_same_images_and_says_what_they_are(run, last, tmp_path, capsys):
    out = tmp_path / "numbers.json"
    assert esgd_tf("evaluate", run, "--json", out) == 0
    numbers = json.loads(out.read_text())
    assert "fashion_mnist_small, 1,750 validation images" in capsys.readouterr().out
    assert (numbers["data"], numbers["images"]) == ("fashion_mnist_small/validation", 1750)
    assert numbers["accuracy"] == pytest.approx(float(last["val_accuracy"]), abs=1e-6)
    assert numbers["loss"] == pytest.approx(float(last["val_loss"]), rel=1e-5)
    assert esgd_tf("evaluate", run, "--split", "train", "--json", out) == 0
    assert json.loads(out.read_text())["images"] == 7000


def test_compare_names_the_split_and_warns_of_another(run, tmp_path, capsys):
    def copy(name, **experiment):
        config = json.loads((run / "config.json").read_text())
        config["experiment"] |= experiment
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "history.csv").write_bytes((run / "history.csv").read_bytes())
        return tmp_path / name

    same, other = copy("same"), copy("other", validation_images=0)
    assert esgd_tf("compare", run, same, "--out", tmp_path / "c.png") == 0
    out = capsys.readouterr().out
    assert out.startswith("fashion_mnist_small: validation error and loss")
    assert "validation_images" not in out
    assert esgd_tf("compare", run, other, "--out", tmp_path / "c.png") == 0
    out = capsys.readouterr().out
    assert "test or validation error" in out
    assert "were evaluated on different images" in " ".join(out.split())
    assert max(map(len, out.partition("written")[0].splitlines())) <= 80
