import dataclasses
import os
import pickle
import tarfile
from pathlib import Path

import archive_maker
import numpy as np
import pytest

from esgd_tf.data import DataError
from esgd_tf.data.archives import members as archive_members
from esgd_tf.data.archives import read_cifar
from esgd_tf.data.archives.pickles import RefusedPickleError, safe_loads

FORMS = [("cifar10", 0), ("cifar10", 1), ("cifar100", 0), ("cifar100", 1)]


@pytest.fixture(params=FORMS, ids=["10-python", "10-binary", "100-python", "100-binary"])
def form(request, tiny, tmp_path):
    name, which = request.param
    entry = tiny[name]
    archive = entry.archives[which]
    raw = archive_maker.images_of(entry)
    return (
        entry,
        archive,
        raw,
        archive_maker.cifar_members(entry, archive, raw),
        (tmp_path / archive.file),
    )


@pytest.fixture
def python10(tiny, tmp_path):
    entry = tiny["cifar10"]
    archive = entry.archives[0]
    raw = archive_maker.images_of(entry)
    return (
        entry,
        archive,
        raw,
        archive_maker.cifar_members(entry, archive, raw),
        (tmp_path / archive.file),
    )


def _check(read, raw):
    for split in ("train", "test"):
        got, true = getattr(read, split), getattr(raw, split)
        np.testing.assert_array_equal(got.images, true.images)
        np.testing.assert_array_equal(got.labels, true.labels)
        assert got.labels.dtype == np.int32
        if true.coarse_labels is None:
            assert got.coarse_labels is None
        else:
            np.testing.assert_array_equal(got.coarse_labels, true.coarse_labels)


def _refused(path, archive, entry, match):
    with pytest.raises(DataError, match=match) as error:
        read_cifar(path, archive, entry)
    assert archive.file in str(error.value)
    assert "\n" not in str(error.value)


def test_round_trip(form):
    entry, archive, raw, members, path = form
    archive_maker.write_tar(path, {"./unrelated": b"x", **members})
    _check(read_cifar(path, archive, entry), raw)


def test_members_in_another_order_with_dot_names(form):
    entry, archive, raw, members, path = form
    archive_maker.write_tar(path, {f"./{n}": members[n] for n in reversed(members)})
    _check(read_cifar(path, archive, entry), raw)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_pickles_of_python_2(tiny, tmp_path, name):
    entry = tiny[name]
    archive = entry.archives[0]
    raw = archive_maker.images_of(entry)
    members = archive_maker.cifar_members(entry, archive, raw, archive_maker.python2_dumps)
    assert any(b"numpy.core.multiarray\n_reconstruct" in content for content in members.values())
    path = archive_maker.write_tar(tmp_path / archive.file, members)
    _check(read_cifar(path, archive, entry), raw)


def test_every_missing_member_is_named(form):
    entry, archive, _, members, path = form
    for name in members:
        archive_maker.write_tar(path, {n: c for n, c in members.items() if n != name})
        _refused(path, archive, entry, f"lacks {name}")


def test_label_out_of_range(form):
    entry, archive, raw, _, path = form
    labels = raw.test.labels.copy()
    labels[0] = entry.num_classes
    bad = dataclasses.replace(raw, test=dataclasses.replace(raw.test, labels=labels))
    archive_maker.write_tar(path, archive_maker.cifar_members(entry, archive, bad))
    _refused(path, archive, entry, f"label {entry.num_classes} of image 0")


def test_another_number_of_images(form):
    entry, archive, _, _, path = form
    more = dataclasses.replace(entry, train_counts=tuple(c + 1 for c in entry.train_counts))
    members = archive_maker.cifar_members(entry, archive, archive_maker.images_of(more))
    archive_maker.write_tar(path, members)
    _refused(path, archive, entry, "images in")


def test_classes_in_another_order(form):
    entry, archive, raw, _, path = form
    other = dataclasses.replace(entry, label_names=entry.label_names[::-1])
    archive_maker.write_tar(path, archive_maker.cifar_members(other, archive, raw))
    _refused(path, archive, entry, "in their order")


def test_counts_per_class(form):
    entry, archive, raw, _, path = form
    labels = raw.train.labels.copy()
    labels[labels == 3] = 4
    bad = dataclasses.replace(raw, train=dataclasses.replace(raw.train, labels=labels))
    archive_maker.write_tar(path, archive_maker.cifar_members(entry, archive, bad))
    _refused(path, archive, entry, "does not hold")


def test_truncated_at_any_place(form):
    entry, archive, _, members, path = form
    whole = archive_maker.write_tar(path, members).read_bytes()
    for share in (0, 10, 0.3, 0.8):
        path.write_bytes(whole[: int(share * len(whole)) if share < 1 else share])
        _refused(path, archive, entry, "not a whole tar|lacks|Cannot read")


def test_flipped_bytes_are_never_a_traceback(form):
    entry, archive, raw, members, path = form
    whole = archive_maker.write_tar(path, members).read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 40):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(broken))
        try:
            _check(read_cifar(path, archive, entry), raw)
        except DataError as error:
            assert archive.file in str(error)
        except AssertionError:
            pytest.fail("damage went unnoticed")


