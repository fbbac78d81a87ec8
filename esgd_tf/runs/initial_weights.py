"""The weights that a run began with: the prior of its PAC-Bayes bound. No TensorFlow here.

They lie in the run folder as `initial.npz`, arrays in the order of `model.get_weights()`, of
replicas those of their center, with the id of the run.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esgd_tf._files import replaced_when_whole
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.run_folder import RunFolder
from esgd_tf.runs.stored_run import StoredRun

__all__ = ["read_initial_weights", "write_initial_weights"]

_RUN = "run"


def write_initial_weights(folder: RunFolder, weights: Sequence[NDArray[Any]]) -> None:
    """Write the weights of a network before its first step.

    Args:
        folder: RunFolder. The folder of the run, which has its lock.
        weights: sequence of arrays. All weights of the network.
    """
    arrays: dict[str, Any] = {f"weight_{n:04d}": weight for n, weight in enumerate(weights)}
    arrays[_RUN] = np.array(folder.run_id or "")
    with replaced_when_whole(folder.initial) as partial:
        np.savez(partial, **arrays)


def read_initial_weights(
    run: StoredRun, shapes: Sequence[tuple[int, ...]]
) -> list[NDArray[np.float32]]:
    """Return the weights that a run began with.

    Args:
        run: StoredRun. The run.
        shapes: sequence of tuples of ints. The shapes of its network's weights.

    Raises:
        RunFolderError: There are none, or they are damaged or of another run or network.
    """
    path = run.folder.initial
    if not path.exists():
        raise RunFolderError(
            f"{run.name} has no initial weights ({path.name}): it was begun by a version that did "
            "not keep them. Train it again to bound its error."
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            owner = str(stored[_RUN])
            weights = [stored[name] for name in sorted(set(stored.files) - {_RUN})]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RunFolderError(f"{path} is damaged ({reason[0]}).") from None
    if run.run_id is not None and owner != run.run_id:
        raise RunFolderError(f"{path} is of another run than {run.folder.path}.")
    if [w.shape for w in weights] != [tuple(shape) for shape in shapes]:
        raise RunFolderError(f"{path} is of another network than the checkpoint of {run.name}.")
    return weights
