"""Prepared records that are not what they seem: foreign code, other sets, compressed shards."""

import gzip
import json
import shutil
import zlib

import archive_maker
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from esgd_tf.data import DataError, load

FEATURES = "tensorflow_datasets.core.features."


@pytest.fixture
def records(tiny, tmp_path):
    archive_maker.write_idx(tmp_path / "mnist", archive_maker.images_of(tiny["mnist"]))
    return load("mnist", data_dir=tmp_path / "out", raw_dir=tmp_path).folder


def _store(folder, name, raw, *, image=None, label=None, change=lambda example: example):
    """Prepare a set by TFDS itself, with features that may be wrong."""
    features = {
        "image": image or tfds.features.Image(shape=raw.train.images.shape[1:]),
        "label": label or tfds.features.ClassLabel(num_classes=10),
    }
    return tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="3.0.1",
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            split: [
                (i, change({"image": images[i], "label": labels[i]})) for i in range(len(labels))
            ]
            for split, images, labels in (
                ("train", raw.train.images, raw.train.labels),
                ("test", raw.test.images, raw.test.labels),
            )
        },
        data_dir=folder,
    ).data_dir


def _refused(data_dir, match, name="mnist"):
    with pytest.raises(DataError, match=match) as error:
        load(name, data_dir=data_dir, download=False)
    text = str(error.value)
    assert "\n" not in text
    assert "{{" not in text
    assert "[Op:" not in text
    return text


def _edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("place", ["set", "label", "unused", "older", "spelled"])
def test_a_class_from_the_folder_is_never_imported(records, monkeypatch, place):
    (records / "evil_module.py").write_text(f"open({str(records / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(records))

    def change(content):
        inside = content["featuresDict"]["features"]
        if place == "set":
            content["pythonClassName"] = "evil_module.Features"
        elif place == "label":
            inside["label"]["pythonClassName"] = "evil_module.Label"
        elif place == "unused":
            inside["more"] = {**inside["label"], "pythonClassName": "evil_module.Label"}
        elif place == "older":
            content.clear()
            content.update(type="evil_module.Features", content={})
        else:
            inside["label"]["python_class_name"] = "evil_module.Label"
            del inside["label"]["pythonClassName"]

    _edit(records / "features.json", change)
    text = _refused(records.parents[1], "is refused: it names 'evil_module")
    assert "features.json" in text
    assert not (records / "ran").exists()


def test_names_of_classes_are_not_read_from_elsewhere(records, tmp_path):
    """The older form of the file could name any file."""
    secret = tmp_path / "secret"
    secret.write_text("\n".join("abcdefghij"))
    dictionary, image, label = (
        FEATURES + name
        for name in (
            "features_dict.FeaturesDict",
            "image_feature.Image",
            "class_label_feature.ClassLabel",
        )
    )
    older = {
        "type": dictionary,
        "content": {
            "image": {
                "type": image,
                "content": {"shape": [28, 28, 1], "dtype": "uint8", "encoding_format": "png"},
            },
            "label": {"type": label, "content": {"num_classes": 10}},
        },
    }
    (records / "features.json").write_text(json.dumps(older))
    assert load("mnist", data_dir=records.parents[1], download=False).num_classes == 10
    older["content"]["label"]["content"] = {"names_file": str(secret)}
    (records / "features.json").write_text(json.dumps(older))
    _refused(records.parents[1], "is refused: it names '.*secret'")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param('{"a":' * 100_000, "nested too deep", id="objects"),
        pytest.param("[" * 100_000, "nested too deep", id="lists"),
        ("[]", "no JSON object"),
        ("\x00", "is no JSON"),
        pytest.param('{"name": "' + "x" * (2 << 20) + '"}', "far too long", id="long"),
    ],
)
def test_descriptions_made_to_break_readers(records, name, content, says):
    (records / name).write_text(content)
    _refused(records.parents[1], f"damaged .*{says}")


def test_a_pipe_in_place_of_the_description_is_not_waited_for(records):
    import os

    (records / "features.json").unlink()
    os.mkfifo(records / "features.json")
    _refused(records.parents[1], "no file")


def test_a_renamed_set_is_told_by_its_name_then_its_classes_then_its_counts(tiny, records):
    out = records.parents[1]
    copy = shutil.copytree(records, out / "fashion_mnist" / "3.0.1")
    _refused(out, "its dataset_info.json names the set 'mnist'", "fashion_mnist")

    # Renamed by somebody who knows how.
    for path in copy.glob("mnist-*"):
        path.rename(path.with_name("fashion_" + path.name))
    _edit(copy / "dataset_info.json", lambda info: info.update(name="fashion_mnist"))
    _refused(out, r"does not hold fashion_mnist: its .*splits", "fashion_mnist")


