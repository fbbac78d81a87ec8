"""The folder of one training run: what lies in it, and how it is written without ever being torn.

    config.json             what was in force, and what came from which flag
    history.csv             one line an effective epoch
    checkpoints/last.keras      the state after the last epoch, or where the run was interrupted
    checkpoints/previous.keras  the one before, to go on from if the last one is damaged
    checkpoints/best.keras      the state after the epoch with the best validation accuracy
    checkpoints/kept/           those of every so many epochs, if asked for: epoch-00010.keras
    tensorboard/                events: train, validation, hyperparameters
    curves.png                  error, loss and scope against gradient evaluations

Every file is written under a temporary name in the same folder and renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from esgd_tf.training.errors import RunFolderError

__all__ = ["RunFolder", "RunFolderError", "folder_when_whole", "replaced_when_whole"]


class RunFolder:
    """Paths of one run, and the lock that keeps a second training out.

    As a context manager it makes the folder and holds the lock, which the end of the process
    releases too.

    Args:
        path: The folder.
        checkpoint_dir: Where the checkpoints lie; None for `checkpoints` inside the folder.
    """

    def __init__(self, path: Path, checkpoint_dir: Path | None = None) -> None:
        self.path = path
        self.config = path / "config.json"
        self.history = path / "history.csv"
        self.curves = path / "curves.png"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = checkpoint_dir or path / "checkpoints"
        self.last = self.checkpoints / "last.keras"
        self.previous = self.checkpoints / "previous.keras"
        self.best = self.checkpoints / "best.keras"
        self.kept = self.checkpoints / "kept"
        self._lock: IO[str] | None = None

    def __enter__(self) -> RunFolder:
        """Make the folders and take the lock.

        Raises:
            RunFolderError: Another training holds the lock.
            OSError: The folders cannot be made.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RunFolderError(
                f"Another training is writing to {self.path}: wait for it, or give this run "
                "another name with -n."
            ) from None
        self._lock = lock
        for folder in (self.path, self.checkpoints):
            for leftover in folder.glob(".partial-*"):  # of a run that was killed while writing
                leftover.unlink()
        return self

    def __exit__(self, *exception: object) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def keep_previous(self) -> None:
        """Let previous.keras be what last.keras is now."""
        if self.last.exists():
            _let_be(self.previous, self.last)

    def kept_checkpoint(self, epoch: int) -> Path:
        """Return where the checkpoint of an epoch is kept for good; its folder is there."""
        self.kept.mkdir(exist_ok=True)
        return self.kept / f"epoch-{epoch:05d}.keras"

    def let_be(self, path: Path, other: Path) -> None:
        """Let one checkpoint be what another is, which takes neither time nor space."""
        _let_be(path, other)

    def read_config(self) -> dict[str, Any]:
        """Return what `write_config` wrote.

        Raises:
            RunFolderError: The file is missing or no JSON.
        """
        try:
            return json.loads(self.config.read_text())
        except FileNotFoundError:
            raise RunFolderError(f"{self.path} is no run folder: it has no config.json.") from None
        except (ValueError, UnicodeDecodeError) as error:
            raise RunFolderError(f"{self.config} is damaged ({error}).") from None

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json."""
        with replaced_when_whole(self.config) as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n")

    def read_history(self) -> list[dict[str, float]]:
        """Return the lines of history.csv, empty if there is none yet.

        Raises:
            RunFolderError: The file is damaged.
        """
        try:
            with self.history.open(newline="") as file:
                return [
                    {key: float(value) for key, value in row.items() if value != ""}
                    for row in csv.DictReader(file)
                ]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, AttributeError, csv.Error) as error:
            raise RunFolderError(f"{self.history} is damaged ({error}).") from None

    def write_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write history.csv anew from all its rows."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with (
            replaced_when_whole(self.history) as partial,
            partial.open("w", newline="") as file,
        ):
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)


@contextlib.contextmanager
def replaced_when_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    The data reaches the disk before the name does, so that a crash leaves the old file or the new
    one, never half of one. The temporary file has the same suffix and does not survive a failure.

    Args:
        path: The file to write or to replace.

    Yields:
        The temporary path.

    Raises:
        OSError: The file cannot be written; `filename` is `path`, which is as it was.
    """
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        try:
            yield partial
        except OSError as error:
            # h5py and zipfile do not say which file it was.
            reason = error.strerror or str(error).strip().splitlines()[0]
            raise OSError(error.errno or errno.EIO, reason, str(path)) from error
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_when_whole(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary folder beside `path`; rename it if the block succeeds.

    A folder that is there already is moved aside first and removed last: a crash in between leaves
    it whole under a name that starts with `.old-`.

    Args:
        path: The folder to write or to replace.

    Yields:
        The temporary path; the block makes the folder.
    """
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    old = path.with_name(f".old-{os.getpid()}-{path.name}")
    try:
        yield partial
        if path.exists():
            path.rename(old)
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _let_be(path: Path, other: Path) -> None:
    """Let one name be the file that another is, at no moment without it.

    Checkpoints are never changed in place, so one file may have several names.
    """
    with replaced_when_whole(path) as partial:
        partial.unlink(missing_ok=True)
        try:
            partial.hardlink_to(other)
        except OSError:  # a file system without links
            shutil.copyfile(other, partial)
