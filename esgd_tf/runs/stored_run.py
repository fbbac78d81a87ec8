"""A run folder, read back and checked. This module loads no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esgd_tf._files import expanded
from esgd_tf.data.catalog import ENTRIES
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.experiment import GRADIENTS_PER_STEP
from esgd_tf.runs.run_folder import RunFolder
from esgd_tf.runs.schema import check_config
from esgd_tf.runs.settings import epoch_steps

__all__ = ["StoredRun"]


# Entries of config.json that commands read.
_NEEDED = {
    "experiment": (
        "dataset", "model", "optimizer", "preprocessing", "augmentation", "batch_size",
        "bn_reestimate", "langevin_steps",
    ),
    "run": ("seed", "limit_steps"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StoredRun:
    """A run as train.py has recorded it.

    Attributes:
        folder: Its paths.
        experiment: The numbers in force; each is a value that its flag may have.
        run: The seed and other settings of config.json; their values are checked in the same way.
        run_id: The id that its checkpoints carry; None for a run of an earlier version.
    """

    folder: RunFolder
    experiment: Mapping[str, Any]
    run: Mapping[str, Any]
    run_id: str | None

    @classmethod
    def open(cls, path: str | Path) -> StoredRun:
        """Read config.json of a run folder.

        Raises:
            RunFolderError: There is none, or it is damaged or of another version.
        """
        path = Path(expanded(str(path)))
        if not path.is_dir():
            what = "is a file, not a run folder" if path.exists() else "does not exist"
            raise RunFolderError(f"{path} {what}: name a folder that train.py wrote.")
        folder = RunFolder(path)
        if not folder.config.exists():
            inside = sorted(config.parent.name for config in path.glob("*/config.json"))
            hint = f" Did you mean one of those in it: {', '.join(inside)}?" if inside else ""
            raise RunFolderError(f"{path} is no run folder: it has no config.json.{hint}")
        config = folder.read_config()
        return cls(folder, *check_config(config, folder.config, _NEEDED), config.get("id"))

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.path.absolute().name

    @property
    def split(self) -> str:
        """What it was evaluated on: "test" images, or "validation" images held out of training."""
        return "validation" if self.experiment.get("validation_images", 0) else "test"

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches of an epoch; with several replicas, for each of them."""
        e = self.experiment
        count = ENTRIES[e["dataset"]].num_train - e.get("validation_images", 0)
        one_pass = -(-count // e["batch_size"])
        gradients = GRADIENTS_PER_STEP.get(e["optimizer"], e.get("replicas", 1))
        return epoch_steps(one_pass, gradients, e.get("budget", "shared"))

    @property
    def sees_all_test_images(self) -> bool:
        """Return whether its evaluations used the whole test set: --limit_steps may mean less."""
        limit = self.run["limit_steps"]
        held_out = self.experiment.get("validation_images", 0)
        test_images = held_out or ENTRIES[self.experiment["dataset"]].num_test
        return limit is None or limit * self.experiment["batch_size"] >= test_images

    def history(self) -> list[dict[str, float]]:
        """Return the lines of history.csv, empty if there is none yet.

        Raises:
            RunFolderError: It is damaged.
        """
        return self.folder.read_history()

    def checkpoint(self, which: str) -> Path:
        """Return the path of a checkpoint.

        Args:
            which: str. "last", "best" or a path.

        Raises:
            RunFolderError: There is no such file.
        """
        names = {"last": self.folder.last, "best": self.folder.best}
        path = names.get(which) or Path(which)
        if path.is_file():
            return path
        if which in names:
            raise RunFolderError(
                f"There is no checkpoint {path}: the run has not come to the end of its first "
                "epoch, or was started with --checkpoint_dir; then name the file with --checkpoint."
            )
        what = "is a folder, not a checkpoint file" if path.is_dir() else "does not exist"
        raise RunFolderError(f"--checkpoint {path} {what}: give last, best or a .keras file.")

    def was_interrupted_at(self, batches: int) -> bool:
        """Return whether a checkpoint after so many minibatches was written inside an epoch.

        Its BatchNorm statistics were then gathered along the Langevin weights. A checkpoint from
        the end of an epoch, or from where --limit_steps ended one early, has been evaluated: it
        has a line in history.csv, and its statistics were estimated anew before.
        """
        epoch = batches / self.steps_per_epoch
        evaluated = [row["epoch"] for row in self.folder.read_history()]
        return not any(abs(epoch - e) < 1e-6 for e in evaluated)