def test_not_an_archive(form):
    entry, archive, _, _, path = form
    path.write_bytes(b"<html>404</html>")
    _refused(path, archive, entry, "Cannot read|not a whole")


class _Runs:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parametrize("where", ["data_batch_3", "batches.meta"])
def test_hostile_pickle_runs_nothing(python10, tmp_path, monkeypatch, where):
    entry, archive, _, members, path = python10
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    members[f"{archive.folder}/{where}"] = pickle.dumps({b"data": _Runs()}, protocol=2)
    archive_maker.write_tar(path, members)
    _refused(path, archive, entry, r"refused: it asks for (posix|os)\.mkdir")
    assert not (tmp_path / "evil").exists()


def test_pickles_that_allocate_or_call_are_refused():
    def call(function, arguments):
        return b"\x80\x02c" + function + b"\n" + arguments + b"R."

    huge = b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7fttt"
    hostile = [
        call(b"numpy\nndarray", b"(J\xff\xff\xff\x7ft\x85"),
        call(b"numpy\ndtype", b"U\x01O\x85"),
        call(b"numpy\ndtype", b"U\x02f8\x85"),
        call(b"_codecs\nencode", b"U\x01aU\x03rot\x86"),
        call(b"builtins\neval", b"U\x011\x85"),
        call(b"numpy.core.multiarray\n_reconstruct", b"(cnumpy\nndarray\n" + huge),
        pickle.dumps({b"data": np.zeros(3)}, protocol=2),
        pickle.dumps({b"data": np.array([object], dtype=object)}, protocol=2),
        pickle.dumps([1, 2, 3], protocol=2),
        b"",
        b"garbage",
        b"\x80\x02}q\x01(U",
    ]
    for content in hostile:
        with pytest.raises(RefusedPickleError):
            safe_loads(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch.pop(b"data"),
        lambda batch: batch.update({b"data": batch[b"data"][:, :-1]}),
        lambda batch: batch.update({b"data": batch[b"data"].ravel()}),
        lambda batch: batch.update({b"data": b"pixels"}),
        lambda batch: batch.pop(b"labels"),
        lambda batch: batch.update({b"labels": batch[b"labels"][:-1]}),
        lambda batch: batch.update({b"labels": [True] * len(batch[b"labels"])}),
        lambda batch: batch.update({b"labels": [10**30] * len(batch[b"labels"])}),
        lambda batch: batch.update({b"labels": [[1]] * len(batch[b"labels"])}),
    ],
)
def test_batches_of_another_shape(python10, change):
    entry, archive, _, members, path = python10
    name = f"{archive.folder}/data_batch_2"
    batch = pickle.loads(members[name])
    change(batch)
    members[name] = pickle.dumps(batch, protocol=2)
    archive_maker.write_tar(path, members)
    _refused(path, archive, entry, "not a CIFAR batch")


def test_records_cut_short(tiny, tmp_path):
    entry = tiny["cifar10"]
    archive = entry.archives[1]
    members = archive_maker.cifar_members(entry, archive, archive_maker.images_of(entry))
    name = f"{archive.folder}/test_batch.bin"
    members[name] = members[name][:-1]
    path = archive_maker.write_tar(tmp_path / archive.file, members)
    _refused(path, archive, entry, "whole number of 3073-byte records")


def test_nothing_is_written_wherever_names_point(form, tmp_path):
    entry, archive, raw, members, path = form
    outside = {"../evil": b"x", "/tmp/evil-esgd": b"x", f"{archive.folder}/../evil": b"x"}
    archive_maker.write_tar(path, outside | members)
    before = sorted(tmp_path.parent.rglob("*"))
    _check(read_cifar(path, archive, entry), raw)
    assert sorted(tmp_path.parent.rglob("*")) == before
    assert not Path("/tmp/evil-esgd").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_in_place_of_members(form, kind):
    entry, archive, _, members, path = form
    name = next(iter(members))
    link = tarfile.TarInfo(name)
    link.type, link.linkname = kind, "/etc/passwd"
    archive_maker.write_tar(path, {**members, name: link})
    _refused(path, archive, entry, "no plain file")


def test_members_twice(form):
    entry, archive, _, members, path = form
    first = next(iter(members.items()))
    archive_maker.write_tar(path, [first, *members.items()])
    _refused(path, archive, entry, "twice")


def test_oversize_member_and_bomb(form, monkeypatch):
    entry, archive, _, members, path = form
    monkeypatch.setattr(archive_members, "_SLACK", 1 << 20)
    archive_maker.write_tar(path, {"big": b"\0" * (4 << 20), **members})
    _refused(path, archive, entry, "'big' would be")
    many = {f"pad{i}": b"\0" * (1 << 20) for i in range(16)}
    archive_maker.write_tar(path, {**many, **members})
    _refused(path, archive, entry, "unpacks to far more")


def test_safe_loads_equals_pickle_on_batches(python10):
    members = python10[3]
    for content in members.values():
        safe, plain = safe_loads(content), pickle.loads(content)
        assert set(safe) == {key.decode() for key in plain}
        for key, value in plain.items():
            np.testing.assert_array_equal(safe[key.decode()], value)
    assert safe_loads(pickle.dumps({"data": 1}, protocol=2)) == {"data": 1}
