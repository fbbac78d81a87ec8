"""A run folder, read back and checked. No TensorFlow here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from esgd_tf.cli.settings import epoch_steps
from esgd_tf.data.catalog import AUGMENTATIONS, DATASETS, ENTRIES, PREPROCESSINGS
from esgd_tf.training.errors import RunFolderError
from esgd_tf.training.run_folder import RunFolder

__all__ = ["StoredRun"]


def _whole(at_least: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= at_least


# What commands read of config.json, and what it must be.
_EXPERIMENT: dict[str, Callable[[Any], bool]] = {
    "dataset": lambda v: v in DATASETS,
    "model": lambda v: isinstance(v, str),
    "optimizer": lambda v: isinstance(v, str),
    "preprocessing": lambda v: v in PREPROCESSINGS,
    "augmentation": lambda v: v in AUGMENTATIONS,
    "batch_size": _whole(1),
    "bn_reestimate": _whole(0),
    "langevin_steps": _whole(0),
}
_RUN: dict[str, Callable[[Any], bool]] = {
    "seed": _whole(0),
    "limit_steps": lambda v: v is None or _whole(1)(v),
}


@dataclasses.dataclass(frozen=True)
class StoredRun:
    """What train.py wrote about a run.

    Attributes:
        folder: Its paths.
        experiment: The numbers in force; those of `_EXPERIMENT` are checked.
        run: The seed and other settings of config.json; those of `_RUN` are checked.
    """

    folder: RunFolder
    experiment: Mapping[str, Any]
    run: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> StoredRun:
        """Read config.json of a run folder.

        Raises:
            RunFolderError: There is none, or it is damaged or of another version.
        """
        path = Path(path).expanduser()
        if not path.is_dir():
            what = "is a file, not a run folder" if path.exists() else "does not exist"
            raise RunFolderError(f"{path} {what}: name a folder that train.py wrote.")
        folder = RunFolder(path)
        if not folder.config.exists():
            inside = sorted(config.parent.name for config in path.glob("*/config.json"))
            hint = f" Did you mean one of those in it: {', '.join(inside)}?" if inside else ""
            raise RunFolderError(f"{path} is no run folder: it has no config.json.{hint}")
        config = folder.read_config()
        parts = []
        for name, checks in (("experiment", _EXPERIMENT), ("run", _RUN)):
            part = config.get(name) if isinstance(config, dict) else None
            if not isinstance(part, dict):
                raise RunFolderError(
                    f"{folder.config} is damaged or of another version: it has no {name!r}."
                )
            for key, good in checks.items():
                if key not in part or not good(part[key]):
                    what = f"is {part[key]!r}" if key in part else "is missing"
                    raise RunFolderError(
                        f"{folder.config} is damaged or of another version: {key!r} {what}."
                    )
            parts.append(part)
        return cls(folder, *parts)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.path.absolute().name

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches of an epoch; of replicas, those of each."""
        e = self.experiment
        one_pass = -(-ENTRIES[e["dataset"]].num_train // e["batch_size"])
        return epoch_steps(one_pass, e.get("replicas", 1), e.get("budget", "shared"))

    @property
    def sees_all_test_images(self) -> bool:
        """Whether its evaluations used the whole test set: --limit_steps may mean less."""
        limit = self.run["limit_steps"]
        test_images = ENTRIES[self.experiment["dataset"]].num_test
        return limit is None or limit * self.experiment["batch_size"] >= test_images

    def history(self) -> list[dict[str, float]]:
        """Return the lines of history.csv, empty if there is none yet.

        Raises:
            RunFolderError: It is damaged.
        """
        rows = self.folder.read_history()
        needed = {"epoch", "gradient_evaluations", "val_accuracy", "val_loss", "seconds"}
        for number, row in enumerate(rows, start=1):
            if lacking := sorted(needed - row.keys()):
                raise RunFolderError(
                    f"{self.folder.history} is damaged (line {number + 1} has no {lacking[0]})."
                )
        return rows

    def checkpoint(self, which: str) -> Path:
        """Return the path of a checkpoint.

        Args:
            which: "last", "best" or a path.

        Raises:
            RunFolderError: There is no such file.
        """
        names = {"last": self.folder.last, "best": self.folder.best}
        path = names.get(which, Path(which).expanduser())
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
        """Whether a checkpoint after so many minibatches was written inside an epoch.

        Its BatchNorm statistics were then gathered along the Langevin weights. One written at the
        end of an epoch, or where --limit_steps ended one early, has been evaluated: it has a line
        in history.csv, and its statistics were estimated anew before.
        """
        epoch = batches / self.steps_per_epoch
        evaluated = [row["epoch"] for row in self.folder.read_history() if "epoch" in row]
        return not any(abs(epoch - e) < 1e-6 for e in evaluated)
