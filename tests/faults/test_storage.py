"""Disks, files and folders that fail: one clear sentence, and nothing lost."""

import functools
import json
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import config
from esgd_tf import data
from esgd_tf.cli.train import main
from esgd_tf.runs import report
from esgd_tf.runs.run_folder import RunFolder
from tests.faults import harness
from tests.faults.harness import Job

SMALL = (
    "--preset", "quickstart", "-m", "mnistfc", "-b", "1750", "-L", "3", "--bn_reestimate", "1",
)  # fmt: skip


_load = data.load


@pytest.fixture(scope="module", autouse=True)
def only_once():
    """Read the embedded images once, and draw no pictures; damaged copies have another folder."""
    embedded = functools.cache(lambda: _load("fashion_mnist_small"))

    def load_or_remember(name, **keywords):
        whole = name == "fashion_mnist_small" and keywords["data_dir"] == "tfrecords"
        return embedded() if whole else _load(name, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", load_or_remember)
        patch.setattr(report, "plot_history", lambda *_: None)
        yield


def train(*flags):
    return main(config.PRESETS, ["train.py", *map(str, flags)])


def sentence(capsys):
    """What train.py said on standard error: one line."""
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (line,) = (line for line in errors.splitlines() if line.startswith("train.py: "))
    return line


def in_a_file_system(options, folder, job, keep=None):
    """Run a training with a file system of its own at `folder`; `keep` gets a copy of it."""
    script = f'mount -t tmpfs -o {options} tmpfs "$1" && shift && shift && "$@"; status=$?'
    if keep is not None:
        script = script.replace("shift && shift", 'keep="$2" && src="$1" && shift && shift')
        script += '; cp -a "$src/." "$keep"'
    folder.mkdir(parents=True)
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script + "; exit $status",
               "sh", str(folder), str(keep), *harness.command(*job.flags)]  # fmt: skip
    return subprocess.run(
        command, cwd=harness.ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def may_mount():
    probe = ["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_mount = pytest.mark.skipif(not may_mount(), reason="no file systems may be mounted here")


@needs_mount
@pytest.mark.slow
def test_full_disk_keeps_the_last_good_state(tmp_path):
    # Room for one checkpoint of 30 MB and a part of the next.
    kept = tmp_path / "kept"
    kept.mkdir()
    job = Job(tmp_path, "full", 2, "--checkpoint_dir", tmp_path / "disk")
    result = in_a_file_system("size=50m", tmp_path / "disk", job, kept)
    error = harness.one_sentence(result)
    assert "No space left on device" in error
    assert "last.keras" in error
    assert "make room" in error
    harness.assert_nothing_torn(kept)
    assert not list(kept.glob(".partial*"))
    _, extra = harness.state(kept / "last.keras")
    assert extra["batches"] == 2
    # With room, it goes on from there.
    shutil.copytree(kept, tmp_path / "disk", dirs_exist_ok=True)
    assert harness.run_here(*job.flags, "--checkpoint_dir", tmp_path / "disk") == 0
    assert len(harness.history(job.run_folder)) == 2


@pytest.mark.slow
@needs_mount
def test_a_full_disk_for_everything(tmp_path):
    job = Job(tmp_path, "full", 1)
    error = harness.one_sentence(in_a_file_system("size=1m", tmp_path / "runs", job))
    assert "No space left on device" in error


@needs_mount
@pytest.mark.slow
def test_a_folder_that_may_not_be_written_to(tmp_path):
    job = Job(tmp_path, "new", 1)
    error = harness.one_sentence(in_a_file_system("ro", tmp_path / "runs", job))
    assert "Cannot write to" in error
    assert "--logdir" in error


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """A run of two epochs, and so with a last and a previous checkpoint."""
    logdir = tmp_path_factory.mktemp("two")
    assert train(*SMALL, "-e", 2, "--logdir", logdir, "-n", "run") == 0
    return logdir / "run"


@pytest.fixture
def copied(two_epochs, tmp_path):
    shutil.copytree(two_epochs, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) * 2 // 3 :]
    else:
        content[len(content) // 2] ^= 1
    path.unlink()  # the previous checkpoint may be the same file under another name
    path.write_bytes(content)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "how", [pytest.param("truncated", marks=SLOW), "flipped", pytest.param("gone", marks=SLOW)]
)
@pytest.mark.slow
def test_the_checkpoint_before_a_damaged_one_is_used(copied, two_epochs, capsys, how):
    copied.last.unlink() if how == "gone" else damage(copied.last, how)
    assert train("-rl", "--logdir", copied.path.parent, "-n", "run") == 0
    if how != "gone":
        errors = capsys.readouterr().err
        assert str(copied.last) in errors
        assert f"Going on from {copied.previous} instead, after 5" in errors
    harness.assert_equal_runs(copied.path, two_epochs)
    # The damaged one has not become the previous one.
    with zipfile.ZipFile(copied.previous) as archive:
        assert archive.testzip() is None


@pytest.mark.slow
def test_two_damaged_checkpoints_are_refused(copied, capsys):
    damage(copied.last, "flipped")
    damage(copied.previous, "truncated")
    before = copied.history.read_bytes()
    assert train("-rl", "-e", 3, "--logdir", copied.path.parent, "-n", "run") == 1
    assert "no whole checkpoint" in sentence(capsys)
    assert copied.history.read_bytes() == before


@pytest.mark.slow
def test_no_flipped_byte_goes_unnoticed(two_epochs, tmp_path):
    """Wherever it is: the file is refused, or what is read is what was written."""
    from esgd_tf.runs.checkpoints import DamagedCheckpointError
    from esgd_tf.runs.progress import read_extra

    whole = RunFolder(two_epochs).last.read_bytes()
    expected = read_extra(RunFolder(two_epochs).last)
    generator = np.random.default_rng(3)
    # The directory of the archive is at its end, where a byte does most.
    places = [*generator.integers(0, len(whole), 20), *range(len(whole) - 400, len(whole), 7)]
    refused = 0
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << int(generator.integers(8))
        path = tmp_path / "flipped.keras"
        path.write_bytes(content)
        try:
            assert read_extra(path) == expected, place
        except DamagedCheckpointError:
            refused += 1
    assert refused > len(places) // 2


@pytest.mark.slow
def test_a_run_of_another_configuration_is_refused(copied, capsys):
    flags = ("-rl", "--logdir", copied.path.parent, "-n", "run", "-L", 5)
    assert train(*flags) == 2
    error = sentence(capsys)
    assert "--langevin_steps=5" in error
    assert "has 3" in error


@pytest.mark.slow
def test_damaged_settings_and_history_are_refused(copied, capsys):
    content = copied.history.read_bytes()
    copied.history.write_bytes(content.replace(b"1.0", b"one"))
    assert train("-rl", "-e", 3, "--logdir", copied.path.parent, "-n", "run") == 1
    assert "history.csv is damaged" in sentence(capsys)
    copied.history.write_bytes(content)
    copied.config.write_text(copied.config.read_text()[:-40])
    assert train("-rl", "-e", 3, "--logdir", copied.path.parent, "-n", "run") == 1
    assert "config.json is damaged" in sentence(capsys)


@pytest.mark.slow
def test_moved_checkpoints_do_not_restart_a_run(copied, tmp_path, capsys):
    copied.checkpoints.rename(tmp_path / "elsewhere")
    assert train("-rl", "-e", 3, "--logdir", copied.path.parent, "-n", "run") == 1
    assert "--checkpoint_dir" in sentence(capsys)
    assert len(harness.history(copied.path)) == 2


@pytest.mark.parametrize("how", ["truncated", "flipped"])
@pytest.mark.few(1)
def test_damaged_records_are_named(tmp_path, capsys, how):
    embedded = harness.ROOT / "tfrecords" / "fashion_mnist_small"
    shutil.copytree(embedded, tmp_path / "fashion_mnist_small")
    victim = next((tmp_path / "fashion_mnist_small").rglob("*test.tfrecord*"))
    damage(victim, how)
    flags = (*SMALL, "--data_dir", tmp_path, "--logdir", tmp_path / "runs")
    assert train(*flags) == 1
    assert str(victim) in sentence(capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_trainings_in_one_folder(tmp_path, capsys):
    job = Job(tmp_path, "run", 1)
    with subprocess.Popen(
        harness.command(*job.flags), cwd=harness.ROOT, stdout=subprocess.PIPE, text=True
    ) as first:
        for line in first.stdout:
            if line == "@step\n":
                break
        first.send_signal(signal.SIGSTOP)  # so that it cannot end before the second looks
        status = harness.run_here(*job.flags)
        first.send_signal(signal.SIGCONT)
        first.stdout.read()
    assert status == 1
    assert "Another training is writing" in sentence(capsys)
    assert first.returncode == 0
    assert len(harness.history(job.run_folder)) == 1


_BUILD = """
import sys
sys.path[:0] = sys.argv[1:3]
import archive_maker, time
from esgd_tf.data import catalog, load, storage
catalog.ENTRIES.update(archive_maker.tiny_entries())
real = storage.write
def write(raw, entry, data_dir):
    folder = real(raw, entry, data_dir)
    print("built", flush=True)
    time.sleep(float(sys.argv[5]))
    return folder
storage.write = write
images = load("mnist", data_dir=sys.argv[3], raw_dir=sys.argv[4])
print("loaded", len(images.train_labels), flush=True)
"""


def builder(folder, delay):
    maker = Path(__file__).resolve().parents[1] / "data"
    arguments = [harness.ROOT, maker, folder / "records", folder / "raw", delay]
    return subprocess.Popen(
        [sys.executable, "-c", _BUILD, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("fate", [pytest.param("lives", marks=SLOW), "killed"])
@pytest.mark.slow
def test_two_processes_build_one_data_set(tmp_path, fate):
    """One builds and one waits; if the first dies, the second builds."""
    Job(tmp_path, "unused", 1)  # makes the archives
    with builder(tmp_path, 600 if fate == "killed" else 2) as first:
        assert first.stdout.readline() == "built\n"
        with builder(tmp_path, 0) as second:
            if fate == "killed":
                first.kill()
            assert second.stdout.read().split("\n")[:-1] == (
                ["loaded 40"] if fate == "lives" else ["built", "loaded 40"]
            )
    assert not list((tmp_path / "records").glob(".building*"))


def test_hostile_archives_are_refused(tmp_path, capsys):
    """A pickle that would run a command, in the archive of CIFAR-10, through train.py."""
    import io
    import pickle
    import tarfile

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "owned",)

    raw = tmp_path / "raw"
    raw.mkdir()
    content = pickle.dumps({b"data": Evil(), b"labels": []}, protocol=2)
    with tarfile.open(raw / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name in ("cifar-10-batches-py/data_batch_1", "../../../../tmp/outside"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    flags = ("-d", "cifar10", "-m", "wrn-10-1", "--raw_dir", raw, "--data_dir", tmp_path / "out")
    assert train(*flags, "--logdir", tmp_path / "runs") == 1
    assert "cifar-10-python.tar.gz" in sentence(capsys)
    assert not (tmp_path / "owned").exists()
    assert not list((tmp_path / "out").rglob("*cifar10/*"))


def test_no_traceback_and_no_run_where_workers_differ(tmp_path, capsys, monkeypatch):
    job = {"cluster": {"worker": ["localhost:1", "localhost:2"]}, "task": {"type": "ps"}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(job))
    assert train(*SMALL, "--logdir", tmp_path / "runs") == 1
    assert "TF_CONFIG" in sentence(capsys)
    assert not (tmp_path / "runs").exists()
