"""Archives as people have them: unpacked, renamed, and where Keras and torchvision keep them."""

import gzip
import shutil
import tarfile

import archive_maker
import numpy as np
import pytest

from esgd_tf.data import DataError, sources
from esgd_tf.data.archives import read_cifar, read_idx
from esgd_tf.data.catalog import IdxFiles

FILES = IdxFiles()
DOTTED = {name: name.replace("-idx", ".idx") for name in FILES.names}


@pytest.fixture
def found(tiny, monkeypatch):
    """A function that gives the images which a raw_dir yields, without writing records."""
    kept = []
    monkeypatch.setattr(sources, "build", lambda raw, *_: kept.append(raw))

    def read(name, raw_dir, out):
        place = sources._find_archive(tiny[name], raw_dir)
        if place is None:
            return None
        sources._build(tiny[name], tiny[name], out, *place)
        return kept.pop()

    return read


def _same(read, raw):
    for split in ("train", "test"):
        got, true = getattr(read, split), getattr(raw, split)
        np.testing.assert_array_equal(got.images, true.images)
        np.testing.assert_array_equal(got.labels, true.labels)


def _rename(folder, change):
    """Give each published idx file another name, or other content."""
    for name in FILES.names:
        change(folder / name)


def _unpack(path):
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()


def _dot(path):
    _unpack(path)
    path.with_suffix("").rename(path.with_name(DOTTED[path.name]).with_suffix(""))


def _into_folder(path):
    content = gzip.decompress(path.read_bytes())
    path.unlink()
    path.with_suffix("").mkdir()
    (path.with_suffix("") / path.stem).write_bytes(content)


