"""Build a folder of records so that an interrupted build never looks finished.

Records are written into a temporary folder beside their place and renamed when they are complete.
Builders of the same set take turns on a file lock, which the system releases when the process that
holds it ends in any way. Whoever holds the lock may therefore remove what dead builders left.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from esgd_tf.data.errors import DataError

_LOG = logging.getLogger(__name__)
# The errors of file systems that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# TFDS writes this file last.
_LAST_FILE = "dataset_info.json"


def is_whole(folder: Path) -> bool:
    """Return whether a folder holds a finished TFDS data set."""
    return (folder / _LAST_FILE).is_file()


@contextlib.contextmanager
def exclusive(data_dir: Path, name: str) -> Iterator[None]:
    """Hold the lock for building one set under `data_dir`, and remove dead builds of it.

    Where the file system has no locks, the block runs without one: temporary names are unique, and
    the first builder to finish wins.

    Args:
        data_dir: Path. The TFDS folder, which is made if it does not exist.
        name: str. The name of the data set.

    Raises:
        DataError: The folder cannot be written to, or its lock file is a link.
    """
    path = data_dir / f".{name}.lock"
    if path.is_symlink():
        raise DataError(f"{path} is a link, which no lock may be: remove it.")
    lock = FileLock(path, fallback_to_soft=False)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise DataError(
                f"Cannot write under {data_dir} ({error.strerror or error}); name another folder "
                "with --data_dir."
            ) from error
        _LOG.debug("no file locks under %s", data_dir)
    try:
        if lock.is_locked:
            for stale in data_dir.glob(f"{_prefix(name)}*"):
                shutil.rmtree(stale, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def temporary_folder(data_dir: Path, name: str) -> Iterator[Path]:
    """Make a folder beside the records, and remove it when the block ends, even by an error.

    Args:
        data_dir: Path. The TFDS folder, which is made if it does not exist.
        name: str. The name of the data set to be built there.

    Raises:
        DataError: The disk is full or cannot be written to.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=_prefix(name), dir=data_dir))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"Cannot write {name} under {data_dir}: {error.strerror or error}; make room there "
            "or name another folder with --data_dir."
        ) from error


def publish(staged: Path, final: Path) -> None:
    """Rename a finished folder into place; if another builder was faster, keep its work.

    Args:
        staged: Path. The finished folder.
        final: Path. Its place.

    Raises:
        DataError: Something else is in its place.
        OSError: The rename failed for another reason.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp makes a folder that only the owner can read, but everybody may read records.
    umask = os.umask(0)
    os.umask(umask)
    staged.chmod(0o777 & ~umask)
    try:
        staged.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not is_whole(final):
            raise DataError(
                f"{final} holds files but no whole data set; remove it and start again."
            ) from error


def _prefix(name: str) -> str:
    # The full stop after the name keeps fashion_mnist's builds apart from fashion_mnist_small's.
    return f".building-{name}."
