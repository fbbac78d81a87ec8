import json
import shutil
import threading
import time
import urllib.request
from pathlib import Path

import archive_maker
import numpy as np
import pytest

from esgd_tf.data import DataError, load, network, sources
from esgd_tf.data.catalog import ENTRIES
from esgd_tf.data.subset import stratified

CHECKOUT = Path(sources.__file__).parents[2]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def _sorted(images, labels):
    """Order pairs by content: TFDS stores them in an order of its own."""
    flat = np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1)
    return flat[np.lexsort(flat.T)]


def _same(data, raw):
    for images, labels, split in (
        (data.train_images, data.train_labels, raw.train),
        (data.test_images, data.test_labels, raw.test),
    ):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(_sorted(images, labels), _sorted(split.images, split.labels))


def _listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_become_records(tiny, tmp_path, name):
    raw = archive_maker.images_of(tiny[name])
    archive_maker.write_idx(tmp_path / "raw" / name, raw)
    out = tmp_path / "out"
    data = load(name, data_dir=out, raw_dir=tmp_path / "raw")
    _same(data, raw)
    assert data.folder == out / name / "3.0.1"
    assert data.label_names == ENTRIES[name].label_names
    assert data.num_classes == 10
    # Later runs need no archives and give the same order.
    shutil.rmtree(tmp_path / "raw")
    again = load(name, data_dir=out, download=False)
    np.testing.assert_array_equal(again.train_images, data.train_images)
    np.testing.assert_array_equal(again.train_labels, data.train_labels)
    # Nothing temporary is left.
    assert [p for p in _listing(out) if ".building" in p or "incomplete" in p] == []


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("which", [0, 1])
def test_cifar_archives_become_records(tiny, tmp_path, name, which):
    entry = tiny[name]
    archive = entry.archives[which]
    raw = archive_maker.images_of(entry)
    members = archive_maker.cifar_members(entry, archive, raw)
    archive_maker.write_tar(tmp_path / archive.file, members)
    data = load(name, data_dir=tmp_path / "out", raw_dir=tmp_path)
    _same(data, raw)
    assert data.num_classes == len(entry.label_names)


