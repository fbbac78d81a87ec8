"""What Entropy-SGD costs beyond SGD: seconds per gradient evaluation, and peak memory.

Command:   python3 benchmarks/optimizer_overhead.py            (the figures to report)
           python3 benchmarks/optimizer_overhead.py --quick    (a glance, few periods)
Expected:  about 10 minutes on 2 CPU cores, about 3 with --quick. Nothing else should run.
Result:    ratio of EntropySGD to Keras' SGD-Nesterov at most 1.03 for both networks; LeNet takes
           at most 1.0 of the time of the same network and method in PyTorch (if installed).

How it measures. All contenders live in one process: Keras with SGD-Nesterov, Keras with
EntropySGD and, for LeNet, PyTorch with both methods. They train the same network on the same
batches and take turns of a few steps, in an order that rotates. A period is L = 20 steps of each,
so it holds exactly one outer update. Each period gives one ratio of its seconds; the median over
periods is the figure, with quartiles and the minimum beside it. The CPU-time column is the same
ratio of processor seconds of the process: it feels little of what other programs do meanwhile.
A period during which other programs (or, on a virtual machine, other guests) took more than a
tenth of the processors is measured again, as long as the patience lasts.

The PyTorch method is written here after the paper's Algorithm 1 (arXiv 1611.01838) in the released
code's conventions, without that code's extra gradient evaluation per outer update for logging.

Peak memory is the largest resident set of a child process of its own for each optimizer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# So that the script runs from a checkout as it is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
import tensorflow as tf

from esgd_tf import models
from esgd_tf.optimizers import EntropySGD

try:
    import torch
except ImportError:
    torch = None  # the comparison with PyTorch is left out

_L = 20
_SHAPES = {"mnistconv": (28, 28, 1), "wrn-16-4": (32, 32, 3)}
# Steps of one turn. A step of the wide net is long enough to take turns by single steps, and the
# less time between two things compared, the less the machine has changed.
_TURN = {"mnistconv": 20, "wrn-16-4": 1}
_PERIODS = {"mnistconv": 30, "wrn-16-4": 4}
_QUICK_PERIODS = {"mnistconv": 10, "wrn-16-4": 1}
_SGD, _ENTROPY = "keras SGD-Nesterov", "keras EntropySGD"
_TORCH_SGD, _TORCH_ENTROPY = "torch SGD-Nesterov", "torch EntropySGD"

# Makes n gradient evaluations.
Stepper = Callable[[int], None]


def batches(network: str, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight batches of noise: images ``[8, batch, h, w, c]`` and labels ``[8, batch]``."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, batch_size, *_SHAPES[network])).astype("float32")
    return images, rng.integers(0, 10, (8, batch_size))


def keras_stepper(network: str, batch_size: int, optimizer: keras.optimizers.Optimizer) -> Stepper:
    """A compiled Keras model on an endless iterator, as ``fit`` would run it, in graph mode."""
    model = models.build(network, _SHAPES[network], 10, seed=0)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    model.make_train_function()
    data = tf.data.Dataset.from_tensor_slices(batches(network, batch_size)).cache().repeat()
    iterator = iter(data.prefetch(2))

    def step(count: int) -> None:
        for _ in range(count):
            logs = model.train_function(iterator)
        float(logs["loss"])

    return step


def keras_optimizer(name: str, langevin_steps: int = _L) -> keras.optimizers.Optimizer:
    """The optimizer of a contender's name."""
    if name == _SGD:
        return keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    return EntropySGD(langevin_steps=langevin_steps)


def _torch_lenet() -> torch.nn.Module:
    nn = torch.nn
    layers: list[torch.nn.Module] = []
    for channels, filters, pool in ((1, 20, 3), (20, 50, 2)):
        layers += [
            nn.Conv2d(channels, filters, 5),
            nn.BatchNorm2d(filters),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(pool),
            nn.Dropout(0.5),
        ]
    layers += [nn.Flatten(), nn.Linear(200, 500), nn.BatchNorm1d(500), nn.ReLU(inplace=True)]
    network = nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(500, 10))
    assert sum(w.numel() for w in network.parameters()) == 132_220
    return network


def _torch_gradients(network: torch.nn.Module, batch_size: int) -> Iterator[None]:
    """Each ``next`` leaves the gradient of one minibatch in the parameters."""
    images, labels = batches("mnistconv", batch_size)
    data = [
        (torch.from_numpy(np.moveaxis(x, -1, 1).copy()), torch.from_numpy(y))
        for x, y in zip(images, labels, strict=True)
    ]
    while True:
        for x, y in data:
            for w in network.parameters():
                w.grad = None
            torch.nn.functional.cross_entropy(network(x), y).backward()
            yield


def torch_sgd_stepper(batch_size: int) -> Stepper:
    """PyTorch's own SGD with Nesterov momentum."""
    network = _torch_lenet()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    gradients = _torch_gradients(network, batch_size)

    def step(count: int) -> None:
        for _ in range(count):
            next(gradients)
            optimizer.step()

    return step


