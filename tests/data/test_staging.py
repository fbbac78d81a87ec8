import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import archive_maker
import numpy as np
import pytest

from esgd_tf.data import DataError, load, sources, staging, storage


@pytest.fixture
def raw_dir(tiny, tmp_path):
    archive_maker.write_idx(tmp_path / "raw" / "mnist", archive_maker.images_of(tiny["mnist"]))
    return tmp_path / "raw"


def _temporary(out):
    return [*out.glob(".building-*"), *out.rglob("incomplete*")]


_BUILD_AND_HANG = """
import sys, time
sys.path.insert(0, sys.argv[1])
import archive_maker
from esgd_tf.data import catalog, load
from esgd_tf.data.archives import raw
catalog.ENTRIES.update(archive_maker.tiny_entries())
from esgd_tf.data import storage
real = storage._examples
def slow(split, name, features):
    for i, example in enumerate(real(split, name, features)):
        if name == "test" and i == 3:
            print("half way", file=sys.__stdout__, flush=True)
            time.sleep(60)
        yield example
storage._examples = slow
load("mnist", data_dir=sys.argv[2], raw_dir=sys.argv[3])
"""


@pytest.mark.slow
def test_killed_build_leaves_nothing_whole(raw_dir, tmp_path):
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", _BUILD_AND_HANG, Path(__file__).parent, out, raw_dir]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as builder:
        assert builder.stdout.readline() == b"half way\n"
        assert _temporary(out)
        os.kill(builder.pid, signal.SIGKILL)
    # The train split was all written, and still nothing can be taken for a data set.
    assert list(out.rglob("*train*"))
    assert not (out / "mnist").exists()
    with pytest.raises(DataError, match="mnist is not prepared"):
        load("mnist", data_dir=out, download=False)
    data = load("mnist", data_dir=out, raw_dir=raw_dir)
    assert len(data.train_labels) == 40
    assert _temporary(out) == []


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "tensorflow"],
    ids=["python", "tensorflow"],
)
def test_full_disk(raw_dir, tmp_path, monkeypatch, failure):
    import tensorflow as tf

    if failure == "tensorflow":
        failure = tf.errors.ResourceExhaustedError(None, None, "x; No space left on device")
    real = storage._examples

    def failing(split, name, features):
        for i, example in enumerate(real(split, name, features)):
            if name == "test" and i == 3:
                raise failure
            yield example

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_examples", failing)
        with pytest.raises(DataError, match=r"(?i)cannot write mnist under .*no space left") as e:
            load("mnist", data_dir=out, raw_dir=raw_dir)
    assert "\n" not in str(e.value)
    assert _temporary(out) == []
    assert not (out / "mnist").exists()
    assert len(load("mnist", data_dir=out, raw_dir=raw_dir).test_labels) == 11


def test_full_disk_as_tfds_reports_it(raw_dir, tmp_path, monkeypatch):
    import tensorflow as tf

    def full(**settings):
        try:
            raise tf.errors.ResourceExhaustedError(None, None, "/x/y; No space left on device")
        except tf.errors.OpError as error:
            raise RuntimeError("Failed to finalize writing of split") from error

    monkeypatch.setattr(storage.tfds.dataset_builders, "store_as_tfds_dataset", full)
    with pytest.raises(DataError, match=r"Cannot write mnist under .*out: No space left on dev"):
        load("mnist", data_dir=tmp_path / "out", raw_dir=raw_dir)
    assert _temporary(tmp_path / "out") == []


def test_interrupted_build_is_cleared_away(raw_dir, tmp_path, monkeypatch):
    def interrupted(raw, entry, data_dir):
        (data_dir / "part").write_text("x")
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("mnist", data_dir=tmp_path / "out", raw_dir=raw_dir)
    assert _temporary(tmp_path / "out") == []


def test_two_builders_at_once(raw_dir, tmp_path, monkeypatch):
    writes = []
    real = storage.write

    def counted(raw, entry, data_dir):
        writes.append(data_dir)
        time.sleep(0.3)
        return real(raw, entry, data_dir)

    monkeypatch.setattr(storage, "write", counted)
    out, results = tmp_path / "out", []
    threads = [
        threading.Thread(
            target=lambda: results.append(load("mnist", data_dir=out, raw_dir=raw_dir))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert len(writes) == 1
    np.testing.assert_array_equal(results[0].train_images, results[1].train_images)
    assert _temporary(out) == []


def test_without_locks_the_first_to_finish_wins(tiny, tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", no_locks)
    entry = tiny["mnist"]
    first, second = archive_maker.images_of(entry), archive_maker.images_of(entry, seed=1)
    other = tmp_path / ".building-mnist.of-another-builder"
    other.mkdir()
    folder = sources.build(first, entry, tmp_path)
    with staging.exclusive(tmp_path, "mnist"):
        assert sources.build(second, entry, tmp_path) == folder
    # Whether the other builder is alive cannot be known without locks.
    assert other.exists()
    data = load("mnist", data_dir=tmp_path)
    assert {i.tobytes() for i in data.train_images} == {i.tobytes() for i in first.train.images}


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".mnist.lock").symlink_to(tmp_path / "precious")
    refused = pytest.raises(DataError, match=r"\.mnist\.lock is a link, which no lock may be: rem")
    with refused, staging.exclusive(tmp_path, "mnist"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_only_dead_builds_of_the_same_set_are_cleared(tmp_path):
    mine, small = tmp_path / ".building-mnist.x", tmp_path / ".building-mnist_small.x"
    mine.mkdir()
    small.mkdir()
    with staging.exclusive(tmp_path, "mnist"):
        assert not mine.exists()
        assert small.exists()


def test_something_else_in_the_place(raw_dir, tmp_path):
    place = tmp_path / "out" / "mnist" / "3.0.1"
    place.mkdir(parents=True)
    # An empty folder is no obstacle.
    load("mnist", data_dir=tmp_path / "out", raw_dir=raw_dir)
    (place / "dataset_info.json").unlink()
    with pytest.raises(DataError, match="holds files but no whole data set"):
        load("mnist", data_dir=tmp_path / "out", raw_dir=raw_dir)
    with staging.temporary_folder(tmp_path, "mnist") as temporary:
        staged = temporary / "x"
        staged.mkdir()
        with pytest.raises(DataError, match="holds files but no whole data set"):
            staging.publish(staged, place)


def test_folder_that_cannot_be_written(raw_dir, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"Cannot (write under|look into)"):
        load("mnist", data_dir=tmp_path / "file" / "out", raw_dir=raw_dir)

    def read_only(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(DataError, match=r"Cannot write under .*Permission denied"):
        load("mnist", data_dir=tmp_path / "out", raw_dir=raw_dir)


def test_records_can_be_read_by_others(raw_dir, tmp_path):
    umask = os.umask(0o022)
    try:
        folder = load("mnist", data_dir=tmp_path / "out", raw_dir=raw_dir).folder
    finally:
        os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o755