def test_plain_tfds_reads_what_we_wrote(tiny, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    entry = tiny["cifar100"]
    raw = archive_maker.images_of(entry)
    archive = entry.archives[1]
    members = archive_maker.cifar_members(entry, archive, raw)
    archive_maker.write_tar(tmp_path / archive.file, members)
    data = load("cifar100", data_dir=tmp_path / "out", raw_dir=tmp_path)
    records = tfds.load("cifar100", data_dir=tmp_path / "out", split="train", download=False)
    records = list(tfds.as_numpy(records))
    np.testing.assert_array_equal([r["image"] for r in records], data.train_images)
    np.testing.assert_array_equal([r["label"] for r in records], data.train_labels)
    assert [r["coarse_label"] for r in records] == [r["label"] // 5 for r in records]
    # TFDS' own builder numbers the images; so do we.
    for record in records:
        number = int(record["id"].decode().removeprefix("train_"))
        np.testing.assert_array_equal(raw.train.images[number], record["image"])


def test_records_of_another_version_and_maker_are_read(tiny, tmp_path):
    import tensorflow_datasets as tfds

    raw = archive_maker.images_of(tiny["mnist"])
    plain = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    for version in ("3.0.0", "10.0.0"):
        tfds.dataset_builders.store_as_tfds_dataset(
            name="mnist",
            version=version,
            features=plain,
            split_datasets={
                name: [
                    (i, {"image": split.images[i], "label": split.labels[i]})
                    for i in range(len(split.labels))
                ]
                for name, split in (("train", raw.train), ("test", raw.test))
            },
            data_dir=tmp_path,
        )
    data = load("mnist", data_dir=tmp_path, download=False)
    _same(data, raw)
    assert data.folder.name == "10.0.0"
    assert data.label_names == tuple("0123456789")


@pytest.mark.slow
def test_equal_file_names_are_told_apart(tiny, tmp_path):
    mnist = archive_maker.images_of(tiny["mnist"])
    fashion = archive_maker.images_of(tiny["fashion_mnist"])
    raw_dir = tmp_path / "raw"
    archive_maker.write_idx(raw_dir, fashion)
    # Directly in raw_dir: they count for the set whose labels they hold, not for the other.
    with pytest.raises(DataError, match="mnist is not prepared"):
        load("mnist", data_dir=tmp_path / "a", raw_dir=raw_dir)
    _same(load("fashion_mnist", data_dir=tmp_path / "a", raw_dir=raw_dir), fashion)
    # A folder of the set's own comes first, with either kind of stroke.
    other = archive_maker.images_of(tiny["fashion_mnist"], seed=1)
    archive_maker.write_idx(raw_dir / "fashion-mnist", other)
    archive_maker.write_idx(raw_dir / "mnist", mnist)
    _same(load("fashion_mnist", data_dir=tmp_path / "b", raw_dir=raw_dir), other)
    _same(load("mnist", data_dir=tmp_path / "b", raw_dir=raw_dir), mnist)


def test_wrong_or_half_a_folder_is_an_error_not_a_download(tiny, tmp_path):
    archive_maker.write_idx(tmp_path / "mnist", archive_maker.images_of(tiny["mnist"]))
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-labels"):
        load("mnist", data_dir=tmp_path / "out", raw_dir=tmp_path)
    assert _listing(tmp_path / "out") == [".mnist.lock"]


@pytest.mark.slow
def test_embedded_set_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = _listing(CHECKOUT / "tfrecords")
    data = load("fashion_mnist_small")
    assert data.folder == CHECKOUT / "tfrecords" / "fashion_mnist_small" / "1.0.0"
    assert data.train_images.shape == (8750, 28, 28, 1)
    assert data.test_images.shape == (1750, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(data.train_labels), [875] * 10)
    np.testing.assert_array_equal(np.bincount(data.test_labels), [175] * 10)
    assert len({image.tobytes() for image in data.train_images}) > 8700
    # Another data_dir, and one that does not exist, still find it; nobody writes anything.
    elsewhere = load("fashion_mnist_small", data_dir=tmp_path / "elsewhere")
    np.testing.assert_array_equal(elsewhere.test_images, data.test_images)
    assert _listing(tmp_path) == []
    assert _listing(CHECKOUT / "tfrecords") == before


def test_embedded_set_is_small_and_says_nothing_of_its_maker():
    folder = CHECKOUT / "tfrecords" / "fashion_mnist_small"
    records = list(folder.rglob("*.tfrecord-*"))
    assert sum(p.stat().st_size for p in records) < 6_000_000
    assert "MIT License" in (folder / "LICENSE").read_text()
    for path in folder.rglob("*.json"):
        text = path.read_text()
        json.loads(text)
        assert "/home" not in text
        assert str(CHECKOUT) not in text


def test_subset_from_archives(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_CHECKOUT", tmp_path)
    full = archive_maker.images_of(tiny["fashion_mnist"])
    archive_maker.write_idx(tmp_path / "raw" / "fashion_mnist", full)
    data = load("fashion_mnist_small", data_dir=tmp_path / "out", raw_dir=tmp_path / "raw")
    _same(data, stratified(full, tiny["fashion_mnist_small"]))
    np.testing.assert_array_equal(np.bincount(data.train_labels), [2] * 10)
    whole = {image.tobytes() for image in full.train.images}
    assert all(image.tobytes() in whole for image in data.train_images)


def test_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources.resolve("tfrecords") == CHECKOUT / "tfrecords"
    assert sources.resolve("records") == tmp_path / "records"
    assert sources.resolve(tmp_path / "tfrecords") == tmp_path / "tfrecords"
    # Installed without the repository: there is no such folder beside the package.
    monkeypatch.setattr(sources, "_CHECKOUT", tmp_path / "site-packages")
    assert sources.resolve("tfrecords") == tmp_path / "tfrecords"


def test_unknown_names_and_folders(tmp_path):
    with pytest.raises(DataError, match=r"no data set 'imagenet'; choose one of fashion_mnist_sm"):
        load("imagenet")
    with pytest.raises(DataError, match=r"raw_dir .*nowhere is not a folder"):
        load("cifar10", data_dir=tmp_path, raw_dir=tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Cannot look into"):
        load("cifar10", data_dir=tmp_path / "file", download=False)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_missing_data_says_what_to_put_where(tmp_path, monkeypatch, name):
    # A name server that never answers: the worst of no networks.
    def no_answer(*args, **kwargs):
        threading.Event().wait(20)
        raise OSError

    monkeypatch.setattr(urllib.request, "urlopen", no_answer)
    monkeypatch.setattr(network, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(network.reachable, "__defaults__", (0.2,))
    begin = time.monotonic()
    with pytest.raises(DataError) as error:
        load(name, data_dir=tmp_path / "out", raw_dir=tmp_path)
    assert time.monotonic() - begin < 2
    text = str(error.value)
    first = ENTRIES[name].archives[0]
    for expected in (
        "does not answer",
        str(tmp_path / "out"),
        str(tmp_path / name),
        first.names[0] if name.endswith("mnist") else first.file,
        ENTRIES[name].homepage,
        "--raw_dir",
    ):
        assert expected in text
    assert "\n" not in text
    assert _listing(tmp_path) == []


def test_patience_leaves_room_in_ten_seconds():
    assert network.PATIENCE_SECONDS <= 5


def test_no_download_asks_nobody(tmp_path):
    with pytest.raises(DataError, match="downloading is off"):
        load("cifar10", data_dir=tmp_path, download=False)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [(None, True), (405, True), (403, False), (404, False), (OSError("no route"), False)],
)
def test_reachable(monkeypatch, outcome, expected):
    def urlopen(request, timeout):
        assert request.get_method() == "HEAD"
        if isinstance(outcome, int):
            raise urllib.error.HTTPError(request.full_url, outcome, "", {}, None)
        if outcome is not None:
            raise outcome
        return open("/dev/null")  # noqa: PTH123

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert network.reachable("http://example.org/x", 5.0) is expected


def test_download_is_asked_of_tfds_only_if_reachable(tiny, tmp_path, monkeypatch):
    from esgd_tf.data import staging, storage

    asked = []
    raw = archive_maker.images_of(tiny["mnist"])

    def download(entry, data_dir):
        asked.append(data_dir)
        with staging.temporary_folder(data_dir, entry.name) as temporary:
            final = data_dir / entry.name / entry.version
            staging.publish(storage.write(raw, entry, temporary), final)
        return final

    entry = archive_maker.dataclasses.replace(tiny["mnist"], probe_url="http://example.org/x")
    monkeypatch.setitem(ENTRIES, "mnist", entry)
    monkeypatch.setattr(storage, "download", download)
    with pytest.raises(DataError, match=r"example\.org does not answer"):
        load("mnist", data_dir=tmp_path)
    assert asked == []
    monkeypatch.setattr(network, "reachable", lambda url: True)
    _same(load("mnist", data_dir=tmp_path), raw)
    _same(load("mnist", data_dir=tmp_path), raw)
    assert asked == [tmp_path]


def test_failing_download_is_one_sentence(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    from esgd_tf.data import storage

    class Builder:
        def download_and_prepare(self):
            raise ConnectionError("reset by peer\nlong story")

    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: Builder())
    with pytest.raises(DataError, match=r"could not download mnist .*reset by peer\)") as error:
        storage.download(ENTRIES["mnist"], tmp_path)
    assert "\n" not in str(error.value)


@pytest.fixture
def records(tiny, tmp_path):
    archive_maker.write_idx(tmp_path / "mnist", archive_maker.images_of(tiny["mnist"]))
    return load("mnist", data_dir=tmp_path / "out", raw_dir=tmp_path).folder


def _load_fails(folder, match):
    with pytest.raises(DataError, match=match) as error:
        load("mnist", data_dir=folder.parents[1], download=False)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_damaged_records_are_named(records):
    path = next(records.glob("*-test.tfrecord*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert path.name in _load_fails(records, "damaged")
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 4
    path.write_bytes(bytes(broken))
    assert path.name in _load_fails(records, "damaged")
    path.write_bytes(b"")
    assert str(records) in _load_fails(records, "damaged")
    path.unlink()
    assert path.name in _load_fails(records, "damaged or missing")
    path.write_bytes(whole)
    load("mnist", data_dir=records.parents[1])


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{}", "{", '{"name": 3}', "null"])
def test_damaged_description(records, name, content):
    (records / name).write_text(content)
    assert str(records) in _load_fails(records, "damaged|does not hold")


def test_records_of_another_set(tiny, records):
    shutil.copytree(records, records.parents[1] / "fashion_mnist" / "3.0.1")
    with pytest.raises(DataError, match=r"does not hold fashion_mnist|damaged"):
        load("fashion_mnist", data_dir=records.parents[1])


def test_standard_output_is_left_alone(tiny, tmp_path, capfd):
    archive_maker.write_idx(tmp_path / "mnist", archive_maker.images_of(tiny["mnist"]))
    load("mnist", data_dir=tmp_path / "out", raw_dir=tmp_path)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "train" in captured.err