def torch_entropy_stepper(
    batch_size: int,
    *,
    rate: float = 1.0,
    inner_rate: float = 0.1,
    momentum: float = 0.9,
    noise: float = 1e-4,
    averaging: float = 0.75,
    gamma: float = 1e-4,
    scoping: float = 1e-3,
) -> Stepper:
    """Entropy-SGD in PyTorch: L Langevin steps with Nesterov momentum, then an outer step."""
    network = _torch_lenet()
    gradients = _torch_gradients(network, batch_size)
    weights = list(network.parameters())
    anchors, means, velocities, outer_velocities = (
        [torch.zeros_like(w) for w in weights] for _ in range(4)
    )
    done = 0

    @torch.no_grad()
    def update() -> None:
        nonlocal done
        outer_updates, phase = divmod(done, _L)
        scope = gamma * (1.0 + scoping) ** (outer_updates + 1)
        for w, x, mean, v, outer_v in zip(
            weights, anchors, means, velocities, outer_velocities, strict=True
        ):
            if phase == 0:
                x.copy_(w)
                mean.copy_(w)
                v.zero_()
            v.mul_(momentum).add_(w.grad)
            direction = w.grad.add_(v, alpha=momentum).add_(w, alpha=scope).add_(x, alpha=-scope)
            w.sub_(direction, alpha=inner_rate)
            w.add_(torch.randn_like(w), alpha=(2.0 * inner_rate) ** 0.5 * noise)
            mean.mul_(averaging).add_(w, alpha=1.0 - averaging)
            if phase == _L - 1:
                difference = x - mean
                outer_v.mul_(momentum).add_(difference)
                torch.sub(x, difference.add_(outer_v, alpha=momentum), alpha=rate, out=w)
        done += 1

    def step(count: int) -> None:
        for _ in range(count):
            next(gradients)
            update()

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


def measure(steppers: dict[str, Stepper], turn: int, periods: int) -> dict[str, np.ndarray]:
    """Lets the contenders take turns.

    Args:
        steppers: By name.
        turn: Steps of one turn, a divisor of L.
        periods: Periods of L steps to measure, after a warm-up that is not counted. Up to three
            times as many are run where others disturb them; if too few are quiet, the quietest.

    Returns:
        By name, ``[periods, 2]``: wall and processor seconds per step.
    """
    for step in steppers.values():
        step(_L if turn == _L else 2)
    order = list(steppers)
    measured = []
    for _ in range(3 * periods):
        seconds = {name: np.zeros(3) for name in steppers}
        for _ in range(_L // turn):
            order.append(order.pop(0))
            for name in order:
                start = _clock()
                steppers[name](turn)
                seconds[name] += _clock() - start
        wall, own, busy = sum(seconds.values())
        measured.append(((busy - own) / wall / (os.cpu_count() or 1), len(measured), seconds))
        if sum(others < 0.1 for others, *_ in measured) == periods:
            break
    kept = sorted(measured)[:periods]
    print(
        f"  kept {len(kept)} of {len(measured)} periods; in them others took up to "
        f"{kept[-1][0]:.0%} of the processors"
    )
    return {name: np.array([row[2][name][:2] for row in kept]) / _L for name in steppers}


def report_ratio(
    seconds: dict[str, np.ndarray], over: str, under: str, aim: str
) -> dict[str, object]:
    """Prints one line of ratios and returns its numbers."""
    wall, processor = (seconds[over] / seconds[under]).T
    q1, median, q3 = np.percentile(wall, (25, 50, 75))
    line = {
        "ratio": f"{over} / {under}",
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


def peak_memory(network: str, batch_size: int, optimizer: str) -> float:
    """MiB of the largest resident set of a child that trains with this optimizer."""
    command = [sys.executable, __file__, "--child", network, optimizer]
    command += ["--batch-size", str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The child that measures memory failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def _child(network: str, optimizer: str, batch_size: int) -> None:
    # Two whole periods; a short L does not change what is in memory.
    keras_stepper(network, batch_size, keras_optimizer(optimizer, langevin_steps=3))(6)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _hardware() -> str:
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


def run(network: str, batch_size: int, periods: int) -> dict[str, object]:
    """Measures and prints everything about one network."""
    print(f"{network}, batch {batch_size}")
    # Children first: their memory must not be squeezed by what this process holds.
    memory = {name: peak_memory(network, batch_size, name) for name in (_SGD, _ENTROPY)}
    steppers = {
        name: keras_stepper(network, batch_size, keras_optimizer(name)) for name in (_SGD, _ENTROPY)
    }
    if torch is not None and network == "mnistconv":
        steppers[_TORCH_SGD] = torch_sgd_stepper(batch_size)
        steppers[_TORCH_ENTROPY] = torch_entropy_stepper(batch_size)
    seconds = measure(steppers, _TURN[network], periods)
    for name, values in seconds.items():
        note = f", peak memory {memory[name]:.0f} MiB" if name in memory else ""
        milliseconds = 1e3 * np.median(values[:, 0])
        print(f"  {name:42s} {milliseconds:.2f} ms per gradient evaluation{note}")
    ratios = [report_ratio(seconds, _ENTROPY, _SGD, "1.03 or less")]
    if _TORCH_ENTROPY in steppers:
        ratios += [
            report_ratio(seconds, _TORCH_ENTROPY, _TORCH_SGD, "(the original: 1.035)"),
            report_ratio(seconds, _SGD, _TORCH_SGD, "1.0 or less"),
            report_ratio(seconds, _ENTROPY, _TORCH_ENTROPY, "1.0 or less"),
        ]
    return {
        "network": network,
        "batch_size": batch_size,
        "milliseconds": {name: 1e3 * float(np.median(s[:, 0])) for name, s in seconds.items()},
        "peak_mib": memory,
        "ratios": ratios,
    }


def main() -> None:
    """Reads the flags and runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few periods")
    parser.add_argument("--networks", nargs="+", choices=sorted(_SHAPES), default=list(_SHAPES))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--periods", type=int, help="of 20 steps each; default by network")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        _child(*flags.child, flags.batch_size)
        return
    hardware = _hardware()
    print(hardware, flush=True)
    default = _QUICK_PERIODS if flags.quick else _PERIODS
    results = [run(n, flags.batch_size, flags.periods or default[n]) for n in flags.networks]
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    if flags.json:
        flags.json.write_text(json.dumps({"hardware": hardware, "results": results}, indent=2))


if __name__ == "__main__":
    main()
