"""Run folders: their lock, whose checkpoints lie in them, and files that were tampered with."""

import errno
import json
import os
import zipfile

import pytest

from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.run_folder import RunFolder

HEADER = "epoch,gradient_evaluations,val_accuracy,val_loss,seconds\n"
ROW = "1.0,5,0.5,1.25,3.5\n"


def checkpoint(path, run="absent"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        extra = {"batches": 5} if run == "absent" else {"batches": 5, "run": run}
        archive.writestr("esgd_tf.json", json.dumps(extra))


def begun(path, **options):
    """Begin a run and return its id."""
    folder = RunFolder(path, **options)
    with folder:
        folder.write_config({"preset": "x"})
        return folder.run_id


def test_a_run_has_an_id_of_its_own_and_keeps_it(tmp_path):
    first, second = begun(tmp_path / "a"), begun(tmp_path / "b")
    assert first != second
    assert begun(tmp_path / "a") == first
    assert RunFolder(tmp_path / "a").read_config()["id"] == first


def test_checkpoints_of_another_run_are_not_overwritten(tmp_path):
    own = begun(tmp_path / "a")
    checkpoint(tmp_path / "a" / "checkpoints" / "last.keras", own)
    assert begun(tmp_path / "a") == own
    checkpoint(tmp_path / "a" / "checkpoints" / "best.keras", "another")
    with pytest.raises(RunFolderError, match=r"best.keras is of another run"):
        begun(tmp_path / "a")


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text('{"preset": "x"}')
    checkpoint(tmp_path / "a" / "checkpoints" / "last.keras")
    assert begun(tmp_path / "a")
    # But not from what a run of today has left there.
    (tmp_path / "a" / "config.json").write_text('{"preset": "x"}')
    checkpoint(tmp_path / "a" / "checkpoints" / "last.keras", "another")
    with pytest.raises(RunFolderError, match=r"last.keras is of another run"):
        begun(tmp_path / "a")


@pytest.mark.parametrize("run", ["another", "absent"])
def test_a_new_run_does_not_take_a_checkpoint_folder_that_is_in_use(tmp_path, run):
    checkpoint(tmp_path / "shared" / "last.keras", run)
    before = (tmp_path / "shared" / "last.keras").read_bytes()
    with pytest.raises(RunFolderError, match=r"name another --checkpoint_dir"):
        begun(tmp_path / "b", checkpoint_dir=tmp_path / "shared")
    assert (tmp_path / "shared" / "last.keras").read_bytes() == before


def test_two_trainings_with_one_checkpoint_folder_at_once(tmp_path):
    with (
        RunFolder(tmp_path / "a", tmp_path / "shared"),
        pytest.raises(RunFolderError, match=r"is writing to .*shared: .*another --checkpoint_dir"),
    ):
        begun(tmp_path / "b", checkpoint_dir=tmp_path / "shared")
    begun(tmp_path / "b", checkpoint_dir=tmp_path / "shared")  # the locks are released


def test_what_happened_since_a_start_was_decided_is_seen_under_the_lock(tmp_path):
    seen = RunFolder(tmp_path / "a").state()
    assert begun(tmp_path / "a", seen=seen)
    with pytest.raises(RunFolderError, match=r"has written to .* since this one was started"):
        begun(tmp_path / "a", seen=seen)
    seen = RunFolder(tmp_path / "a").state()
    begun(tmp_path / "a", seen=seen)
    (tmp_path / "a" / "history.csv").write_text(HEADER + ROW)
    with pytest.raises(RunFolderError, match=r"since this one was started"):
        begun(tmp_path / "a", seen=RunFolder(tmp_path / "b").state())


def test_leftovers_are_swept_everywhere_a_folder_among_them(tmp_path):
    folder = RunFolder(tmp_path / "a")
    for place in (folder.path, folder.checkpoints, folder.kept):
        (place / ".partial-1-x" / "within").mkdir(parents=True)
        (place / ".partial-2-y").write_text("left")
    begun(tmp_path / "a")
    assert not list(tmp_path.rglob(".partial*"))


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"is a file"):
        begun(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"link to nothing"):
        begun(tmp_path / "link")
    with pytest.raises(RunFolderError, match=r"is a file, not a run folder"):
        RunFolder(tmp_path / "file").read_config()


def test_the_lock_does_not_empty_what_a_link_leads_to(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunFolderError, match=r"\.lock is a link"):
        begun(tmp_path / "a")
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EACCES, errno.EIO])
def test_a_lock_that_cannot_be_taken_is_named(tmp_path, monkeypatch, number):
    """On a network file system without locks, or where another user's file is in the place."""

    def refuse(self):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("filelock.FileLock._acquire", refuse)
    with pytest.raises(OSError, match=os.strerror(number)) as error:
        begun(tmp_path / "a")
    assert error.value.errno == number
    assert error.value.filename == str(tmp_path / "a" / ".lock")


@pytest.mark.parametrize("text", ["{", "[" * 100_000 + "]" * 100_000, '{"a": ' * 10_000, "\xff"])
def test_a_config_that_is_no_json(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunFolderError, match=r"config.json is damaged"):
        RunFolder(tmp_path).read_config()


def test_a_config_that_is_a_folder(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(RunFolderError, match=r"config.json is damaged .Is a directory"):
        RunFolder(tmp_path).read_config()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ROW, "header has no epoch"),
        ("", "its last line is cut"),
        ("\n", "header has no epoch"),
        (HEADER + ROW[:-2], "its last line is cut"),
        (HEADER + "1.0,5,0.5,1.25\n", "line 2 has not the columns"),
        (HEADER + "1.0,5,0.5,1.25,3.5,7\n", "line 2 has not the columns"),
        (HEADER + "1.0,5,0.5,,3.5\n", "line 2 has no val_loss"),
        (HEADER + ROW + "2.0,5,half,1.25,3.5\n", "line 3 has 'half' for val_accuracy"),
        (HEADER + ROW + ROW, "line 3 does not follow"),
        (HEADER + "nan,5,0.5,1.25,3.5\n", "line 2 does not follow"),
        (HEADER + "1.0,5,0.5,1.25,\xff\n", "can't decode"),
    ],
)
def test_a_history_that_is_not_what_was_written(tmp_path, text, says):
    (tmp_path / "history.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunFolderError, match=f"history.csv is damaged .*{says}"):
        RunFolder(tmp_path).read_history()


def test_a_history_as_written_is_read(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_history() == []
    names = HEADER.strip().split(",")
    rows = [dict.fromkeys(names, 0.5) | {"epoch": 1.0}]
    rows.append(dict.fromkeys(names, 0.5) | {"epoch": 2.0, "scope": 0.1})
    folder.write_history(rows)
    assert folder.read_history() == rows
    folder.history.unlink()
    os.mkdir(folder.history)  # noqa: PTH102
    with pytest.raises(RunFolderError, match=r"is damaged .Is a directory"):
        folder.read_history()
