"""Running trainings as processes, stopping them where one wants, and comparing what they left."""

import csv
import json
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import archive_maker
import numpy as np
import pytest

import config
from esgd_tf.cli import train
from esgd_tf.data import catalog
from esgd_tf.runs import report
from esgd_tf.training import load_model

ROOT = Path(__file__).resolve().parents[2]
VICTIM = Path(__file__).with_name("victim.py")
TIMEOUT = 300.0


# 40 images in batches of 8 are 5 steps an epoch, saved within inner loops too.
FLAGS = (
    "-d", "mnist", "-m", "mnistfc", "-b", 8, "-L", 3, "--dropout", 0.3, "--bn_reestimate", 2,
    "--augmentation", "flip_crop", "--checkpoint_steps", 2,
)  # fmt: skip


class Job:
    """A training of some epochs, by its flags.

    Args:
        folder: For its data and its run folder.
        name: Of the run folder.
        epochs: To train.
        extra: More flags.
    """

    def __init__(self, folder, name, epochs, *extra):
        self.run_folder = folder / "runs" / name
        self.data_dir = folder / "records"
        self._place = ("--logdir", folder / "runs", "-n", name, "--data_dir", self.data_dir,
                       "--raw_dir", folder / "raw")  # fmt: skip
        self._new = (*FLAGS, "-e", epochs, *extra)
        if not (folder / "raw").exists():
            tiny = archive_maker.tiny_entries()["mnist"]
            archive_maker.write_idx(folder / "raw" / "mnist", archive_maker.images_of(tiny))

    @property
    def flags(self):
        """Those to start with, or to go on with once it has started."""
        started = (self.run_folder / "config.json").exists()
        return (*(("-rl",) if started else self._new), *self._place)


def command(*flags):
    return [sys.executable, str(VICTIM), *map(str, flags)]


def run_here(*flags):
    """Run a training to its end in this process, which spares the start of another; its status."""
    with pytest.MonkeyPatch.context() as patch:
        for name, entry in archive_maker.tiny_entries().items():
            patch.setitem(catalog.ENTRIES, name, entry)
        patch.setattr(report, "plot_history", lambda *_: None)
        return train.main(config.PRESETS, ["train.py", *map(str, flags)])


def stop_at(moment, count, delay, *flags, number=signal.SIGKILL):
    """Start a training; `delay` seconds after it announced `moment` `count` times, send a signal.

    Returns:
        Its exit status, or None if it ended before.
    """
    with subprocess.Popen(
        command(*flags), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        # Else a full pipe would stop it.
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        seen = 0
        for line in process.stdout:
            seen += line.strip() == f"@{moment}"
            if seen == count:
                break
        else:
            process.wait()
            watchdog.cancel()
            assert process.returncode == 0, f"it failed before its {count}th {moment}"
            return None
        time.sleep(delay)
        process.send_signal(number)
        process.stdout.read()
        process.wait()
        watchdog.cancel()
        return process.returncode


def one_sentence(result):
    """What a training that failed with status 1 said: one line, and no traceback."""
    assert result.returncode == 1, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr, result.stderr
    (line,) = (x for x in result.stderr.splitlines() if x.startswith("train.py: "))
    assert result.stderr.splitlines()[-1] == line, result.stderr
    return line


def history(run_folder):
    """The lines of history.csv but for the seconds."""
    with (run_folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in row if name != "seconds"} for row in rows]


def state(path):
    """Every number of a checkpoint but the time it took and whose it is."""
    model = load_model(path)
    with zipfile.ZipFile(path) as archive:
        extra = json.loads(archive.read("esgd_tf.json"))
    del extra["seconds"], extra["run"]
    return [v.numpy() for v in model.weights + model.optimizer.variables], extra


def assert_equal_runs(ours, theirs):
    """Both runs ended with the same bits, and left nothing else."""
    for name in ("last.keras", "best.keras"):
        mine, extra = state(ours / "checkpoints" / name)
        other, expected = state(theirs / "checkpoints" / name)
        assert extra == expected
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(history(ours)) == len(history(theirs))
    for row, expected in zip(history(ours), history(theirs), strict=True):
        for name in expected:
            # The mean over an epoch, made of its parts, may round otherwise.
            np.testing.assert_allclose(float(row[name]), float(expected[name]), rtol=1e-6)
    leftovers = [file for file in ours.rglob("*") if file.name.startswith(".partial")]
    assert not leftovers


def assert_nothing_torn(run_folder):
    """Whatever has a final name is whole."""
    for file in run_folder.rglob("*.keras"):
        if not file.name.startswith(".partial"):
            with zipfile.ZipFile(file) as archive:
                assert archive.testzip() is None, file
                assert "esgd_tf.json" in archive.namelist()
    for file in run_folder.glob("config.json"):
        json.loads(file.read_text())
    for file in run_folder.glob("history.csv"):
        rows = history(run_folder)
        assert all(None not in row.values() and None not in row for row in rows), file
