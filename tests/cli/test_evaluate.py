"""`evaluate` on a tiny run: the numbers of training, records of one's own, and every refusal."""

import functools
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf import data
from esgd_tf.data.sources import resolve
from esgd_tf.runs.checkpoints import load_model
from tests.cli.helpers import SMALL, STEPS, esgd_tf, interrupted_at, train

EMBEDDED = resolve("tfrecords") / "fashion_mnist_small"


def evaluate(run, *flags):
    """Return the numbers that the command writes."""
    out = run.parent / "numbers.json"
    assert esgd_tf("evaluate", run, "--json", out, *flags) == 0
    numbers = json.loads(out.read_text())
    out.unlink()
    return numbers


def last_line(run):
    header, *lines = (run / "history.csv").read_text().splitlines()
    return dict(zip(header.split(","), lines[-1].split(","), strict=True))


def refused(capsys, status, *words):
    """Return the one line that the command writes to stderr."""
    assert esgd_tf("evaluate", *words) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_test_split_gives_what_training_reported(finished, capsys):
    numbers = evaluate(finished)
    last = last_line(finished)
    assert numbers["images"] == 1750
    assert numbers["loss"] == pytest.approx(float(last["val_loss"]), rel=1e-4)
    assert numbers["accuracy"] == pytest.approx(float(last["val_accuracy"]), abs=1e-6)
    assert numbers["error"] == pytest.approx(1 - numbers["accuracy"])
    assert numbers["nll"] == pytest.approx(numbers["loss"], rel=1e-5)
    assert 0 < numbers["ece"] < 1
    low, high = numbers["accuracy_interval_95"]
    assert low < numbers["accuracy"] < high
    assert numbers["gradient_evaluations"] == 2 * STEPS
    assert numbers["bn_reestimated_from"] == 0
    out = capsys.readouterr().out
    assert f"{100 * numbers['accuracy']:.2f} %" in out
    assert max(map(len, out.splitlines())) <= 80 or str(finished.parent) in out


@pytest.mark.slow
def test_estimating_anew_uses_the_batches_of_training(finished):
    """So it changes nothing where training has done it: one batch, as in the run."""
    stored, anew = evaluate(finished), evaluate(finished, "--bn_reestimate", 1)
    assert anew["bn_reestimated_from"] == 1750
    assert anew["loss"] == pytest.approx(stored["loss"], rel=1e-5)
    assert evaluate(finished, "--bn_reestimate", 2)["loss"] != pytest.approx(
        stored["loss"], rel=1e-5
    )


@pytest.mark.slow
def test_a_run_interrupted_inside_an_epoch_has_its_statistics_estimated(interrupted):
    by_itself = evaluate(interrupted)
    assert by_itself["gradient_evaluations"] == STEPS + 2
    assert by_itself["bn_reestimated_from"] == 1750
    assert evaluate(interrupted, "--bn_reestimate", 1) == by_itself
    as_stored = evaluate(interrupted, "--bn_reestimate", 0)
    assert as_stored["bn_reestimated_from"] == 0
    assert as_stored["loss"] != pytest.approx(by_itself["loss"], rel=1e-3)
    # Its best checkpoint is from the end of the first epoch.
    best = evaluate(interrupted, "--checkpoint", "best")
    assert best["bn_reestimated_from"] == 0
    assert best["loss"] == pytest.approx(float(last_line(interrupted)["val_loss"]), rel=1e-4)


def test_a_checkpoint_by_its_path_and_the_training_split(finished):
    path = finished / "checkpoints" / "last.keras"
    numbers = evaluate(finished, "--checkpoint", path, "--split", "train", "-b", 1000)
    assert numbers["images"] == 8750
    model = load_model(path, compile=False)
    images = data.load("fashion_mnist_small")
    x = data.preprocessor("meanstd", images)(images.train_images)
    found = model.predict(x, batch_size=1000, verbose=0).argmax(axis=1) == images.train_labels
    assert numbers["accuracy"] == pytest.approx(found.mean(), abs=2e-4)