FORMS = {
    "unpacked": _unpack,
    "dotted": _dot,
    "dotted, packed": lambda path: path.rename(path.with_name(DOTTED[path.name])),
    "unpacked under its name": lambda p: p.write_bytes(gzip.decompress(p.read_bytes())),
    "packed without its name": lambda path: path.rename(path.with_suffix("")),
    "a folder each": _into_folder,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inside", ["mnist", ".", "MNIST/raw"])
def test_idx_files(tiny, tmp_path, found, form, inside):
    raw = archive_maker.images_of(tiny["mnist"])
    folder = tmp_path / "raw" / inside
    archive_maker.write_idx(folder, raw)
    _rename(folder, FORMS[form])
    _same(found("mnist", tmp_path / "raw", tmp_path / "out"), raw)
    # Directly in the folder the labels tell whose they are; in a named one they must be right.
    if inside == ".":
        assert found("fashion_mnist", tmp_path / "raw", tmp_path / "out") is None


@pytest.mark.parametrize("form", ["unpacked", "dotted"])
def test_unpacked_idx_files_are_checked_alike(tiny, tmp_path, form):
    entry = tiny["mnist"]
    archive_maker.write_idx(tmp_path, archive_maker.images_of(entry))
    _rename(tmp_path, FORMS[form])
    name = (DOTTED[FILES.train_labels] if form == "dotted" else FILES.train_labels)[:-3]
    path = tmp_path / name
    whole = path.read_bytes()
    for content, says in (
        (whole[:-1] + b"\x0a", r"label 10 of image 39 is not in 0 \.\.\. 9"),
        (whole[:-1], "damaged: 40 values must follow its header and 39 do"),
        (whole + b"\0", "and more do"),
        (b"<html>404</html>", "not the idx file"),
        (b"", "begins with nothing"),
        (whole[:8] + b"\x01" * 40, "0 images of class 0 and not 5"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=says) as error:
            read_idx(tmp_path, FILES, entry)
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(DataError, match=r"Cannot read .*train-labels"):
        read_idx(tmp_path, FILES, entry)


CIFAR = [("cifar10", 0), ("cifar10", 1), ("cifar100", 0), ("cifar100", 1)]


@pytest.fixture(params=CIFAR, ids=["10-python", "10-binary", "100-python", "100-binary"])
def cifar(request, tiny):
    name, which = request.param
    entry = tiny[name]
    archive = entry.archives[which]
    raw = archive_maker.images_of(entry)
    return name, archive, raw, archive_maker.cifar_members(entry, archive, raw)


def _write(folder, members):
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("form", ["in raw", "in its own", "itself", "Keras", "bare", "tar", "old"])
def test_cifar(tmp_path, found, cifar, form):
    name, archive, raw, members = cifar
    raw_dir = tmp_path / "raw"
    inside = archive.folder
    if form == "in raw":
        _write(raw_dir, members)
    elif form == "in its own":
        _write(raw_dir / name, members)
    elif form == "itself":
        _write(raw_dir, members)
        raw_dir = raw_dir / inside
    elif form == "bare":
        _write(raw_dir, members)
        shutil.move(raw_dir / inside, raw_dir / name)
    elif form == "Keras":
        _write(raw_dir / f"{inside}-target", members)
    elif form == "old":
        archive_maker.write_tar(raw_dir / f"{inside}.tar.gz", members)
    else:
        packed = archive_maker.write_tar(tmp_path / "x.tar.gz", members)
        raw_dir.mkdir()
        plain = raw_dir / archive.file.removesuffix(".gz")
        plain.write_bytes(gzip.decompress(packed.read_bytes()))
        assert tarfile.is_tarfile(plain)
    _same(found(name, raw_dir, tmp_path / "out"), raw)
    other = "cifar100" if name == "cifar10" else "cifar10"
    assert found(other, raw_dir, tmp_path / "out") is None


def test_a_folder_of_cifar_is_checked_as_its_archive_is(tmp_path, cifar, tiny):
    name, archive, _, members = cifar
    folder = tmp_path / archive.folder
    first = next(iter(members))

    def refused(match):
        with pytest.raises(DataError, match=match) as error:
            read_cifar(folder, archive, tiny[name])
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)

    for missing in members:
        shutil.rmtree(folder, ignore_errors=True)
        _write(tmp_path, {n: c for n, c in members.items() if n != missing})
        refused(f"lacks {missing}")
    _write(tmp_path, {**members, first: members[first][:-1]})
    refused("whole number|damaged")
    _write(tmp_path, {first: b"\0" * (20 << 20)})
    refused("has more than")
    (tmp_path / first).unlink()
    (tmp_path / first).mkdir()
    refused("is no file")


def test_a_pipe_in_a_folder_of_cifar_is_not_waited_for(tmp_path, tiny):
    import os

    entry = tiny["cifar10"]
    archive = entry.archives[0]
    _write(tmp_path, archive_maker.cifar_members(entry, archive, archive_maker.images_of(entry)))
    (tmp_path / archive.folder / "data_batch_2").unlink()
    os.mkfifo(tmp_path / archive.folder / "data_batch_2")
    with pytest.raises(DataError, match="data_batch_2 is no file"):
        read_cifar(tmp_path / archive.folder, archive, entry)


def test_kerases_own_folder(tiny, tmp_path, found):
    """All four sets, as `keras.datasets` leaves them in ~/.keras/datasets."""
    raws = {name: archive_maker.images_of(tiny[name]) for name in tiny}
    mnist = raws["mnist"]
    archive_maker.write_idx(tmp_path / "fashion-mnist", raws["fashion_mnist"])
    np.savez(
        tmp_path / "mnist.npz",
        x_train=mnist.train.images[..., 0], y_train=mnist.train.labels.astype(np.uint8),
        x_test=mnist.test.images[..., 0], y_test=mnist.test.labels.astype(np.uint8),
    )  # fmt: skip
    for name in ("cifar10", "cifar100"):
        archive = tiny[name].archives[0]
        members = archive_maker.cifar_members(tiny[name], archive, raws[name])
        archive_maker.write_tar(tmp_path / f"{archive.folder}-target_archive", members)
        _write(tmp_path / f"{archive.folder}-target", members)
    for name in ("mnist", "fashion_mnist", "cifar10", "cifar100"):
        _same(found(name, tmp_path, tmp_path / "out"), raws[name])
        # The packed file may have been thrown away.
        for path in tmp_path.glob("*_archive"):
            path.unlink()


def test_a_file_called_train_is_no_cifar_100(tiny, tmp_path, found):
    (tmp_path / "train").write_bytes(b"something else")
    assert found("cifar100", tmp_path, tmp_path / "out") is None
