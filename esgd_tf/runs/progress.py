"""The progress of a run, stored in its checkpoints. This module loads no TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from esgd_tf.runs.errors import CheckpointError, DamagedCheckpointError

__all__ = ["MEMBER", "Progress", "read_extra", "require_run", "run_of"]

#: The member of the `.keras` archive that Keras ignores.
MEMBER = "esgd_tf.json"


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        batches: Minibatches trained on since the start of the run.
        seconds: Time spent training so far.
        running: Means over the minibatches of the epoch under way, by name; empty between epochs.
        counted: Minibatches in those means, without the skipped ones.
        run: The id of the run, as in its config.json; None for a run of an earlier version.
    """

    batches: int = 0
    seconds: float = 0.0
    counted: int = 0
    running: dict[str, float] = dataclasses.field(default_factory=dict)
    run: str | None = None


def read_extra(path: Path) -> tuple[Progress, list[Any]]:
    """Check all parts of a checkpoint by their checksums and return what Keras does not save.

    Args:
        path: Path. The `.keras` file.

    Returns:
        The progress, and the states of the random generators.

    Raises:
        CheckpointError: It is not a file, or may not be read.
        DamagedCheckpointError: It is missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise DamagedCheckpointError(
                    f"Checkpoint {path} is damaged: the checksum of its part {damaged} is wrong."
                )
            extra = json.loads(archive.read(MEMBER))
            random_states = extra.pop("random_states")
            progress = Progress(**extra)
            if not isinstance(progress.batches, int) or progress.batches < 0:
                raise ValueError(f"batches is {progress.batches!r}")
            return progress, random_states
    except FileNotFoundError:
        raise DamagedCheckpointError(f"There is no checkpoint {path}.") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, not a checkpoint file.") from None
    except PermissionError:
        raise CheckpointError(f"Checkpoint {path} may not be read: see its permissions.") from None
    except (
        # A wrong byte may make `zipfile` raise any of these, depending on where it is.
        zipfile.BadZipFile, zlib.error, struct.error, KeyError, TypeError, ValueError, EOFError,
        RuntimeError, OverflowError, OSError, AttributeError, MemoryError,
    ) as error:  # fmt: skip
        raise DamagedCheckpointError(
            f"{path} is no whole checkpoint of train.py ({error})."
        ) from None


def run_of(path: Path) -> str | None:
    """Return the id of the run that wrote a checkpoint; None if none can be read.

    Args:
        path: Path. The `.keras` file.
    """
    # Loading the file later tells whether it is whole.
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(MEMBER)).get("run")
    return None


def require_run(progress: Progress, run: str | None, path: Path) -> None:
    """Check that a checkpoint is of a run; earlier versions stored no run, and are accepted.

    Args:
        progress: Progress. The progress from the checkpoint.
        run: str. The run's id; None for a run of an earlier version.
        path: Path. The checkpoint, for messages.

    Raises:
        CheckpointError: It is of another run.
    """
    if progress.run is not None and progress.run != run:
        raise CheckpointError(
            f"Checkpoint {path} is of another run: give one of this run, or name the folder of "
            "the run that it is from."
        )
