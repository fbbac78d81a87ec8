"""MNIST as Keras keeps it."""

import zipfile

import archive_maker
import numpy as np
import pytest

from esgd_tf.data import DataError
from esgd_tf.data.archives import read_npz


@pytest.fixture
def entry(tiny):
    return tiny["mnist"]


@pytest.fixture
def arrays(entry):
    raw = archive_maker.images_of(entry)
    return {
        "x_train": raw.train.images[..., 0], "y_train": raw.train.labels.astype(np.uint8),
        "x_test": raw.test.images[..., 0], "y_test": raw.test.labels.astype(np.uint8),
    }  # fmt: skip


def _refused(path, entry, match):
    with pytest.raises(DataError, match=match) as error:
        read_npz(path, entry)
    assert "mnist.npz" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [False, True])
def test_round_trip(entry, arrays, tmp_path, save, channels):
    if channels:  # as some rewrite it
        for split in ("train", "test"):
            arrays[f"x_{split}"] = arrays[f"x_{split}"][..., np.newaxis]
            arrays[f"y_{split}"] = arrays[f"y_{split}"].astype(np.int64)
    save(tmp_path / "mnist.npz", **arrays)
    raw = read_npz(tmp_path / "mnist.npz", entry)
    for split in ("train", "test"):
        found = getattr(raw, split)
        assert found.images.shape[1:] == (28, 28, 1)
        assert found.labels.dtype == np.int32
        np.testing.assert_array_equal(found.images.ravel(), arrays[f"x_{split}"].ravel())
        np.testing.assert_array_equal(found.labels, arrays[f"y_{split}"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.pop("x_test"), "it has no x_test"),
        (
            lambda a: a.update(x_test=a["x_test"].astype(np.float32)),
            "bigger than it may be|float32",
        ),
        (lambda a: a.update(x_train=a["x_train"][1:]), r"x_train is uint8 \(39, 28, 28\) and not"),
        (lambda a: a.update(x_train=a["x_train"].reshape(28, 40, 28)), "is not images"),
        (lambda a: a.update(y_train=a["y_train"][1:]), "y_train is uint8"),
        (lambda a: a.update(y_test=a["y_test"].astype(np.float32)), "y_test is float32"),
        (lambda a: a.update(y_test=np.full(11, 2**33)), "label 8589934592 of image 0 is not in"),
        (lambda a: a.update(y_test=np.full(11, -1)), "label -1 of image 0"),
        (lambda a: a.update(y_train=np.full(40, 1)), "0 images of class 0 and not 5"),
        (lambda a: a.update(y_test=np.array([print] * 11)), "Object arrays cannot be loaded"),
        (lambda a: a.update(x_test=np.zeros((10**5, 28, 28), np.uint8)), "bigger than it may be"),
    ],
)
def test_what_is_not_the_file_is_refused(entry, arrays, tmp_path, change, says):
    change(arrays)
    np.savez_compressed(tmp_path / "mnist.npz", **arrays)
    _refused(tmp_path / "mnist.npz", entry, says)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_no_archive(entry, tmp_path, content):
    (tmp_path / "mnist.npz").write_bytes(content)
    _refused(tmp_path / "mnist.npz", entry, "is not Keras' file of mnist")


def test_one_array_under_the_name_of_an_archive(entry, arrays, tmp_path):
    with (tmp_path / "mnist.npz").open("wb") as stream:
        np.save(stream, arrays["x_train"])
    _refused(tmp_path / "mnist.npz", entry, "it is one array and no archive")


def test_damage_is_noticed(entry, arrays, tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 60):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(broken))
        try:
            raw = read_npz(path, entry)
        except DataError as error:
            assert "mnist.npz" in str(error)
        else:
            np.testing.assert_array_equal(raw.train.images[..., 0], arrays["x_train"])
            np.testing.assert_array_equal(raw.test.labels, arrays["y_test"])
    path.write_bytes(whole[: len(whole) // 2])
    _refused(path, entry, "is not Keras' file")


def test_a_header_that_lies_about_its_shape(entry, arrays, tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(path, **arrays)
    header = b"\x93NUMPY\x01\x00"
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999,), }"
    text = text.ljust(128 - 11) + b"\n"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["x_test.npy"] = header + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    _refused(path, entry, "is not Keras' file")
