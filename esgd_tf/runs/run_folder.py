"""The folder of one training run: its files, and how none of them is ever incomplete.

    config.json             what was in force, and what came from which flag
    history.csv             one line per effective epoch
    initial.npz             the weights that training began with, as NumPy arrays
    checkpoints/last.keras      the state after the last epoch, or where the run was interrupted
    checkpoints/previous.keras  the one before, to go on from if the last one is damaged
    checkpoints/best.keras      the state after the epoch with the best validation accuracy
    checkpoints/kept/           checkpoints at regular epochs, if asked for: epoch-00010.keras
    tensorboard/                events: train, validation, hyperparameters
    curves.png                  error, loss and scope against gradient evaluations

Every file is written under a temporary name in the same folder and renamed when it is whole.
config.json and every checkpoint carry the id of the run, so that no other run goes on from them.
"""

from __future__ import annotations

import contextlib
import csv
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from esgd_tf._files import folder_when_whole, replaced_when_whole, sweep
from esgd_tf._files import let_be as _let_be
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.progress import run_of

__all__ = ["RunFolder", "RunFolderError", "folder_when_whole", "replaced_when_whole"]


# Columns that every history.csv has; further columns depend on the algorithm.
_COLUMNS = ("epoch", "gradient_evaluations", "val_accuracy", "val_loss", "seconds")

#: The type of `RunFolder.state`.
State = tuple[tuple[int, int, int] | None, ...]


