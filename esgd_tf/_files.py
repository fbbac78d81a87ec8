"""Write files and folders so that they exist whole or not at all.

Everything is written under a temporary name in the same folder and renamed when it is complete.
Temporary files of a killed process are removed by the next one that writes the same file.
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
    one, never half of one. The temporary file has the same suffix and is removed after a failure.
    A link stays a link, and its target is replaced. The new file takes over the mode of the
    replaced one and, as far as that is allowed, its owner. Devices and pipes, such as /dev/null and
    /dev/stdout, are written to and not replaced.

    Args:
        path: Path. The file to write or to replace.

    Yields:
        The temporary path.

    Raises:
        OSError: The file cannot be written. `filename` is `path`, and that file is unchanged.
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

    An existing folder is moved aside first and removed last, so that a crash in between leaves it
    whole under a name that starts with `.old-`. A link to a folder stays a link.

    Args:
        path: Path. The folder to write or to replace.

    Yields:
        The temporary path, at which the block makes the folder.
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
    """Make one path the same file as another, by a hard link that replaces it in one step.

    This is for files that are never changed in place. Where there are no hard links, it is a copy.

    Args:
        path: Path. The name that the file gets.
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
    """Remove the temporary files of killed processes from a folder to which no other writes now.

    Args:
        folder: Path. The folder; it need not exist.
    """
    for leftover in folder.glob(".partial-*"):
        _remove(leftover)


def _partial(target: Path, kind: str) -> Path:
    return target.with_name(f"{kind}-{os.getpid()}-{target.name}")


def _is_stream(path: Path) -> bool:
    """Return whether a path is a device or a pipe, which is written to and not replaced."""
    with contextlib.suppress(OSError):
        # A path there may lead to a file, but to one that the parent process has opened.
        if os.path.abspath(path).startswith(("/dev/", "/proc/")):  # noqa: PTH100 - not resolved
            return path.exists() and not path.is_dir()
        mode = path.stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


@contextlib.contextmanager
def _written_to(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        # Writers of zip archives and images seek in the file, which a pipe does not allow.
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
    """Remove the temporary files that dead processes left when they wrote this target."""
    with contextlib.suppress(OSError):
        for leftover in target.parent.glob(".*"):
            match = _LEFTOVER.fullmatch(leftover.name)
            if match is None or match[2] != target.name or _is_alive(int(match[1])):
                continue
            # An old folder that nothing has replaced yet is the only copy.
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
    """Make an OSError name the file that was asked for, and not the temporary one."""
    try:
        yield
    except OSError as error:
        # h5py and zipfile raise errors without a file name.
        reason = error.strerror or str(error).strip().splitlines()[0]
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


def expanded(path: str) -> str:
    """Return a path with `~` replaced by the home folder of the user.

    Args:
        path: str. The path, as the user typed it.
    """
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:  # `~name` with an unknown user name
        return path