@pytest.mark.slow
def test_records_as_tfds_writes_them(finished):
    (folder,) = (p for p in EMBEDDED.iterdir() if p.is_dir())
    numbers = evaluate(finished, "-i", folder / "*-test.tfrecord*")
    whole = evaluate(finished)
    assert numbers["images"] == 1750
    for name in ("accuracy", "loss", "nll", "ece"):
        assert numbers[name] == whole[name]


@pytest.mark.slow
def test_a_run_on_corrupted_data_is_evaluated_as_it_was_trained(tmp_path, monkeypatch):
    """Records of one's own are shuffled too, and training inputs get their noise."""
    corrupt = ("--corrupt", "pixel_shuffle+gaussian:2", "--corruption_seed", "3")
    interrupted_at(monkeypatch, 4)
    assert train(*SMALL, *corrupt, "--logdir", tmp_path, "-n", "run") == 130
    run = tmp_path / "run"
    (folder,) = (p for p in EMBEDDED.iterdir() if p.is_dir())
    own = evaluate(run, "-i", folder / "*-test.tfrecord*", "--bn_reestimate", 0)
    assert own["loss"] == evaluate(run, "--bn_reestimate", 0)["loss"]

    found = evaluate(run, "--split", "train", "--bn_reestimate", 0)["loss"]
    model = load_model(run / "checkpoints" / "last.keras", compile=False)
    corruptions = data.parse_corruptions("pixel_shuffle+gaussian:2")
    images = data.corrupt_data(data.load("fashion_mnist_small"), corruptions, seed=3)
    x = data.preprocessor("meanstd", images)(images.train_images)
    noisy = data.input_corruption(corruptions, seed=3)(x, tf.range(len(x), dtype=tf.int64))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    right, wrong = (
        float(loss(images.train_labels, model.predict(inputs, batch_size=1000, verbose=0)))
        for inputs in (noisy, x)
    )
    assert found == pytest.approx(right, rel=1e-4)
    assert found != pytest.approx(wrong, rel=1e-3)


def write_records(path, *examples):
    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            features = {name: feature(value) for name, value in example.items()}
            message = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(message.SerializeToString())


def png(*shape):
    return tf.io.encode_png(np.zeros(shape, np.uint8)).numpy()


def test_several_files_count_together(finished, tmp_path):
    for name, labels in (("a", (0, 1)), ("b", (2,))):
        examples = [{"image": png(28, 28, 1), "label": label} for label in labels]
        write_records(tmp_path / name, *examples)
    assert evaluate(finished, "-i", tmp_path / "a", "-i", tmp_path / "b")["images"] == 3


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        ([{"picture": b"", "label": 1}], "has no features `image`"),
        ([{"image": b"text", "label": 1}], "holds no image"),
        ([{"image": png(28, 28, 3), "label": 1}], "of shape (28, 28, 3)"),
        ([{"image": png(28, 28, 1), "label": 10}], "has the label 10"),
        ([], "There is no record in"),
    ],
)
def test_records_that_do_not_fit(finished, tmp_path, capsys, examples, says):
    good = {"image": png(28, 28, 1), "label": 9}
    write_records(tmp_path / "mine", *([good, *examples] if examples else []))
    error = refused(capsys, 1, finished, "-i", tmp_path / "mine")
    assert says in error
    assert str(tmp_path / "mine") in error
    assert not examples or "Record 2 of" in error


def test_files_that_are_no_records(finished, tmp_path, capsys):
    assert "There is no file" in refused(capsys, 1, finished, "-i", tmp_path / "*.none")
    assert "is a folder" in refused(capsys, 1, finished, "-i", tmp_path)
    text = tmp_path / "text"
    text.write_text("no records " * 10)
    assert "no TFRecord file" in refused(capsys, 1, finished, "-i", text)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the run that may be damaged."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no config.json"),
        ("{", "is damaged"),
        ("[1]", "it is no JSON object"),
        ('{"experiment": {}}', "'dataset' is missing"),
    ],
)
def test_a_missing_or_damaged_config(copy, capsys, text, says):
    config = copy / "config.json"
    config.unlink() if text is None else config.write_text(text)
    assert says in refused(capsys, 1, copy)


def test_a_value_of_config_that_cannot_be(copy, capsys):
    config = json.loads((copy / "config.json").read_text())
    config["experiment"]["batch_size"] = "many"
    (copy / "config.json").write_text(json.dumps(config))
    assert "'batch_size' is 'many'" in refused(capsys, 1, copy)


