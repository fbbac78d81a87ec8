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
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# So that the script runs from a checkout as it is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np

from benchmarks._measure import (
    Stepper,
    batches,
    hardware,
    in_a_child,
    keras_stepper,
    measure,
    peak_mib,
    report_ratio,
    torch,
)
from esgd_tf.optimizers import EntropySGD

_L = 20
_SHAPES = {"mnistconv": (28, 28, 1), "wrn-16-4": (32, 32, 3)}
# Steps of one turn. A step of the wide net is long enough to take turns by single steps, and the
# less time between two things compared, the less the machine has changed.
_TURN = {"mnistconv": 20, "wrn-16-4": 1}
_PERIODS = {"mnistconv": 30, "wrn-16-4": 4}
_QUICK_PERIODS = {"mnistconv": 10, "wrn-16-4": 1}
_SGD, _ENTROPY = "keras SGD-Nesterov", "keras EntropySGD"
_TORCH_SGD, _TORCH_ENTROPY = "torch SGD-Nesterov", "torch EntropySGD"


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
    images, labels = batches(_SHAPES["mnistconv"], batch_size)
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


def peak_memory(network: str, batch_size: int, optimizer: str) -> float:
    """MiB of the largest resident set of a child that trains with this optimizer."""
    size = str(batch_size)
    return float(in_a_child(__file__, "--child", network, optimizer, "--batch-size", size))


def _child(network: str, optimizer: str, batch_size: int) -> None:
    # Two whole periods; a short L does not change what is in memory.
    step = keras_stepper(
        network, _SHAPES[network], batch_size, keras_optimizer(optimizer, langevin_steps=3)
    )
    step(6)
    print(peak_mib())


def run(network: str, batch_size: int, periods: int) -> dict[str, object]:
    """Measures and prints everything about one network."""
    print(f"{network}, batch {batch_size}")
    # Children first: their memory must not be squeezed by what this process holds.
    memory = {name: peak_memory(network, batch_size, name) for name in (_SGD, _ENTROPY)}
    steppers = {
        name: keras_stepper(network, _SHAPES[network], batch_size, keras_optimizer(name))
        for name in (_SGD, _ENTROPY)
    }
    if torch is not None and network == "mnistconv":
        steppers[_TORCH_SGD] = torch_sgd_stepper(batch_size)
        steppers[_TORCH_ENTROPY] = torch_entropy_stepper(batch_size)
    turn = _TURN[network]
    for step in steppers.values():
        step(_L if turn == _L else 2)
    seconds = measure(steppers, turn=turn, turns=_L // turn, periods=periods, at_most=3 * periods)
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
        network, optimizer = flags.child
        _child(network, optimizer, flags.batch_size)
        return
    machine = hardware()
    print(machine, flush=True)
    default = _QUICK_PERIODS if flags.quick else _PERIODS
    results = [run(n, flags.batch_size, flags.periods or default[n]) for n in flags.networks]
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    if flags.json:
        flags.json.write_text(json.dumps({"hardware": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
