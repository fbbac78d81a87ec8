"""Paths of a training: its run folder, old or new, and the checkpoint to resume from."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from esgd_tf.cli.startup import say
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.run_folder import RunFolder
from esgd_tf.runs.schema import is_of_walkers
from esgd_tf.runs.settings import Settings

__all__ = [
    "free_names",
    "last_checkpoint",
    "last_run",
    "new_folder",
    "of_restore_path",
    "require_writable",
    "reserved",
]


def of_restore_path(given: Path, logdir: Path, name: str | None) -> tuple[Path, Path | None]:
    """Return the run folder that --restore_path means, and the checkpoint, if it names one."""
    if given.is_dir():
        return (logdir / name if name else given), None
    if not given.is_file():
        what = " (a link to nothing)" if given.is_symlink() else ""
        raise RunFolderError(f"There is no checkpoint {given}{what}.")
    if name:
        return logdir / name, given
    # A kept checkpoint lies one folder deeper than the last one.
    for folder in given.absolute().parents[:3]:
        if (folder / "config.json").exists():
            return folder, given
    raise RunFolderError(
        f"{given} lies in no run folder (there is no config.json above it): name its run by -n."
    )


def new_folder(logdir: Path, name: str | None, settings: Settings) -> Path:
    """Return the folder of a new run.

    Raises:
        RunFolderError: There is already a run of this name.
    """
    if name is None:
        return next(path for path in free_names(logdir, settings))
    path = logdir / name
    if (path / "config.json").exists():
        raise RunFolderError(
            f"{path} holds a run already: go on with it by -rl, or choose another -n."
        )
    return path


def free_names(logdir: Path, settings: Settings) -> Iterator[Path]:
    """Yield paths for a run without a name: by preset and optimizer, and numbered."""
    stem = f"{settings.preset}-{settings.experiment.optimizer}"
    for number in itertools.count(1):
        path = logdir / (stem if number == 1 else f"{stem}-{number}")
        if not os.path.lexists(path):  # a link to a missing file also takes a name
            yield path


@contextlib.contextmanager
def reserved(path: Path) -> Iterator[Path]:
    """Make the folder of a run without a name, or one beside it if another start was faster.

    A run that fails before it has written anything removes its folder again.
    """
    stem, number = path.name, 1
    there = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            path.mkdir()
            break
        except FileExistsError:
            number += 1
            path = path.with_name(f"{stem}-{number}")
    try:
        yield path
    finally:
        if not (path / "config.json").exists():
            with contextlib.suppress(OSError):
                (path / ".lock").unlink(missing_ok=True)
                for folder in (path / "checkpoints", path, *there[1:]):
                    if folder.exists():
                        folder.rmdir()  # fails if it is not empty


def last_checkpoint(folder: RunFolder) -> Path:
    """Return last.keras, or previous.keras if only that is left."""
    return folder.last if folder.last.exists() or not folder.previous.exists() else folder.previous


def require_writable(path: Path) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        RunFolderError: It cannot be made or written to.
    """
    folders = [path, *path.absolute().parents]
    there = next(folder for folder in folders if os.path.lexists(folder))
    if not there.is_dir():
        what = "a file" if there.exists() else "a link to nothing"
        raise RunFolderError(f"{there} is {what}, not a folder: name another by --logdir or -n.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunFolderError(
            f"Cannot write to {there} (permissions, or a file system that is read-only): "
            "name another folder by --logdir."
        )


def last_run(logdir: Path) -> Path:
    """Return the training that was last written to; runs of `walkers` are ignored."""
    runs: list[Path] = []
    passed_over: list[Path] = []
    for config in logdir.glob("*/config.json"):
        is_training = True
        with contextlib.suppress(RunFolderError):  # a damaged file is reported when it is used
            is_training = not is_of_walkers(RunFolder(config.parent).read_config())
        (runs if is_training else passed_over).append(config.parent)
    if not runs:
        but = f" (but {passed_over[0]}, which is one of walkers)" if passed_over else ""
        raise RunFolderError(f"There is no run in {logdir} to go on with{but}.")

    def newest(run: Path) -> float:
        return max(file.lstat().st_mtime for file in run.iterdir())

    last = max(runs, key=newest)
    newer = [run for run in passed_over if newest(run) > newest(last)]
    if newer:
        say(f"train.py: {newer[0]} is newer, but a run of walkers: going on with {last}.")
    return last
