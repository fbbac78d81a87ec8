"""On what a training runs: one device, several of one machine, several machines, TPUs.

The engine is TensorFlow's own, `tf.distribute`. The minibatch is split over the replicas and their
gradients are summed, so one outer update is the same one on any number of devices, up to rounding:
the Langevin noise is a function of (seed, weight, gradient evaluation), equal on every replica.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from esgd_tf.training.cluster import ClusterError, Task, read_task
from esgd_tf.training.errors import StrategyError
from esgd_tf.training.multi_worker import is_multi_worker

__all__ = ["STRATEGIES", "Processes", "StrategyError", "make_strategy", "split_device"]

STRATEGIES = ("auto", "none", "mirrored", "multi_worker", "tpu")
# The share of a GPU's memory for its logical devices; CUDA itself needs the rest.
_USABLE = 0.9


def split_device(count: int) -> None:
    """Split the first GPU, or the CPU where there is none, into logical devices.

    So everything that needs several devices can be tried on one. Call it before TensorFlow has
    looked at its devices.

    Args:
        count: int >= 1. The number of logical devices to make.

    Raises:
        StrategyError: TensorFlow has initialised its devices already.
    """
    gpus = tf.config.list_physical_devices("GPU")
    device = gpus[0] if gpus else tf.config.list_physical_devices("CPU")[0]
    # A GPU has to be told how much memory each part gets.
    memory = _gpu_memory() * _USABLE / count if gpus and count > 1 else None
    parts = [tf.config.LogicalDeviceConfiguration(memory_limit=memory) for _ in range(count)]
    try:
        tf.config.set_logical_device_configuration(device, parts)
    except RuntimeError:
        raise StrategyError(
            "TensorFlow has initialised its devices already: split them at the program's start."
        ) from None


def make_strategy(
    kind: str = "auto", devices: Sequence[str] | None = None, *, tpu: str | None = None
) -> tf.distribute.Strategy:
    """Return a strategy by name. A `multi_worker` one must be made before any tensor is.

    Args:
        kind: "auto", "none", "mirrored", "multi_worker" or "tpu". "auto" is multi_worker where
            TF_CONFIG or SLURM name two workers or more, mirrored for two GPUs (or devices named) or
            more, else none. "none" is TensorFlow's default device, "mirrored" all GPUs of this
            machine, or all logical CPUs, "multi_worker" the workers of TF_CONFIG or SLURM, and
            "tpu" TPUStrategy. Defaults to "auto".
        devices: sequence of str. Names such as "GPU:0", for "mirrored" and "none". Defaults to
            None, which takes all there are.
        tpu: str. The name or address of the TPU. Defaults to None, which takes the local one.

    Raises:
        StrategyError: The devices or workers are not there.
    """
    if kind not in STRATEGIES:
        raise StrategyError(f"There is no strategy {kind!r}: choose one of {STRATEGIES}.")
    if kind == "auto":
        task = _task()
        if task is not None and task.count > 1:
            kind = "multi_worker"
        else:
            usable = devices or tf.config.list_logical_devices("GPU")
            kind = "mirrored" if len(usable) > 1 else "none"
    if kind == "multi_worker":
        return _multi_worker()
    if kind == "tpu":
        return _tpu(tpu)
    names = _device_names(devices)
    if kind == "mirrored":
        return tf.distribute.MirroredStrategy(names)
    if devices is None:
        return tf.distribute.get_strategy()
    if len(names) > 1:
        raise StrategyError(f"Strategy none uses one device, not {', '.join(names)}.")
    return tf.distribute.OneDeviceStrategy(names[0])


class Processes:
    """The processes that train one model together; mostly there is only one.

    Args:
        strategy: tf.distribute.Strategy. The strategy that the processes train under.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self._several = is_multi_worker(strategy)
        task = _task() if self._several else None
        self.index = 0 if task is None else task.index
        self.count = 1 if task is None else task.count

    @property
    def is_chief(self) -> bool:
        """Return whether this process writes checkpoints and logs."""
        return self.index == 0

    def gather(self, value: int) -> list[int]:
        """Return everybody's value, once per replica. All must call this at the same point.

        Args:
            value: int of 64 bits. A number of this process.
        """
        if not self._several:
            return [value]
        with self._strategy.scope():
            return self._gather(tf.constant([value], tf.int64)).numpy().tolist()

    def agree(self, value: int) -> bool:
        """Return whether all processes have the same value; all must call this together."""
        return len(set(self.gather(value))) == 1

    @functools.cached_property
    def _gather(self) -> Any:
        # Traced once, for there may be a call after every step.
        @tf.function
        def gather(value: tf.Tensor) -> tf.Tensor:
            values = self._strategy.run(tf.identity, args=(value,))
            return self._strategy.gather(values, axis=0)

        return gather


