"""What Entropy-SGD costs, as formulas: FLOPs, bytes kept, bytes moved, bytes sent.

`tests/test_scaling.py` holds them against tensors and traced graphs of this library.
"""

from __future__ import annotations

import dataclasses

FLOAT32 = 4  # bytes


# ---- the network --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Network:
    """What a network costs, for one image.

    Attributes:
        name: Of the network.
        weights: Trainable weights.
        macs: Multiply-adds of the convolutions and the last layer in a forward pass.
        norm_channels: Channels of each BatchNorm layer.
        activations: Numbers that the backward pass needs from the forward pass: the inputs of
            convolutions, BatchNorms and ReLUs, once each.
    """

    name: str
    weights: int
    macs: int
    norm_channels: tuple[int, ...]
    activations: int

    @property
    def flops(self) -> int:
        """Of a gradient evaluation: 2 a multiply-add; forward, and two products backward."""
        return 3 * 2 * self.macs


def wide_resnet(depth: int, width: int, *, side: int = 32, classes: int = 10) -> Network:
    """Count what wrn-<depth>-<width> costs, layer by layer."""
    weights = macs = activations = 0
    norms: list[int] = []

    def conv(inputs: int, filters: int, size: int, side: int) -> None:
        nonlocal weights, macs
        weights += size * size * inputs * filters
        macs += size * size * inputs * filters * side * side

    def norm_and_relu(channels: int, side: int) -> None:
        nonlocal weights, activations
        weights += 2 * channels
        norms.append(channels)
        activations += 2 * channels * side * side  # before BatchNorm, and after ReLU

    conv(3, 16, 3, side)
    channels = 16
    for group in range(3):
        filters = 16 * width * 2**group
        for block in range((depth - 4) // 6):
            norm_and_relu(channels, side)
            if group and not block:
                side //= 2
            if channels != filters:
                conv(channels, filters, 1, side)
            conv(channels, filters, 3, side)
            norm_and_relu(filters, side)
            conv(filters, filters, 3, side)
            channels = filters
    norm_and_relu(channels, side)
    weights += channels * classes + classes
    macs += channels * classes
    return Network(f"wrn-{depth}-{width}", weights, macs, tuple(norms), activations)


# ---- memory -------------------------------------------------------------------------------------

# float32 numbers per weight that Keras' optimizers keep.
OUTER_SLOTS = {"SGD": 0, "SGD, momentum": 1, "Adam": 2}


def slots(outer: str, langevin_steps: int, *, inner_momentum: bool = True) -> dict[str, int]:
    """Bytes per weight of each slot that LocalEntropy and its outer optimizer keep.

    Args:
        outer: A key of OUTER_SLOTS.
        langevin_steps: L; 0 is the outer optimizer alone.
        inner_momentum: Whether the inner loop has a velocity.
    """
    own = ["anchor", "mean", *(["velocity"] if inner_momentum else [])] if langevin_steps else []
    return {**dict.fromkeys(own, FLOAT32), "outer slots": OUTER_SLOTS[outer] * FLOAT32}


# ---- the update ---------------------------------------------------------------------------------

# Passes over the weights of a plain Langevin step, one for each tensor read or written, as
# `esgd_tf/optimizers/_kernels.py` makes them without XLA.
PASSES = {
    "L2 term (2 read 1 written, 1 read 1 written)": 5,
    "x' - x (2 read, 1 written)": 3,
    "velocity and x' (3 read, 2 written)": 5,
    "pull toward the anchor (2 read, 1 written)": 3,
    "N(0, I): 11 functions of half as many words, their products, joined": 16.5,
    "noise into x' (2 read, 1 written)": 3,
    "mean - x' (2 read, 1 written)": 3,
    "mean (2 read, 1 written)": 3,
}
# Fused into one kernel: x', x, v, mean, gradient read; x', v, mean written.
FUSED_PASSES = 8
# First step: anchor and mean copied, velocity filled. Last: x - mean, x' = x, outer SGD.
RARE_PASSES = 2 + 2 + 1 + 3 + 2 + 3
SGD_PASSES = 5


def update_bytes(weights: int, langevin_steps: int, *, fused: bool) -> float:
    """Bytes moved by the update of one gradient evaluation, the rare steps shared out over L."""
    plain = FUSED_PASSES if fused else sum(PASSES.values())
    return weights * FLOAT32 * (plain + RARE_PASSES / langevin_steps)


# ---- communication ------------------------------------------------------------------------------


def reduced_numbers(network: Network, *, sync_bn: bool = False) -> list[int]:
    """Sizes of the tensors that enter an all-reduce in one gradient evaluation, on each device.

    All gradients travel in one pack. Metrics and BatchNorm's moving statistics are not reduced.
    With synchronised BatchNorm every layer reduces sum, sum of squares and count of each channel
    on the way forward, and the gradients of the two sums on the way back.
    """
    norms = [c for c in network.norm_channels for _ in range(5)] if sync_bn else []
    return [network.weights, *norms]


def all_reduce_bytes(numbers: int, devices: int) -> float:
    """Bytes that each device sends in an all-reduce by reduce-scatter and all-gather."""
    return 2 * (devices - 1) / devices * FLOAT32 * numbers
