"""TFRecord files of one's own: plain, compressed, cut short, of other kinds."""

import gzip
import zlib

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.data import DataError
from esgd_tf.data.record_files import is_compressed, read_file
from esgd_tf.data.records import read_records

SHAPE = (4, 4, 1)


def _example(image, label, **more):
    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        if isinstance(value, list):
            return tf.train.Feature(float_list=tf.train.FloatList(value=value))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    features = {name: feature(v) for name, v in {"image": image, "label": label, **more}.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _write(path, records, kind=""):
    options = tf.io.TFRecordOptions(compression_type=kind)
    with tf.io.TFRecordWriter(str(path), options=options) as writer:
        for record in records:
            writer.write(record)


def _png(value):
    return tf.io.encode_png(np.full(SHAPE, value, np.uint8)).numpy()


def _fails(path, match):
    with pytest.raises(DataError, match=match) as error:
        read_records([str(path)], SHAPE, "abc")
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    assert "{{" not in text
    assert "[Op:" not in text


@pytest.mark.parametrize("kind", ["", "GZIP", "ZLIB"])
def test_compressed_files_hold_the_same(tmp_path, kind):
    _write(tmp_path / "a", [_example(_png(k), k % 3) for k in range(7)], kind)
    images, labels = read_records([str(tmp_path / "a")], SHAPE, "abc")
    np.testing.assert_array_equal(images[:, 0, 0, 0], range(7))
    np.testing.assert_array_equal(labels, np.arange(7) % 3)
    assert is_compressed(tmp_path / "a") == bool(kind)


@pytest.mark.parametrize("level", [1, 6, 9])
def test_zlib_of_any_level(tmp_path, level):
    _write(tmp_path / "a", [_example(_png(k), 0) for k in range(3)])
    (tmp_path / "b").write_bytes(zlib.compress((tmp_path / "a").read_bytes(), level))
    assert list(read_file(tmp_path / "b")) == list(read_file(tmp_path / "a"))


@pytest.mark.parametrize("start", [0x8B1F, 0x9C78, 0x0178])
def test_a_record_whose_length_looks_like_a_compressed_file(tmp_path, start):
    content = b"x" * (0x080000 + start if start == 0x8B1F else start)
    _write(tmp_path / "a", [content])
    assert (tmp_path / "a").read_bytes()[:2] == start.to_bytes(2, "little")
    assert list(read_file(tmp_path / "a")) == [content]


@pytest.mark.parametrize("kind", ["", "GZIP", "ZLIB"])
@pytest.mark.few(1)
def test_a_file_cut_at_any_place_is_noticed(tmp_path, kind):
    """TensorFlow itself ends in silence inside a record's length, and inside gzip's checksum."""
    _write(tmp_path / "whole", [_example(_png(k), 0) for k in range(3)], kind)
    whole = (tmp_path / "whole").read_bytes()
    step = len(next(read_file(tmp_path / "whole"))) + 16
    ends = {0, step, 2 * step} if not kind else {0}
    for length in range(0, len(whole), 7 if kind else 13):
        (tmp_path / "cut").write_bytes(whole[:length])
        if length not in ends:
            _fails(tmp_path / "cut", "is damaged or no TFRecord file")


def test_what_follows_the_end_is_noticed(tmp_path):
    for kind in ("", "GZIP", "ZLIB"):
        _write(tmp_path / "a", [_example(_png(1), 0)], kind)
        (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes() + b"junk")
        _fails(tmp_path / "a", "is damaged")
    # Two gzip files behind each other are one.
    _write(tmp_path / "a", [_example(_png(1), 0)])
    (tmp_path / "b").write_bytes(2 * gzip.compress((tmp_path / "a").read_bytes()))
    assert len(list(read_file(tmp_path / "b"))) == 2


def test_plain_words(tmp_path):
    _write(tmp_path / "a", [_example(_png(k), 0) for k in range(3)])
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:-1])
    _fails(tmp_path / "a", r"\(it ends in the middle of the record at byte \d+\)")
    broken = bytearray(whole)
    broken[-6] ^= 1
    (tmp_path / "a").write_bytes(bytes(broken))
    _fails(tmp_path / "a", r"\(the record at byte \d+ does not match its checksum\)")
    (tmp_path / "a").write_text("no records " * 10)
    _fails(tmp_path / "a", r"\(it does not begin as TFRecord files do\)")
    (tmp_path / "a").write_bytes(whole[:5])
    _fails(tmp_path / "a", r"\(5 bytes after its last whole record belong to none\)")


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (b"", "has no features `image`.*: it has none at all"),
        (b"text", "has no features `image`.*: it is no tf.train.Example"),
        (
            tf.train.Example(
                features=tf.train.Features(
                    feature={"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList())}
                )
            ).SerializeToString(),
            r"has no features `image`.*: it has image/encoded \(bytes_list\)",
        ),
        (_example(b"", 1), "holds no image"),
        (_example([0.5] * 16, 1), r"has no features `image`.*image \(float_list\), label \(int64"),
        (_example(1, 1), "has no features `image`"),
        (_example(b"\x89PNG\r\n\x1a\n", 1), "holds no image"),
    ],
    # The bytes of a record are in another order in every process.
    ids=["empty", "no example", "other features", "no bytes", "floats", "number", "half a PNG"],
)
def test_records_that_do_not_fit(tmp_path, record, says):
    _write(tmp_path / "a", [_example(_png(1), 0), record])
    _fails(tmp_path / "a", f"Record 2 of .*{says}")


@pytest.mark.parametrize("label", [3, -1, 2**33])
def test_labels_out_of_range(tmp_path, label):
    _write(tmp_path / "a", [_example(_png(1), label)])
    _fails(tmp_path / "a", f"has the label {label}")


def test_files_without_records(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    _fails(tmp_path / "a", "There is no record in")
    _write(tmp_path / "a", [], "GZIP")
    _fails(tmp_path / "a", "There is no record in")


def test_patterns(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for k, name in enumerate(("a-1", "a-2", "b[1]", "c")):
        _write(tmp_path / name, [_example(_png(k), k % 3)])
    images, _ = read_records(["~/a-*", str(tmp_path / "b[1]")], SHAPE, "abc")
    np.testing.assert_array_equal(images[:, 0, 0, 0], [0, 1, 2])
    for pattern in (tmp_path / "d*", "~/nothing", tmp_path / "[x]"):
        with pytest.raises(DataError, match="There is no file"):
            read_records([str(pattern)], SHAPE, "abc")
    with pytest.raises(DataError, match="is a folder: name the TFRecord files in it"):
        read_records(["~"], SHAPE, "abc")
