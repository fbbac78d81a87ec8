"""`export`, loaded by a process that cannot import this library."""

import json
import stat
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

from esgd_tf import data
from esgd_tf.runs.checkpoints import load_model
from tests.cli.helpers import esgd_tf

# Loads everything in a folder with plain Keras and TensorFlow, and stores the outputs.
STRANGER = """
import sys
sys.modules["esgd_tf"] = None  # import esgd_tf raises ImportError
import pathlib, keras, numpy as np, tensorflow as tf
folder = pathlib.Path(sys.argv[1])
given = np.load(folder / "given.npz")
outputs = {}
for file in sorted(folder.glob("*.keras")):
    name = file.stem
    x = given["prepared" if "prepared" in name else "raw"]
    model = keras.models.load_model(file)
    assert not model.compiled
    outputs[name + ".keras"] = model.predict(x, verbose=0)
    x = x.astype("float32")
    if (folder / name).is_dir():
        loaded = tf.saved_model.load(folder / name)
        outputs[name] = loaded.serve(x).numpy()
        layer = keras.layers.TFSMLayer(folder / name, call_endpoint="serving_default")
        (outputs[name + "/layer"],) = layer(x).values()
np.savez(folder / "found.npz", **outputs)
"""


@pytest.fixture(scope="module")
def logits(finished):
    """Twenty images, raw and preprocessed, and the logits of the run's own network."""
    images = data.load("fashion_mnist_small")
    raw = images.test_images[:20]
    prepared = np.asarray(data.preprocessor("meanstd", images)(raw))
    model = load_model(finished / "checkpoints" / "last.keras", compile=False)
    return raw, prepared, np.asarray(model(prepared))


@pytest.mark.slow
def test_both_forms_load_without_the_library(finished, tmp_path, logits, capsys):
    raw, prepared, expected = logits
    assert esgd_tf("export", finished, tmp_path / "net") == 0
    out = capsys.readouterr().out
    assert "float32 [n, 28, 28, 1], pixels 0 to 255" in out
    accuracies = {line.split("%")[0].split()[-1] for line in out.splitlines() if "%" in line}
    assert len(accuracies) == 1  # the run's, OUT.keras' and OUT's
    assert out.count(" %") == 3
    flags = ("--nocheck", "--format", "keras")
    assert esgd_tf("export", finished, tmp_path / "p", *flags, "--softmax") == 0
    assert esgd_tf("export", finished, tmp_path / "prepared.keras", *flags,
                   "--nopreprocessing") == 0  # fmt: skip
    assert "preprocessed by meanstd" in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {"net", "net.keras", "p.keras", "prepared.keras"}

    np.savez(tmp_path / "given.npz", raw=raw, prepared=prepared)
    result = subprocess.run(
        [sys.executable, "-c", STRANGER, str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    found = np.load(tmp_path / "found.npz")
    for name in ("net.keras", "net", "net/layer", "prepared.keras"):
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5, err_msg=name)
    exp = np.exp(expected)
    np.testing.assert_allclose(
        found["p.keras"], exp / exp.sum(axis=1, keepdims=True), rtol=0, atol=1e-6
    )


@pytest.mark.slow
def test_an_interrupted_run_is_exported_with_statistics_estimated_anew(
    interrupted, tmp_path, capsys
):
    words = ("export", interrupted, tmp_path / "net", "--format", "keras")
    assert esgd_tf(*words) == 0
    out = capsys.readouterr().out
    assert "estimated anew from 1,750 training images" in out
    assert esgd_tf("evaluate", interrupted, "--json", tmp_path / "numbers.json") == 0
    accuracy = json.loads((tmp_path / "numbers.json").read_text())["accuracy"]
    assert out.count(f"{100 * accuracy:.2f} %") == 2


def test_nothing_is_overwritten_unasked(finished, tmp_path, capsys):
    out = tmp_path / "net.keras"
    out.write_text("mine")
    words = ("export", finished, tmp_path / "net", "--nocheck")
    assert esgd_tf(*words) == 1
    error = capsys.readouterr().err
    assert "exists already" in error
    assert error.count("\n") == 1
    assert out.read_text() == "mine"
    assert not (tmp_path / "net").exists()
    # What export has not written is not overwritten if asked either: a text, a checkpoint.
    assert esgd_tf(*words, "--overwrite") == 1
    assert "is no network that export wrote" in capsys.readouterr().err
    assert out.read_text() == "mine"
    checkpoint = finished / "checkpoints" / "last.keras"
    out.write_bytes(checkpoint.read_bytes())
    assert esgd_tf(*words, "--overwrite") == 1
    assert out.read_bytes() == checkpoint.read_bytes()
    out.unlink()
    (tmp_path / "elsewhere").mkdir()
    out.symlink_to(tmp_path / "elsewhere" / "real.keras")
    assert esgd_tf(*words) == 1  # the link is there
    out.unlink()
    assert esgd_tf(*words) == 0
    # Both of them, with their modes, and through a link.
    (tmp_path / "net").rename(tmp_path / "elsewhere" / "real")
    (tmp_path / "net").symlink_to(tmp_path / "elsewhere" / "real")
    (tmp_path / "net").chmod(0o700)
    out.chmod(0o600)
    before = (tmp_path / "net" / "saved_model.pb").stat().st_ino
    assert esgd_tf(*words, "--overwrite") == 0
    assert (tmp_path / "net").is_symlink()
    assert (tmp_path / "net" / "saved_model.pb").stat().st_ino != before
    assert stat.S_IMODE((tmp_path / "elsewhere" / "real").stat().st_mode) == 0o700
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    # A file of someone else in the folder would be deleted along.
    (tmp_path / "net" / "variables" / "notes.txt").write_text("dear")
    assert esgd_tf(*words, "--overwrite") == 1
    assert "holds other files too" in capsys.readouterr().err
    assert (tmp_path / "net" / "variables" / "notes.txt").read_text() == "dear"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "net", "net.keras"]


def test_a_folder_that_is_no_export_is_never_replaced(finished, tmp_path, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    assert esgd_tf("export", finished, tmp_path / "home", "--overwrite") == 1
    assert "is no SavedModel folder" in capsys.readouterr().err
    assert (tmp_path / "home" / "letter").read_text() == "dear"


def test_a_failure_leaves_nothing_new_and_all_that_was_there(
    finished, tmp_path, monkeypatch, capsys
):
    def full(self, path, **_):
        path.mkdir()
        (path / "saved_model.pb").write_text("half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(keras.Model, "export", full)
    assert esgd_tf("export", finished, tmp_path / "net") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with zipfile.ZipFile(tmp_path / "net.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("metadata.json", "{}")
    old = (tmp_path / "net.keras").read_bytes()
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "saved_model.pb").write_text("old")
    assert esgd_tf("export", finished, tmp_path / "net", "--overwrite") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net", "net.keras"]
    assert (tmp_path / "net.keras").read_bytes() == old
    assert (tmp_path / "net" / "saved_model.pb").read_text() == "old"
