"""WRN-28-10 on CPU: Entropy-SGD over SGD, Keras over PyTorch, bfloat16 over float32, and memory.

Command:   python3 benchmarks/wrn.py                  (the figures to report)
           python3 benchmarks/wrn.py --quick          (batch 8 alone, two periods)
Expected:  about 15 minutes on 2 quiet CPU cores, about 3 with --quick. Nothing else should run.
Result:    a gradient evaluation of EntropySGD takes at most 1.03 times that of Keras' SGD-Nesterov
           at batch 128, and at most 1.25 times at batch 8, in float32; Keras makes at least as many
           images per second as PyTorch in float32, and at least 2.5 times as many in bfloat16 as
           PyTorch in float32 (if installed; on a CPU that multiplies bfloat16).

How it measures. All contenders live in one process and take turns of one step: a step of this
network is so long that others on the machine come and go meanwhile. A period is one step of each
and gives one ratio; the median over the periods is the figure.

An inner loop of L = 20 steps would take minutes at batch 128. But its steps are of three kinds: the
first (which copies the weights to anchor and mean), eighteen plain ones, and the last (which makes
the outer update). Which kind is next is in the optimizer's counter, so the script sets the counter
to the kind it wants. A gradient evaluation of EntropySGD costs

    (18 plain + first + last) / 20,

with the plain step from the same period as the step of SGD, and for the other two, which weigh a
twentieth each, medians of a third as many repetitions taken afterwards.

Peak memory is the largest resident set of a child process for each optimizer, with L = 1: then each
step is first and last, and nothing that an inner loop needs is missing. Beside it stands what the
formula of docs/scaling.md says that the two optimizers differ by.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

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
from esgd_tf.training.precision import set_precision

_L = 20
_SHAPE = (32, 32, 3)
_WEIGHTS = {"wrn-28-10": 36_479_194}
_PERIODS = {8: 12, 32: 6, 128: 3}
_SGD, _ENTROPY, _TORCH = "keras SGD-Nesterov", "keras EntropySGD", "torch SGD-Nesterov"
_FIRST, _LAST = "first", "last"
# Iteration numbers of the three kinds of steps.
_PLAIN_AT, _RARE_AT = 5, {_FIRST: 0, _LAST: _L - 1}


def sgd() -> keras.optimizers.Optimizer:
    """What Entropy-SGD is compared to: the same rule as its inner loop's."""
    return keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)


def keras_steppers(
    network: str, batch_size: int, precisions: list[str]
) -> tuple[dict[str, Stepper], dict[str, Stepper]]:
    """The contenders in Keras, and the rare steps of EntropySGD, by name and precision.

    Precisions share a model: TensorFlow compiles its step once for each, and takes the one that is
    set when the step is called.
    """
    entropy = EntropySGD(langevin_steps=_L, seed=0)
    # Two batches: the network's step is what is measured, not the pipeline.
    steps = {
        _SGD: keras_stepper(network, _SHAPE, batch_size, sgd(), 2),
        _ENTROPY: keras_stepper(network, _SHAPE, batch_size, entropy, 2),
    }

    def run(precision: str, step: Stepper, at: int | None, count: int) -> None:
        set_precision(precision)
        for _ in range(count):
            if at is not None:
                entropy.iterations.assign(at)
            step(1)

    def at(name: str) -> int | None:
        return _PLAIN_AT if name == _ENTROPY else None

    common: dict[str, Stepper] = {}
    rare: dict[str, Stepper] = {}
    for p in precisions:
        for name, step in steps.items():
            common[f"{name} {p}"] = functools.partial(run, p, step, at(name))
        for kind, where in _RARE_AT.items():
            rare[f"{kind} {p}"] = functools.partial(run, p, steps[_ENTROPY], where)
    return common, rare


