"""Checkpoints made to harm: refused in one sentence, or harmless, and nothing in them is executed.

Each is a file that Keras, HDF5 or `zipfile` could be brought to act on: code, modules to import,
paths that lead elsewhere, shapes that would fill the memory, networks that lead to themselves.
"""

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from esgd_tf.runs.checkpoints import load_network
from esgd_tf.runs.progress import read_extra
from tests.cli.helpers import STEPS, esgd_tf, train


@pytest.fixture
def sentinel(tmp_path, monkeypatch):
    """A file that exists once anything was executed, and a module that makes it when imported."""
    path = tmp_path / "executed"
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sentinel_module.py").write_text(
        f"import pathlib\npathlib.Path({str(path)!r}).touch()\n"
        "def touch(*a, **k):\n    return a[0] if a else None\nclass Touch:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(modules))
    yield path
    sys.modules.pop("sentinel_module", None)
    assert not path.exists()


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)


def with_layer(content, layer):
    """Put another layer in the place of the first one that computes."""
    config = json.loads(content["config.json"])
    layers = config["config"]["layers"]
    place = next(k for k, each in enumerate(layers) if each["class_name"] == "Dropout")
    layers[place] = {**layers[place], **layer}
    return {**content, "config.json": json.dumps(config)}


def a_lambda(content, sentinel):
    code = compile(f"open({str(sentinel)!r}, 'w')", "x", "eval")
    import base64
    import marshal

    text = base64.b64encode(marshal.dumps(code)).decode()
    inner = {
        "class_name": "__lambda__",
        "config": {"code": text, "defaults": None, "closure": None},
    }
    layer = {"class_name": "Lambda", "module": "keras.layers",
             "config": {"name": "dropout", "function": inner}}  # fmt: skip
    return with_layer(content, layer)


def a_module_to_import(content, sentinel):
    del sentinel
    layer = {"class_name": "Touch", "module": "sentinel_module", "registered_name": "Touch",
             "config": {}}  # fmt: skip
    return with_layer(content, layer)


def a_function_to_call(content, sentinel):
    del sentinel
    function = {"class_name": "function", "module": "os", "registered_name": "function",
                "config": "system"}  # fmt: skip
    layer = {"class_name": "Activation", "module": "keras.layers",
             "config": {"name": "dropout", "activation": function}}  # fmt: skip
    return with_layer(content, layer)


def a_module_of_the_whole_model(content, sentinel):
    del sentinel
    config = json.loads(content["config.json"])
    config.update(module="sentinel_module", class_name="Touch", registered_name="Touch")
    return {**content, "config.json": json.dumps(config)}


def a_huge_shape(content, sentinel):
    del sentinel
    config = json.loads(content["config.json"])
    for layer in config["config"]["layers"]:
        if layer["class_name"] == "Dense":
            layer["config"]["units"] = 10**13
    return {**content, "config.json": json.dumps(config)}


def nested_without_end(content, sentinel):
    del sentinel
    return {**content, "config.json": '{"config": ' * 50_000 + "0" + "}" * 50_000}


def a_loop(content, sentinel):
    """Every layer has the last one as its input."""
    del sentinel
    config = json.loads(content["config.json"])
    layers = config["config"]["layers"]
    text = json.dumps(layers[1]).replace(layers[0]["name"], layers[-1]["name"])
    layers[1] = json.loads(text)
    return {**content, "config.json": json.dumps(config)}


