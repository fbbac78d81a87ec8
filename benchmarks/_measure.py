"""What the benchmarks share: contenders that take turns, ratios, memory, the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from esgd_tf import models

try:
    import torch
except ImportError:
    torch = None  # the comparisons with PyTorch are left out

# Makes n gradient evaluations.
Stepper = Callable[[int], None]


def batches(shape: Sequence[int], batch_size: int, count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Batches of noise: images ``[count, batch, h, w, c]`` and labels ``[count, batch]``."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, batch_size, *shape)).astype("float32")
    return images, rng.integers(0, 10, (count, batch_size))


def keras_stepper(
    network: str,
    shape: tuple[int, int, int],
    batch_size: int,
    optimizer: keras.optimizers.Optimizer,
    count: int = 8,
) -> Stepper:
    """A compiled Keras model on an endless iterator, as ``fit`` would run it, in graph mode."""
    model = models.build(network, shape, 10, seed=0)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)
    model.make_train_function()
    data = tf.data.Dataset.from_tensor_slices(batches(shape, batch_size, count)).cache().repeat()
    iterator = iter(data.prefetch(2))

    def step(count: int) -> None:
        for _ in range(count):
            logs = model.train_function(iterator)
        float(logs["loss"])

    return step


def _clock() -> np.ndarray:
    """Seconds: of the wall, of this process on processors, of all processes on processors."""
    wall, own = time.perf_counter(), time.process_time()
    stat = Path("/proc/stat")
    if not stat.exists():
        return np.array([wall, own, own])  # not Linux: others go unnoticed
    ticks = [int(x) for x in stat.read_text().splitlines()[0].split()[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]  # all but idle and waiting for a disk
    return np.array([wall, own, busy / os.sysconf("SC_CLK_TCK")])


def measure(
    steppers: dict[str, Stepper], *, turn: int, turns: int, periods: int, at_most: int
) -> dict[str, np.ndarray]:
    """Lets the contenders take turns, in an order that rotates.

    Args:
        steppers: By name. They are warm: traced, and their memory allocated.
        turn: Steps of one turn.
        turns: Turns of each contender in a period.
        periods: Periods wanted during which others took less than a tenth of the processors.
        at_most: Periods to run until so many were quiet; if too few were, the quietest count.

    Returns:
        By name, ``[periods, 2]``: wall and processor seconds per step.
    """
    order = list(steppers)
    measured: list[tuple[float, int, dict[str, np.ndarray]]] = []
    for _ in range(at_most):
        seconds = {name: np.zeros(3) for name in steppers}
        for _ in range(turns):
            order.append(order.pop(0))
            for name in order:
                start = _clock()
                steppers[name](turn)
                seconds[name] += _clock() - start
        wall, own, busy = sum(seconds.values(), np.zeros(3))
        measured.append(((busy - own) / wall / (os.cpu_count() or 1), len(measured), seconds))
        if sum(others < 0.1 for others, *_ in measured) == periods:
            break
    kept = sorted(measured, key=lambda row: row[:2])[:periods]
    print(
        f"  kept {len(kept)} of {len(measured)} periods; in them others took up to "
        f"{kept[-1][0]:.0%} of the processors",
        flush=True,
    )
    return {
        name: np.array([row[2][name][:2] for row in kept]) / (turn * turns) for name in steppers
    }


def report_ratio(
    seconds: dict[str, np.ndarray], over: str, under: str, aim: str, *, inverse: bool = False
) -> dict[str, Any]:
    """Prints one line of ratios and returns its numbers.

    Args:
        seconds: From `measure`.
        over: Name of the numerator.
        under: Name of the denominator.
        aim: What the ratio should be, in words.
        inverse: Whether to compare speeds instead of seconds: `over` is faster above 1.
    """
    ratios = seconds[over] / seconds[under]
    wall, processor = (1.0 / ratios if inverse else ratios).T
    q1, median, q3 = np.percentile(wall, (25, 50, 75))
    line = {
        "ratio": f"{over} / {under}" + (", images per second" if inverse else ""),
        "median": median,
        "min": wall.min(),
        "quartiles": [q1, q3],
        "cpu_time": statistics.median(processor),
        "periods": len(wall),
        "aim": aim,
    }
    print(
        f"  {line['ratio']:42s} {median:.3f}  [min {wall.min():.3f}, quartiles {q1:.3f} {q3:.3f}, "
        f"n={len(wall)}; CPU time {line['cpu_time']:.3f}]  aim: {aim}"
    )
    return line


def in_a_child(script: str, *arguments: str) -> Any:
    """Run a script anew and return what its last line of output says, in JSON."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The child {' '.join(arguments)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib() -> float:
    """MiB of the largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not what getrusage says: there a child starts with the peak of its parent.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource  # noqa: PLC0415 - not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def hardware() -> str:
    """The machine and the versions, for the head of a report."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    devices = [d.name for d in tf.config.list_physical_devices()]
    return (
        f"{model or platform.processor()}, {os.cpu_count()} cores, devices {devices}; "
        f"Python {platform.python_version()}, TensorFlow {tf.__version__}, Keras "
        f"{keras.__version__}, PyTorch {torch.__version__ if torch else 'not installed'}; "
        f"load {os.getloadavg()[0]:.1f}"
    )