class RunFolder:
    """Paths of one run, and the lock that keeps a second training out.

    As a context manager it makes the folder and holds the lock, which the end of the process
    releases too.

    Args:
        path: Path. The folder.
        checkpoint_dir: Path. The folder of the checkpoints. Defaults to None, which is
            `checkpoints` inside the folder.
        seen: tuple. The `state` when the command decided to train, perhaps long before the lock can
            be taken. Defaults to None, which accepts any.
    """

    def __init__(
        self, path: Path, checkpoint_dir: Path | None = None, *, seen: State | None = None
    ) -> None:
        self.path = path
        self.config = path / "config.json"
        self.history = path / "history.csv"
        self.initial = path / "initial.npz"
        self.curves = path / "curves.png"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = checkpoint_dir or path / "checkpoints"
        self.last = self.checkpoints / "last.keras"
        self.previous = self.checkpoints / "previous.keras"
        self.best = self.checkpoints / "best.keras"
        self.kept = self.checkpoints / "kept"
        #: The id of the run. Once locked, it is the id in config.json, or a new one.
        self.run_id: str | None = None
        self._seen = seen
        self._locks: list[FileLock] = []

    def __enter__(self) -> RunFolder:
        """Make the folders and take the lock.

        Raises:
            RunFolderError: Another training holds the lock or has written to the folder meanwhile,
                or the checkpoints belong to another run.
            OSError: The folders cannot be made.
        """
        for folder in (self.path, self.checkpoints):
            if folder.is_symlink() and not folder.exists():
                raise RunFolderError(f"{folder} is a link to nothing: remove it.")
            if folder.exists() and not folder.is_dir():
                raise RunFolderError(f"{folder} is a file, not a folder.")
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock(self.path, "give this run another name with -n")
            if self.checkpoints.parent.resolve() != self.path.resolve():
                self._lock(self.checkpoints, "name another --checkpoint_dir")
            if self._seen is not None and self.state() != self._seen:
                raise RunFolderError(
                    f"Another training has written to {self.path} since this one was started: go "
                    "on with it by -rl, or give this run another name with -n."
                )
            config = self.read_config() if self.config.exists() else {}
            stored = config.get("id") if isinstance(config, dict) else None
            self.run_id = stored or uuid.uuid4().hex
            self._require_own_checkpoints(is_new=not config)
            for folder in (self.path, self.checkpoints, self.kept):
                sweep(folder)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Release the lock."""
        while self._locks:
            self._locks.pop().release()

    def _lock(self, folder: Path, otherwise: str) -> None:
        path = folder / ".lock"
        if path.is_symlink():
            raise RunFolderError(f"{path} is a link, which no lock may be: remove it.")
        lock = FileLock(path, timeout=0, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            raise RunFolderError(
                f"Another training is writing to {folder}: wait for it, or {otherwise}."
            ) from None
        except OSError as error:
            # The error of a file system without locks has no file name.
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        self._locks.append(lock)

    def _require_own_checkpoints(self, *, is_new: bool) -> None:
        """Refuse a folder with checkpoints of another run, which would be overwritten."""
        for path in (self.last, self.best, self.previous):
            if path.exists() and (is_new or run_of(path) not in (None, self.run_id)):
                raise RunFolderError(
                    f"{path} is of another run than {self.path}: name another --checkpoint_dir, "
                    "or move it away."
                )

    def state(self) -> State:
        """Return a stamp of the files that changes when a training writes here."""
        return tuple(_stamp(path) for path in (self.config, self.history, self.last))

    def keep_previous(self) -> None:
        """Make previous.keras the same file as the current last.keras."""
        if self.last.exists():
            _let_be(self.previous, self.last)

    def kept_checkpoint(self, epoch: int) -> Path:
        """Return the path of an epoch's kept checkpoint, after making its folder."""
        self.kept.mkdir(exist_ok=True)
        return self.kept / f"epoch-{epoch:05d}.keras"

    def let_be(self, path: Path, other: Path) -> None:
        """Make one checkpoint a hard link to another, or a copy where there are no links."""
        _let_be(path, other)

    def read_config(self) -> dict[str, Any]:
        """Return the content of config.json.

        Raises:
            RunFolderError: The file is missing or no JSON.
        """
        try:
            return json.loads(self.config.read_text())
        except FileNotFoundError:
            raise RunFolderError(f"{self.path} is no run folder: it has no config.json.") from None
        except NotADirectoryError:
            raise RunFolderError(f"{self.path} is a file, not a run folder.") from None
        except RecursionError:
            raise RunFolderError(f"{self.config} is damaged (nested too deeply).") from None
        except (OSError, ValueError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunFolderError(f"{self.config} is damaged ({reason}).") from None

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json, with the id of the run."""
        identified = dict(config) if self.run_id is None else {"id": self.run_id, **config}
        with replaced_when_whole(self.config) as partial:
            partial.write_text(json.dumps(identified, indent=2) + "\n")

    def read_history(self) -> list[dict[str, float]]:
        """Return the lines of history.csv, empty if there is none yet.

        Raises:
            RunFolderError: The file is damaged.
        """
        try:
            # Python would accept bytes that are not text, and a last number without its end.
            text = self.history.read_bytes().decode()
            if not text.endswith("\n"):
                raise ValueError("its last line is cut: remove that line, or the file, to go on")
            reader = csv.DictReader(text.splitlines())
            lacking = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                raise ValueError(f"its header has no {lacking[0]}")
            return list(_checked(reader))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunFolderError(f"{self.history} is damaged ({reason}).") from None

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


def _checked(reader: csv.DictReader[str]) -> Iterator[dict[str, float]]:
    """Yield the lines of a history as numbers.

    Raises:
        ValueError: A line is cut, too long or out of order, or a cell is not a number.
    """
    epoch = 0.0
    for line in reader:
        where = f"line {reader.line_num}"
        if None in line or None in line.values():
            raise ValueError(f"{where} has not the columns of the header")
        row = {}
        for name, cell in line.items():
            try:
                row.update({name: float(cell)} if cell != "" else {})
            except ValueError:
                raise ValueError(f"{where} has {cell[:40]!r} for {name}") from None
        lacking = [name for name in _COLUMNS if name not in row]
        if lacking:
            raise ValueError(f"{where} has no {lacking[0]}")
        if not row["epoch"] > epoch:
            raise ValueError(f"{where} does not follow the line before it")
        epoch = row["epoch"]
        yield row


def _stamp(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        stat = path.stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size
    return None
