"""Which worker of a job this process is: TF_CONFIG, or SLURM's variables. No TensorFlow here.

TF_CONFIG is TensorFlow's own description of a job, JSON in the environment of each worker:

    {"cluster": {"worker": ["host-a:12345", "host-b:12345"]},
     "task": {"type": "worker", "index": 0}}

The first worker (the task "chief", if there is one) is the chief: it alone writes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

__all__ = ["ClusterError", "Task", "read_task"]

_TYPES = ("chief", "worker")


class ClusterError(Exception):
    """The description of the job is unusable; the message says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One worker of a job.

    Attributes:
        index: Its number, from 0.
        count: How many workers there are.
        source: "TF_CONFIG" or "SLURM".
    """

    index: int
    count: int
    source: str

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes checkpoints and logs."""
        return self.index == 0


def read_task(environ: Mapping[str, str]) -> Task | None:
    """Return the worker that the environment says this process is, or None if it is none.

    Args:
        environ: `os.environ`.

    Raises:
        ClusterError: TF_CONFIG, or SLURM's description, is malformed or names other tasks than
            workers.
    """
    if environ.get("TF_CONFIG"):
        return _from_tf_config(environ["TF_CONFIG"])
    if "SLURM_PROCID" in environ and "SLURM_STEP_NUM_TASKS" in environ:
        try:
            index, count = int(environ["SLURM_PROCID"]), int(environ["SLURM_STEP_NUM_TASKS"])
        except ValueError:
            raise ClusterError("SLURM_PROCID and SLURM_STEP_NUM_TASKS must be numbers") from None
        return Task(index, count, "SLURM")
    return None


def _from_tf_config(text: str) -> Task | None:
    example = '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text)
        cluster = config.get("cluster") or {}
        addresses = {kind: list(cluster[kind]) for kind in cluster}
        kind, index = config["task"]["type"], int(config["task"]["index"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ClusterError(f"TF_CONFIG is not of the form {example}") from None
    if not addresses:
        return None
    foreign = sorted({*addresses, kind} - set(_TYPES))
    if foreign:
        raise ClusterError(
            f"TF_CONFIG names the task type {foreign[0]!r}: a training has only workers "
            "(and, if wanted, one chief)"
        )
    if len(addresses.get("chief", [])) > 1:
        raise ClusterError("TF_CONFIG names more than one chief")
    if not 0 <= index < len(addresses.get(kind, [])):
        raise ClusterError(
            f"TF_CONFIG says that this is {kind} {index}, but its cluster has "
            f"{len(addresses.get(kind, []))} of that type"
        )
    chiefs = len(addresses.get("chief", []))
    number = index if kind == "chief" else index + chiefs
    return Task(number, chiefs + len(addresses.get("worker", [])), "TF_CONFIG")
