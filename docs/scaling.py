"""The tables of docs/scaling.md.

    python3 docs/scaling.py          prints every table of the document

needs nothing but Python. The formulas are in `docs/_costs.py`; `tests/test_scaling.py` holds them
against this library, and the document against this script. What no test can hold here are the times
on GPUs: they rest on the rates and shares in `Cluster`, and those are assumptions.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# So that the script runs from a checkout as it is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs._costs import (
    FLOAT32,
    FUSED_PASSES,
    OUTER_SLOTS,
    PASSES,
    RARE_PASSES,
    SGD_PASSES,
    Network,
    all_reduce_bytes,
    reduced_numbers,
    slots,
    update_bytes,
    wide_resnet,
)

_IMAGES, _EPOCHS, _L = 50_000, 200, 20  # CIFAR-10, effective epochs, gradients per outer update


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Machines of eight H100 SXM: rates from data sheets, and what is assumed to be reached.

    Attributes:
        flops: Dense bfloat16, per second and GPU.
        memory: Bytes of HBM3 per second and GPU.
        nvlink: Bytes per second, direction and GPU, inside a machine.
        network: Bytes per second and GPU between machines: InfiniBand of 400 Gb/s for each.
        per_machine: GPUs.
        most: Share of `flops` that convolutions reach at a large local batch. Assumed.
        half: Local batch at which they reach half of that. Assumed.
        bandwidth: Share of the three bandwidths that is reached. Assumed.
        hop: Seconds of latency a hop inside a machine, and between machines. Assumed.
    """

    flops: float = 989e12
    memory: float = 3.35e12
    nvlink: float = 450e9
    network: float = 50e9
    per_machine: int = 8
    most: float = 0.35
    half: float = 16.0
    bandwidth: float = 0.8
    hop: tuple[float, float] = (2e-6, 10e-6)

    def gradient(self, network: Network, local_batch: float) -> float:
        """Seconds of forward and backward pass; `half` images' worth of time is a floor."""
        return (local_batch + self.half) * network.flops / (self.most * self.flops)

    def update(self, network: Network, *, fused: bool = True) -> float:
        """Seconds of the update of one gradient evaluation, bound by memory."""
        return update_bytes(network.weights, _L, fused=fused) / (self.bandwidth * self.memory)

    def all_reduce(self, numbers: int, devices: int) -> float:
        """Seconds: scatter and gather in the machines, and each GPU's share between them."""
        inside = min(devices, self.per_machine)
        machines = math.ceil(devices / self.per_machine)
        seconds = all_reduce_bytes(numbers, inside) / (self.bandwidth * self.nvlink)
        seconds += 2 * (inside - 1) * self.hop[0]
        if machines > 1:
            share = all_reduce_bytes(numbers, machines) / inside
            seconds += share / (self.bandwidth * self.network)
            seconds += 2 * math.ceil(math.log2(machines)) * self.hop[1]
        return seconds


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of the parts of one gradient evaluation, and of the whole training."""

    devices: int
    local_batch: float
    evaluations: int
    gradient: float
    update: float
    communication: float

    @property
    def step(self) -> float:
        """Seconds of one gradient evaluation; nothing overlaps."""
        return self.gradient + self.update + self.communication

    @property
    def training(self) -> float:
        """Seconds."""
        return self.evaluations * self.step


def estimate(
    network: Network, devices: int, local_batch: float, cluster: Cluster, *, local_steps: int = 1
) -> Estimate:
    """Estimate the training of a network for 200 effective epochs.

    Args:
        network: From `wide_resnet`.
        devices: GPUs.
        local_batch: Images per GPU and gradient evaluation.
        cluster: Rates.
        local_steps: Gradient evaluations between two communications: 1 for data parallel training,
            L for replicas that couple once per outer update.
    """
    evaluations = math.ceil(_EPOCHS * _IMAGES / (devices * local_batch))
    return Estimate(
        devices,
        local_batch,
        evaluations,
        cluster.gradient(network, local_batch),
        cluster.update(network),
        cluster.all_reduce(network.weights, devices) / local_steps,
    )


# ---- the tables ---------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _row(e: Estimate) -> list[str]:
    parts = (e.gradient, e.update, e.communication)
    return [
        f"{e.devices:,}",
        f"{e.local_batch:g}",
        f"{e.evaluations:,}",
        *(f"{1e3 * part:.2f}" for part in parts),
        f"{e.communication / e.step:.0%}",
        _duration(e.training),
    ]


def tables() -> Iterator[tuple[str, str]]:
    """Yield (title, table) for every table of docs/scaling.md, in its order."""
    net, cluster = wide_resnet(28, 10), Cluster()
    yield (
        "the network",
        table(
            ["", net.name],
            [
                ["weights W", f"{net.weights:,}"],
                ["multiply-adds forward, one image", f"{net.macs:,}"],
                ["FLOPs of a gradient evaluation, one image", f"{net.flops / 1e9:.2f} G"],
                ["the same, batch 128", f"{128 * net.flops / 1e12:.2f} T"],
                [f"one outer update, L = {_L}", f"{128 * _L * net.flops / 1e12:.1f} T"],
                ["kept for the backward pass, numbers, one image", f"{net.activations:,}"],
                ["the same at batch 128 in bfloat16", f"{128 * 2 * net.activations / 1e9:.2f} GB"],
                ["200 effective epochs, FLOPs", f"{_EPOCHS * _IMAGES * net.flops / 1e15:.0f} P"],
            ],
        ),
    )
    rows: list[list[Any]] = []
    for outer, count in OUTER_SLOTS.items():
        for steps in (0, _L):
            kept = slots(outer, steps)
            bytes_each = [kept.get(k, 0) for k in ("anchor", "mean", "velocity")]
            total = FLOAT32 + sum(kept.values())
            mib = total * net.weights / 2**20
            rows.append([outer, steps, *bytes_each, count * FLOAT32, total, f"{mib:,.0f} MiB"])
    head = ["outer optimizer", "L", "anchor", "mean", "velocity", "outer slots", "with the weight"]
    yield "memory", table([*head, net.name], rows)

    plain = sum(PASSES.values())
    rare = RARE_PASSES / _L
    rows = [[what, passes] for what, passes in PASSES.items()]
    rows += [["a plain Langevin step", plain], [f"first and last step, over L = {_L}", f"{rare:g}"]]
    yield "passes", table(["plain kernels", "passes"], rows)
    rows = []
    for what, passes in (
        ("SGD with momentum", SGD_PASSES),
        ("EntropySGD, one fused kernel (XLA at best)", FUSED_PASSES + rare),
        ("EntropySGD, plain kernels", plain + rare),
    ):
        moved = passes * FLOAT32 * net.weights
        seconds = moved / (cluster.bandwidth * cluster.memory)
        share = seconds / cluster.gradient(net, 128)
        rows.append(
            [
                what,
                f"{4 * passes:g}",
                f"{moved / 1e9:.2f} GB",
                f"{1e3 * seconds:.2f}",
                f"{share:.1%}",
            ]
        )
    head = ["update", "bytes per weight", net.name, "ms on an H100", "of the gradient at batch 128"]
    yield "roofline of the update", table(head, rows)

    rows = []
    for what, numbers, local_steps in (
        ("data parallel", reduced_numbers(net), 1),
        ("data parallel, `--sync_bn`", reduced_numbers(net, sync_bn=True), 1),
        (f"replicas that couple once per outer update, L = {_L}", reduced_numbers(net), _L),
    ):
        sent = [
            sum(all_reduce_bytes(k, n) for k in numbers) / local_steps / 1e6 for n in (2, 8, 1024)
        ]
        rows.append([what, f"{len(numbers) / local_steps:g}", *(f"{mb:.1f}" for mb in sent)])
    head = ["", "all-reduces", "MB sent, n = 2", "n = 8", "n = 1,024"]
    yield "communication", table(head, rows)

    head = ["GPUs", "images per GPU", "gradient evaluations", "gradient, ms", "update, ms"]
    head += ["all-reduce, ms", "its share", "200 epochs"]
    counts = (1, 8, 64, 128)
    yield "fixed batch", table(head, [_row(estimate(net, n, 128 / n, cluster)) for n in counts])
    counts = (1, 8, 64, 1024)
    yield "scaled batch", table(head, [_row(estimate(net, n, 128, cluster)) for n in counts])
    yield (
        "replicas",
        table(
            head,
            [
                _row(estimate(net, n, b, cluster, local_steps=_L))
                for n, b in ((8, 128), (64, 128), (1024, 128), (64, 16), (64, 2))
            ],
        ),
    )
    rows = []
    for n in (8, 64, 1024):
        whole = cluster.all_reduce(net.weights, n)
        at = [whole / steps / cluster.gradient(net, 1 - cluster.half) - cluster.half
              for steps in (1, _L)]  # fmt: skip
        rows.append([f"{n:,}", f"{1e3 * whole:.2f}", *(f"{b:.0f}" for b in at)])
    head = ["GPUs", "all-reduce, ms", "b*, data parallel", f"b*, L = {_L} local steps"]
    yield "crossover", table(head, rows)


def main() -> None:
    """Print the tables."""
    for title, text in tables():
        print(f"{title}\n\n{text}\n")


if __name__ == "__main__":
    main()