def weights_elsewhere(content, sentinel, *, kind):
    """The first weight lies in another file, by an external link or external storage."""
    secret = sentinel.with_name("secret.h5")
    buffer = io.BytesIO(content["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
        name = next(n for n in names if file[n].ndim == 2)
        shape, dtype = file[name].shape, file[name].dtype
        with h5py.File(secret, "w") as other:
            other["stolen"] = np.full(shape, 7.0, dtype)
        del file[name]
        if kind == "link":
            file[name] = h5py.ExternalLink(str(secret), "stolen")
        else:
            size = int(np.prod(shape)) * dtype.itemsize
            raw = sentinel.with_name("raw")
            raw.write_bytes(np.full(shape, 7.0, dtype).tobytes())
            file.create_dataset(name, shape, dtype, external=[(str(raw), 0, size)])
    return {**content, "model.weights.h5": buffer.getvalue()}


def an_external_link(content, sentinel):
    return weights_elsewhere(content, sentinel, kind="link")


def an_external_storage(content, sentinel):
    return weights_elsewhere(content, sentinel, kind="storage")


def a_path_that_leads_out(content, sentinel):
    return {**content, f"../../../../../..{sentinel}": b"x", str(sentinel): b"x"}


def progress_of_nonsense(content, sentinel):
    del sentinel
    return {**content, "esgd_tf.json": '{"batches": "many", "random_states": []}'}


def progress_without_end(content, sentinel):
    del sentinel
    return {**content, "esgd_tf.json": "[" * 100_000 + "]" * 100_000}


HARMFUL = [a_lambda, a_module_to_import, a_function_to_call, a_module_of_the_whole_model,
           a_huge_shape, nested_without_end, a_loop, an_external_link, an_external_storage,
           progress_of_nonsense, progress_without_end]  # fmt: skip


@pytest.mark.parametrize("make", HARMFUL, ids=lambda make: make.__name__)
def test_a_harmful_checkpoint_is_refused(finished, sentinel, tmp_path, capsys, make):
    copy = shutil.copytree(finished, tmp_path / "run")
    path = copy / "checkpoints" / "last.keras"
    content = members(path)
    path.unlink()
    write(path, make(content, sentinel))
    for name in ("best.keras", "previous.keras"):
        (copy / "checkpoints" / name).unlink(missing_ok=True)
    assert esgd_tf("evaluate", copy) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("esgd_tf evaluate: ")
    assert "7.0" not in line
    assert "unforeseen" not in line


def going_on(finished, folder, make, sentinel, capsys):
    """Let a run go on from a harmful checkpoint; its status, and what it said."""
    copy = shutil.copytree(finished, folder / make.__name__)
    path = copy / "checkpoints" / "last.keras"
    content = members(path)
    for each in (copy / "checkpoints").glob("*.keras"):
        each.unlink()
    write(path, make(content, sentinel))
    status = train("-rl", "-e", 3, "--logdir", folder, "-n", copy.name, "--limit_steps", 1)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return status, [line for line in error.splitlines() if line.startswith("train.py: ")]


@pytest.mark.parametrize("make", [an_external_link, progress_of_nonsense])
def test_training_does_not_go_on_from_it(finished, sentinel, tmp_path, capsys, make):
    status, sentences = going_on(finished, tmp_path, make, sentinel, capsys)
    assert status == 1
    assert len(sentences) == 1
    assert "unforeseen" not in sentences[0]


@pytest.mark.slow  # it trains
@pytest.mark.parametrize("make", [a_lambda, a_module_to_import])
def test_training_does_not_read_the_description_of_the_network(
    finished, sentinel, tmp_path, capsys, make
):
    """It builds its network itself: only weights, optimizer state and progress are read."""
    assert going_on(finished, tmp_path, make, sentinel, capsys) == (0, [])


def test_a_path_that_leads_out_of_the_archive_writes_nothing(finished, sentinel, tmp_path):
    path = tmp_path / "x.keras"
    write(path, a_path_that_leads_out(members(finished / "checkpoints" / "last.keras"), sentinel))
    before = sorted(Path("/").iterdir())
    model, progress = load_network(path)
    assert isinstance(model, keras.Model)
    assert progress.batches == 2 * STEPS
    assert sorted(Path("/").iterdir()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["modules", "x.keras"]


def test_an_archive_that_grows_a_thousandfold(finished, tmp_path):
    """A member of 64 MiB of zeros in 64 KiB: its checksum is found without keeping it."""
    import tracemalloc

    path = tmp_path / "bomb.keras"
    shutil.copy(finished / "checkpoints" / "last.keras", path)
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("zeros", "w") as member,
    ):
        for _ in range(64):
            member.write(bytes(1 << 20))
    tracemalloc.start()
    assert read_extra(path)[0].batches == 2 * STEPS
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