def _task() -> Task | None:
    try:
        return read_task(os.environ)
    except ClusterError as error:
        raise StrategyError(f"{error}.") from None


def _multi_worker() -> tf.distribute.Strategy:
    task = _task()
    if task is None:
        raise StrategyError(
            "Strategy multi_worker needs TF_CONFIG, or SLURM: start every worker with it, or all "
            "workers on this machine by `python3 -m esgd_tf launch --workers N -- train.py ...`."
        )
    try:
        resolver = _slurm(task) if task.source == "SLURM" else None
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except (RuntimeError, ValueError, OSError) as error:
        raise StrategyError(
            f"The workers of {task.source} cannot be joined: {str(error).strip().splitlines()[0]}"
        ) from None
    except tf.errors.OpError as error:
        raise StrategyError(
            f"Worker {task.index} of {task.count} could not reach the others "
            f"({str(error.message).strip().splitlines()[0]}): are all of them started, at the "
            f"addresses that {task.source} names?"
        ) from None


def _slurm(task: Task) -> tf.distribute.cluster_resolver.ClusterResolver:
    """Return TensorFlow's own reading of SLURM's variables."""
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver
    if tf.config.list_physical_devices("GPU"):
        return resolver()  # spreads the GPUs over the tasks of a node
    # It counts tasks by their GPUs. Where there are none, any number that is enough will do.
    return resolver(gpus_per_node=task.count, gpus_per_task=1, auto_set_gpu=False)


def _tpu(name: str | None) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(name or "local")
    except (ValueError, RuntimeError, OSError, AttributeError, tf.errors.OpError) as error:
        text = str(error).strip()
        raise StrategyError(
            "There is no TPU here, or not the one named by --tpu"
            + (f" ({text.splitlines()[0]})." if text else ".")
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def _device_names(devices: Sequence[str] | None) -> list[str]:
    """Return what is to be used, after a look whether it is there."""
    there = {
        f"{d.device_type}:{d.name.rpartition(':')[2]}" for d in tf.config.list_logical_devices()
    }
    if devices is None:
        for kind in ("GPU", "CPU"):
            names = sorted(
                (name for name in there if name.startswith(kind)),
                key=lambda name: int(name.partition(":")[2]),
            )
            if names:
                return names
    names = [name.upper().removeprefix("/") for name in devices or []]
    for name in names:
        if name not in there:
            raise StrategyError(
                f"There is no device {name}: this machine has {', '.join(sorted(there))} (see "
                "--logical_devices)."
            )
    if len(set(names)) < len(names):
        raise StrategyError(f"A device is named twice in {', '.join(names)}.")
    return names


def _gpu_memory() -> float:
    """Return the memory of the first GPU in MiB, asked of its driver's own tool."""
    tool = shutil.which("nvidia-smi") or "nvidia-smi"
    command = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits", "--id=0"]
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return float(done.stdout.split()[0])
    raise StrategyError(
        f"How much memory the GPU has is not to be found out ({Path(tool).name} fails), so it "
        "cannot be split: leave --logical_devices out, or hide the GPU by CUDA_VISIBLE_DEVICES=-1."
    )