def test_equal_shapes_and_numbers_are_told_by_classes_and_counts(tiny, tmp_path):
    """MNIST's digits under Fashion-MNIST's name: in all as many images as there should be."""
    entry = tiny["fashion_mnist"]
    raw = archive_maker.images_of(entry)
    digits = tfds.features.ClassLabel(names=[f"digit {k}" for k in range(10)])
    _store(tmp_path / "a", "fashion_mnist", raw, label=digits)
    _refused(tmp_path / "a", "its 10 classes are digit 0, digit 1", "fashion_mnist")

    labels = raw.train.labels.copy()
    labels[np.flatnonzero(labels == 3)[0]] = 4
    other = archive_maker.dataclasses.replace(
        raw, train=archive_maker.dataclasses.replace(raw.train, labels=labels)
    )
    _store(tmp_path / "b", "fashion_mnist", other)
    _refused(tmp_path / "b", "its train split has 3 images of class 3 and not 4", "fashion_mnist")
    # And without a fault: numbers for names, as TFDS writes them where it knows no names.
    _store(tmp_path / "c", "fashion_mnist", raw)
    assert load("fashion_mnist", data_dir=tmp_path / "c", download=False).num_classes == 10


@pytest.mark.parametrize("bad", [2**33, 2**32 + 1, -1, 10])
def test_labels_that_fit_in_32_bits_by_accident(records, bad):
    path = next(records.glob("*-test.tfrecord*"))
    examples = [tf.train.Example.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]
    examples[2].features.feature["label"].int64_list.value[0] = bad
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(example.SerializeToString())
    _refused(records.parents[1], rf"label {bad} of image 2 is not in 0 \.\.\. 9")


def test_images_of_one_pixel_are_not_stretched(records):
    for path in records.glob("*.tfrecord*"):
        examples = [
            tf.train.Example.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(path))
        ]
        with tf.io.TFRecordWriter(str(path)) as writer:
            for example in examples:
                pixel = tf.io.encode_png(np.full((1, 1, 1), 7, np.uint8)).numpy()
                example.features.feature["image"].bytes_list.value[0] = pixel
                writer.write(example.SerializeToString())
    _refused(records.parents[1], r"images are of shape \[1,1,1\] and not \[28,28,1\]")


def test_float_images_are_refused(tiny, tmp_path):
    raw = archive_maker.images_of(tiny["mnist"])
    image = tfds.features.Image(shape=(28, 28, 1), dtype=np.float32)

    def change(example):
        return {**example, "image": example["image"].astype(np.float32) / 255}

    _store(tmp_path, "mnist", raw, image=image, change=change)
    _refused(tmp_path, "values of its images are float32 and not uint8")


def test_damage_is_told_in_plain_words(records):
    path = next(records.glob("*-train.tfrecord*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    _refused(records.parents[1], "it ends in the middle of the record at byte")
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 4
    path.write_bytes(bytes(broken))
    _refused(records.parents[1], "does not match its checksum")
    path.write_bytes(b"text and no records, in spite of its name")
    _refused(records.parents[1], "does not begin as TFRecord files do")
    path.unlink()
    _refused(records.parents[1], "there is no such file")


@pytest.mark.parametrize("form", ["gzip", "zlib", "gz-suffix", "one"])
@pytest.mark.few(1)
def test_compressed_shards_are_read_in_the_same_order(records, form):
    out = records.parents[1]
    plain = load("mnist", data_dir=out, download=False)
    for path in sorted(records.glob("*.tfrecord*"))[: 1 if form == "one" else None]:
        content = path.read_bytes()
        path.write_bytes(zlib.compress(content) if form == "zlib" else gzip.compress(content))
        if form == "gz-suffix":
            path.rename(path.with_name(path.name + ".gz"))
    again = load("mnist", data_dir=out, download=False)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(plain, name))
    assert again.folder == records


@pytest.mark.parametrize("cut", [1, 5, 9, 40])
def test_a_compressed_shard_cut_short_is_named(records, cut):
    path = next(records.glob("*-test.tfrecord*"))
    path.write_bytes(gzip.compress(path.read_bytes())[:-cut])
    assert path.name in _refused(records.parents[1], "is damaged .*as a gzip file")


def test_a_compressed_bomb_is_not_unpacked(records):
    path = next(records.glob("*-test.tfrecord*"))
    path.write_bytes(gzip.compress(b"\0" * (64 << 20), compresslevel=1))
    assert path.name in _refused(records.parents[1], "it unpacks to more than")
