"""Find out from TF_CONFIG or SLURM which worker this process is, without TensorFlow.

TF_CONFIG is TensorFlow's own description of a job, JSON in the environment of each worker:

    {"cluster": {"worker": ["host-a:12345", "host-b:12345"]},
     "task": {"type": "worker", "index": 0}}

The first worker (the task "chief", if there is one) is the chief: it alone writes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from esgd_tf.training.errors import ClusterError

__all__ = ["ClusterError", "Task", "read_task"]

_TYPES = ("chief", "worker")


@dataclasses.dataclass(frozen=True)
class Task:
    """One worker of a job.

    Attributes:
        index: Its number, from 0.
        count: The number of workers.
        source: "TF_CONFIG" or "SLURM".
    """

    index: int
    count: int
    source: str

    @property
    def is_chief(self) -> bool:
        """Return whether this worker writes checkpoints and logs."""
        return self.index == 0


def read_task(environ: Mapping[str, str]) -> Task | None:
    """Return the worker that the environment says this process is, or None if it is none.

    Args:
        environ: mapping of str by str. The environment, such as `os.environ`.

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
        if not 0 <= index < count:
            raise ClusterError(f"SLURM_PROCID is {index}, of SLURM_STEP_NUM_TASKS {count}")
        return Task(index, count, "SLURM")
    return None


def _from_tf_config(text: str) -> Task | None:
    example = '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text)
        cluster = config.get("cluster") or {}
        kind, index = config["task"]["type"], config["task"]["index"]
        # Some schedulers write the index as text.
        index = int(index) if isinstance(index, str) else index
        # A text instead of a list would be taken for a list of its letters.
        is_one = isinstance(cluster, dict) and isinstance(index, int) and isinstance(kind, str)
        if not is_one or not all(isinstance(addresses, list) for addresses in cluster.values()):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ClusterError(f"TF_CONFIG is not of the form {example}") from None
    if not cluster:
        return None
    foreign = sorted({*cluster, kind} - set(_TYPES))
    if foreign:
        raise ClusterError(
            f"TF_CONFIG names the task type {foreign[0]!r}: a training has only workers "
            "(and, if wanted, one chief)"
        )
    addresses = [address for each in cluster.values() for address in each]
    for address in addresses:
        if not _is_address(address):
            raise ClusterError(f"TF_CONFIG has the address {address!r}, which is not HOST:PORT")
        if addresses.count(address) > 1:
            raise ClusterError(f"TF_CONFIG names the address {address} twice")
    if len(cluster.get("chief", [])) > 1:
        raise ClusterError("TF_CONFIG names more than one chief")
    if not 0 <= index < len(cluster.get(kind, [])):
        raise ClusterError(
            f"TF_CONFIG says that this is {kind} {index}, but its cluster has "
            f"{len(cluster.get(kind, []))} of that type"
        )
    chiefs = len(cluster.get("chief", []))
    number = index if kind == "chief" else index + chiefs
    return Task(number, len(addresses), "TF_CONFIG")


def _is_address(address: Any) -> bool:
    if not isinstance(address, str):
        return False
    host, _, port = address.rpartition(":")
    return bool(host) and port.isdecimal() and int(port) < 2**16