def test_a_missing_or_damaged_checkpoint(copy, tmp_path, capsys):
    last = copy / "checkpoints" / "last.keras"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert "damaged" in refused(capsys, 1, copy)
    last.write_bytes(content[:1000])
    assert "no whole checkpoint" in refused(capsys, 1, copy)
    last.unlink()
    assert "There is no checkpoint" in refused(capsys, 1, copy)
    assert "is a folder" in refused(capsys, 1, copy, "--checkpoint", tmp_path)
    assert "does not exist" in refused(capsys, 1, copy, "--checkpoint", tmp_path / "x.keras")


@pytest.mark.slow
def test_a_damaged_history(copy, interrupted, capsys):
    (copy / "history.csv").write_text("epoch,loss\n1,abc\n")
    assert "history.csv is damaged" in refused(capsys, 1, copy)


def test_a_checkpoint_of_another_data_set(copy, capsys, monkeypatch):
    config = json.loads((copy / "config.json").read_text())
    config["experiment"]["dataset"] = "cifar10"
    (copy / "config.json").write_text(json.dumps(config))
    missing = refused(capsys, 1, copy, "--nodownload", "--data_dir", copy / "none")
    assert "cifar10 is not prepared" in missing
    images = data.ImageData(
        "cifar10", np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int32),
        np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int32), 10, ("",) * 10, copy,
    )  # fmt: skip
    monkeypatch.setattr(data, "load", lambda *_, **__: images)
    assert "is not of run copy" in refused(capsys, 1, copy)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "give RUN"),
        (("a", "b"), "one word too many"),
        (("a", "--split", "validation"), "--split=validation"),
        (("a", "--batch_size", "0"), "--batch_size=0"),
        (("a", "--nonsense"), "nonsense"),
        (("RUN", "-i", "x", "--split", "test"), "exclude each other"),
        (("RUN", "--json", "/nonexistent/x.json"), "--json=/nonexistent/x.json"),
    ],
)
def test_bad_flags(finished, capsys, flags, says):
    words = [finished if word == "RUN" else word for word in flags]
    error = refused(capsys, 2, *words)
    assert says in error
    assert "evaluate --help" in error


def test_numbers_go_where_a_path_leads(finished, null_device, tmp_path, monkeypatch, capfd):
    """To a device, through a link, home; a file keeps its mode."""
    import stat

    null, link, real = tmp_path / "null", tmp_path / "link", tmp_path / "real.json"
    null.symlink_to(null_device)
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    monkeypatch.setenv("HOME", str(tmp_path))
    # What there is to see, and not to compute again each time.
    from esgd_tf.runs import stored_network

    network = stored_network.load_stored_network
    kept = functools.cache(lambda path: network(*given))

    def once(*arguments):
        nonlocal given
        given = arguments
        return kept(arguments[1])

    given = ()
    monkeypatch.setattr(stored_network, "load_stored_network", once)
    for path in (null, link, "~/home.json", "/dev/stdout"):
        capfd.readouterr()
        assert esgd_tf("evaluate", finished, f"--json={path}") == 0
    assert '"accuracy_interval_95"' in capfd.readouterr().out
    assert null.readlink() == null_device
    assert null_device.is_char_device()
    assert link.is_symlink()
    assert json.loads(real.read_text()) == json.loads((tmp_path / "home.json").read_text())
    assert stat.S_IMODE(real.stat().st_mode) == 0o600


def test_a_folder_of_runs_names_them(finished, capsys):
    assert "Did you mean one of those in it: whole?" in refused(capsys, 1, finished.parent)
    assert "does not exist" in refused(capsys, 1, finished / "none")
    assert "is a file" in refused(capsys, 1, finished / "config.json")


def test_outputs_that_are_not_finite_are_one_sentence(copy, capsys):
    path = copy / "checkpoints" / "last.keras"
    model = load_model(path)
    model.weights[0].assign(np.full(model.weights[0].shape, np.nan))
    from esgd_tf.runs.checkpoints import Progress, save_checkpoint

    save_checkpoint(model, path, Progress(batches=2 * STEPS))
    assert "not finite" in refused(capsys, 1, copy)
