"""Writing files and folders that are there whole or not at all, wherever a path leads.

Everything is written under a temporary name in the same folder and renamed when it is whole. What
a killed process left of that is swept by the next one that writes the same file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["expanded", "folder_when_whole", "let_be", "replaced_when_whole", "sweep"]

_LEFTOVER = re.compile(r"\.(?:partial|old)-(\d+)-(.*)", re.DOTALL)


@contextlib.contextmanager
def replaced_when_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    The data reaches the disk before the name does, so that a crash leaves the old file or the new
    one, never half of one. The temporary file has the same suffix and does not survive a failure.
    A link stays a link: what it leads to is replaced. A file that is replaced hands down its mode
    and, as far as that is allowed, its owner. What is no file but a device or a pipe, such as
    /dev/null or /dev/stdout, is written to.

    Args:
        path: Path. The file to write or to replace.

    Yields:
        The temporary path.

    Raises:
        OSError: The file cannot be written; `filename` is `path`, which is as it was.
    """
    if _is_stream(path):
        with _written_to(path) as partial:
            yield partial
        return
    with _naming(path):
        target = Path(os.path.realpath(path))
    partial = _partial(target, ".partial")
    _sweep_of_dead(target)
    try:
        with _naming(path):
            yield partial
            _take_after(partial, target)
            descriptor = os.open(partial, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            partial.replace(target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_when_whole(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary folder beside `path`; rename it if the block succeeds.

    A folder that is there already is moved aside first and removed last: a crash in between leaves
    it whole under a name that starts with `.old-`. A link to a folder stays a link.

    Args:
        path: Path. The folder to write or to replace.

    Yields:
        The temporary path; the block makes the folder.
    """
    target = Path(os.path.realpath(path))
    partial, old = _partial(target, ".partial"), _partial(target, ".old")
    _sweep_of_dead(target)
    try:
        yield partial
        if target.exists():
            _take_after(partial, target)
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def let_be(path: Path, other: Path) -> None:
    """Let one name be the file that another is, at no moment without it.

    For files that are never changed in place, so that one of them may have several names.

    Args:
        path: Path. The name.
        other: Path. The file.
    """
    partial = _partial(path, ".partial")
    try:
        with _naming(path):
            partial.unlink(missing_ok=True)
            try:
                partial.hardlink_to(other)
            except OSError:  # a file system without links
                shutil.copyfile(other, partial)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder in which no other may write now.

    Args:
        folder: Path. The folder; it need not exist.
    """
    for leftover in folder.glob(".partial-*"):
        _remove(leftover)


def _partial(target: Path, kind: str) -> Path:
    return target.with_name(f"{kind}-{os.getpid()}-{target.name}")


def _is_stream(path: Path) -> bool:
    """Whether to write to it, and not to replace it."""
    with contextlib.suppress(OSError):
        # Through these, a file has been opened by whoever started the process.
        if os.path.abspath(path).startswith(("/dev/", "/proc/")):  # noqa: PTH100 - not resolved
            return path.exists() and not path.is_dir()
        mode = path.stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


@contextlib.contextmanager
def _written_to(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        # What writes zip archives and pictures moves about in the file: a pipe has no places.
        whole = Path(folder) / path.name
        yield whole
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        with _naming(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
            with os.fdopen(descriptor, "wb") as stream, whole.open("rb") as file:
                shutil.copyfileobj(file, stream)


def _take_after(partial: Path, target: Path) -> None:
    """Give a new file the mode and the owner of the one that it replaces."""
    try:
        old = target.stat()
    except FileNotFoundError:
        return
    new = partial.stat()
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with contextlib.suppress(PermissionError):
            os.chown(partial, old.st_uid, old.st_gid)
    if stat.S_IMODE(new.st_mode) != stat.S_IMODE(old.st_mode):
        partial.chmod(stat.S_IMODE(old.st_mode))


def _sweep_of_dead(target: Path) -> None:
    """Remove what processes that are no more left while they wrote this target."""
    with contextlib.suppress(OSError):
        for leftover in target.parent.glob(".*"):
            match = _LEFTOVER.fullmatch(leftover.name)
            if match is None or match[2] != target.name or _is_alive(int(match[1])):
                continue
            # The old folder, where nothing has taken its place yet, is all that there is.
            if not leftover.name.startswith(".old-") or target.exists():
                _remove(leftover)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _remove(leftover: Path) -> None:
    if leftover.is_dir() and not leftover.is_symlink():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an OSError name the file that was asked for, and not the temporary one."""
    try:
        yield
    except OSError as error:
        # h5py and zipfile do not say which file it was.
        reason = error.strerror or str(error).strip().splitlines()[0]
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


def expanded(path: str) -> str:
    """Return a path with the home of the user for `~`.

    Args:
        path: str. The path, as a user typed it.
    """
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:  # ~someone, who is unknown here
        return path