def torch_stepper(depth: int, width: int, batch_size: int, precision: str) -> Stepper:
    """The same network in PyTorch, trained by PyTorch's own SGD with Nesterov momentum."""
    nn: Any = torch.nn

    class Block(nn.Module):
        """Pre-activation residual block: twice norm, ReLU and 3x3 convolution."""

        def __init__(self, channels: int, filters: int, stride: int) -> None:
            super().__init__()
            self.norm_1 = nn.BatchNorm2d(channels)
            self.conv_1 = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)
            self.norm_2 = nn.BatchNorm2d(filters)
            self.conv_2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
            self.shortcut = (
                None if channels == filters else nn.Conv2d(channels, filters, 1, stride, bias=False)
            )

        def forward(self, x: Any) -> Any:
            y = torch.relu(self.norm_1(x))
            shortcut = x if self.shortcut is None else self.shortcut(y)
            return self.conv_2(torch.relu(self.norm_2(self.conv_1(y)))) + shortcut

    layers: list[Any] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    channels = 16
    for group in range(3):
        for i in range((depth - 4) // 6):
            filters = 16 * width * 2**group
            layers.append(Block(channels, filters, 2 if group and not i else 1))
            channels = filters
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    # PyTorch's own memory format: with channels last float32 was thirty times slower.
    network = nn.Sequential(*layers, nn.Linear(channels, 10))
    weights = sum(w.numel() for w in network.parameters())
    assert weights == _WEIGHTS.get(f"wrn-{depth}-{width}", weights)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    images, labels = batches(_SHAPE, batch_size, 1)
    x, y = torch.from_numpy(np.moveaxis(images[0], -1, 1).copy()), torch.from_numpy(labels[0])

    def step(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = torch.nn.functional.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
        loss.item()

    return step


def run(
    network: str, batch_size: int, precisions: list[str], periods: int, *, memory: bool
) -> dict[str, Any]:
    """Measures and prints everything about one batch size."""
    print(f"{network}, batch {batch_size}", flush=True)
    # Children first: their memory must not be squeezed by what this process holds.
    peak = _memory(network, batch_size) if memory else {}
    steppers, rare = keras_steppers(network, batch_size, precisions)
    if torch is not None:
        depth, width = (int(x) for x in network.split("-")[1:])
        for p in precisions:
            steppers[f"{_TORCH} {p}"] = torch_stepper(depth, width, batch_size, p)
    for step in steppers.values():
        step(1)
    seconds = measure(steppers, turn=1, turns=1, periods=periods, at_most=periods)
    few = max(1, periods // 3)
    seconds_of_rare = measure(rare, turn=1, turns=1, periods=few, at_most=few)
    set_precision("none")

    for p in precisions:
        first, last = (np.median(seconds_of_rare[f"{kind} {p}"], axis=0) for kind in _RARE_AT)
        plain = seconds[f"{_ENTROPY} {p}"]
        print(
            f"  EntropySGD {p}: plain {1e3 * np.median(plain[:, 0]):.0f} ms, "
            f"first {1e3 * first[0]:.0f}, last {1e3 * last[0]:.0f}"
        )
        seconds[f"{_ENTROPY} {p}"] = ((_L - 2) * plain + first + last) / _L
    medians = {name: float(np.median(values[:, 0])) for name, values in seconds.items()}
    for name, median in medians.items():
        print(
            f"  {name:38s} {1e3 * median:7.0f} ms per gradient evaluation, "
            f"{batch_size / median:6.1f} images/s"
        )
    return {
        "network": network,
        "batch_size": batch_size,
        "seconds": medians,
        "images_per_second": {name: batch_size / median for name, median in medians.items()},
        "ratios": _ratios(seconds, batch_size, precisions),
        "memory": peak,
    }


def _ratios(seconds: dict[str, Any], batch_size: int, precisions: list[str]) -> list[Any]:
    lines = []
    for p in precisions:
        aim = {8: "1.25 or less", 128: "1.03 or less"}.get(batch_size, "between")
        aim = aim if p == "none" else "(for information)"
        lines.append(report_ratio(seconds, f"{_ENTROPY} {p}", f"{_SGD} {p}", aim))

    def faster(over: str, under: str, aim: str) -> None:
        if over in seconds and under in seconds:
            lines.append(report_ratio(seconds, over, under, aim, inverse=True))

    faster(f"{_SGD} none", f"{_TORCH} none", "1.0 or more")
    faster(f"{_SGD} bfloat16", f"{_TORCH} none", "2.5 or more")
    faster(f"{_SGD} bfloat16", f"{_TORCH} bfloat16", "(for information)")
    faster(f"{_SGD} bfloat16", f"{_SGD} none", "(for information)")
    return lines


def _memory(network: str, batch_size: int) -> dict[str, Any]:
    """Peak memory of the two optimizers in float32, beside the formula."""
    children = {
        name: in_a_child(
            __file__, "--child", name, "--model", network, "--batch-sizes", str(batch_size)
        )
        for name in (_SGD, _ENTROPY)
    }
    more = children[_ENTROPY]["peak_mib"] - children[_SGD]["peak_mib"]
    # anchor, mean and velocity against the velocity alone
    formula = children[_ENTROPY]["slots_mib"] - children[_SGD]["slots_mib"]
    for name, child in children.items():
        print(
            f"  {name:38s} peak {child['peak_mib']:.0f} MiB, {child['start_mib']:.0f} of it before "
            f"the model; slots {child['slots_mib']:.0f}, weights {child['weights_mib']:.0f}"
        )
    print(
        f"  EntropySGD takes {more:.0f} MiB more; its slots are {formula:.0f} MiB more", flush=True
    )
    return {**children, "more_mib": more, "formula_mib": formula}


def _child(name: str, network: str, batch_size: int) -> None:
    start = peak_mib()
    optimizer = sgd() if name == _SGD else EntropySGD(langevin_steps=1, seed=0)
    step = keras_stepper(network, _SHAPE, batch_size, optimizer, 2)
    step(2)
    # 8 bytes and less are counters.
    slots = [v for v in optimizer.variables if v.shape]
    size = 4 / 2**20
    print(
        json.dumps(
            {
                "start_mib": start,
                "peak_mib": peak_mib(),
                "slots_mib": size * sum(int(np.prod(v.shape)) for v in slots),
                "weights_mib": size
                * sum(int(np.prod(v.shape)) for v in optimizer._trainable_variables),
            }
        )
    )


def main() -> None:
    """Reads the flags and runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int)
    parser.add_argument(
        "--precisions", nargs="+", choices=("none", "bfloat16"), default=["none", "bfloat16"]
    )
    parser.add_argument("--model", default="wrn-28-10", help="another wrn-D-K, to try things out")
    parser.add_argument("--quick", action="store_true", help="batch 8, two periods, no memory")
    parser.add_argument("--periods", type=int, help="default by batch size")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--child", choices=(_SGD, _ENTROPY), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    sizes = flags.batch_sizes or ([8] if flags.quick else list(_PERIODS))
    if flags.child:
        _child(flags.child, flags.model, sizes[0])
        return
    machine = hardware()
    print(machine)
    if "bfloat16" in flags.precisions:
        print(f"--mixed_precision bfloat16: {set_precision('bfloat16')}", flush=True)
        set_precision("none")
    results = [
        run(
            flags.model,
            size,
            flags.precisions,
            flags.periods or (2 if flags.quick else _PERIODS.get(size, 3)),
            # Activations grow with the batch and hide the rest; the ends of the range tell.
            memory=not flags.quick and size in (min(sizes), max(sizes)),
        )
        for size in sizes
    ]
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    if flags.json:
        flags.json.write_text(json.dumps({"hardware": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
