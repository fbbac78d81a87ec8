import gzip

import archive_maker
import numpy as np
import pytest

from esgd_tf.data import DataError
from esgd_tf.data.archives import read_idx
from esgd_tf.data.catalog import IdxFiles

FILES = IdxFiles()


@pytest.fixture
def mnist(tiny, tmp_path):
    raw = archive_maker.images_of(tiny["mnist"])
    archive_maker.write_idx(tmp_path, raw)
    return tiny["mnist"], raw


def test_round_trip(mnist, tmp_path):
    entry, raw = mnist
    read = read_idx(tmp_path, FILES, entry)
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(read, split).images, getattr(raw, split).images)
        np.testing.assert_array_equal(getattr(read, split).labels, getattr(raw, split).labels)
        assert getattr(read, split).images.dtype == np.uint8
        assert getattr(read, split).labels.dtype == np.int32


def _rewrite(path, change):
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


@pytest.mark.parametrize("name", FILES.names)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: b"\x00\x00\x0d" + content[3:], "not the idx file"),
        (lambda content: content[:-1], "damaged"),
        (lambda content: content + b"\x00", "damaged"),
        (lambda content: content[:3], "not the idx file"),
        (lambda content: b"", "nothing"),
    ],
)
def test_damaged_file_is_named(mnist, tmp_path, name, change, says):
    _rewrite(tmp_path / name, change)
    with pytest.raises(DataError, match=says) as error:
        read_idx(tmp_path, FILES, mnist[0])
    assert name in str(error.value)


def test_labels_and_images_swapped(mnist, tmp_path):
    (tmp_path / FILES.test_images).write_bytes((tmp_path / FILES.test_labels).read_bytes())
    with pytest.raises(DataError, match=r"t10k-images.*not the idx file"):
        read_idx(tmp_path, FILES, mnist[0])


def test_label_out_of_range(mnist, tmp_path):
    _rewrite(tmp_path / FILES.train_labels, lambda content: content[:-1] + b"\x0a")
    with pytest.raises(DataError, match=r"train-labels.*label 10 of image 39 is not in 0 \.\.\. 9"):
        read_idx(tmp_path, FILES, mnist[0])


def test_truncated_or_no_gzip(mnist, tmp_path):
    path = tmp_path / FILES.train_images
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train-images.*not a whole gzip"):
        read_idx(tmp_path, FILES, mnist[0])
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(DataError, match=r"train-images.*not a whole gzip"):
        read_idx(tmp_path, FILES, mnist[0])
    path.unlink()
    with pytest.raises(DataError, match=r"Cannot read .*train-images"):
        read_idx(tmp_path, FILES, mnist[0])


def test_bomb_is_not_unpacked(mnist, tmp_path, monkeypatch):
    asked = []
    real = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, n=-1: asked.append(n) or real(self, n))
    path = tmp_path / FILES.train_labels
    path.write_bytes(gzip.compress(b"\0" * (64 << 20), compresslevel=1))
    with pytest.raises(DataError, match="not the idx file"):
        read_idx(tmp_path, FILES, mnist[0])
    assert asked
    assert all(0 < n < 100_000 for n in asked)


def test_the_other_set_is_refused(tiny, tmp_path):
    archive_maker.write_idx(tmp_path, archive_maker.images_of(tiny["mnist"]))
    with pytest.raises(DataError):
        read_idx(tmp_path, FILES, tiny["fashion_mnist"])
    # Same numbers of images in all, other numbers in the classes.
    labels = tmp_path / FILES.train_labels
    _rewrite(labels, lambda content: content[:8] + bytes(sorted(content[8:-1])) + b"\x01")
    with pytest.raises(DataError, match="does not hold mnist"):
        read_idx(tmp_path, FILES, tiny["mnist"])


def test_flipped_bytes_are_noticed(mnist, tmp_path):
    entry, raw = mnist
    rng = np.random.default_rng(0)
    noticed = 0
    for name in FILES.names:
        whole = (tmp_path / name).read_bytes()
        # The first ten bytes are gzip's header, most of which (time, system) means nothing.
        for place in [2, *rng.integers(10, len(whole), 20)]:
            broken = bytearray(whole)
            broken[place] ^= 1 << int(rng.integers(8))
            (tmp_path / name).write_bytes(bytes(broken))
            # A few bits of a compressed file are padding: then nothing is damaged.
            try:
                read = read_idx(tmp_path, FILES, entry)
            except DataError as error:
                noticed += 1
                assert name in str(error)
            else:
                for split in ("train", "test"):
                    got, true = getattr(read, split), getattr(raw, split)
                    np.testing.assert_array_equal(got.images, true.images)
                    np.testing.assert_array_equal(got.labels, true.labels)
        (tmp_path / name).write_bytes(whole)
    assert noticed > 75
