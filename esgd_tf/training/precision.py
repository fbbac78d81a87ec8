"""The precision of a run, chosen by one name before the model is built.

Weights, optimizer state, noise and BatchNorm statistics are float32 in every case; what changes is
the precision of convolutions, matrix products and the activations between them.

Keras' dtype policies are the way on GPUs and TPUs. On CPUs Keras' bfloat16 policy is slow: layers
cast and recast, and little of it reaches oneDNN's kernels. TensorFlow's graph rewriter, which picks
the operations that gain and leaves the rest in float32, makes the same network about twice as fast
where the CPU multiplies bfloat16 in hardware. Where it does not, oneDNN emulates bfloat16 (measured
on a small network: 4.5 times slower than float32) or fails, so there the run stays in float32.
"""

from __future__ import annotations

import os
from pathlib import Path

import keras
import tensorflow as tf

__all__ = ["PRECISIONS", "set_precision"]

PRECISIONS = ("none", "bfloat16", "float16")
_REWRITER = "auto_mixed_precision_onednn_bfloat16"
# Linux' names of the instructions that multiply bfloat16.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


def set_precision(name: str) -> str:
    """Set the precision in which models built from now on compute.

    Call it before the model is built, and again with another name to undo it: it sets Keras' dtype
    policy and an option of TensorFlow's graph optimizer, both of them global.

    Note:
        On CPUs bfloat16 acts on graphs: not on eager execution, and not on `jit_compile=True`,
        where XLA compiles the float32 graph. Logits are rounded to bfloat16 before the float32
        loss. Gradient clipping and all update rules stay in float32, as on the other paths.

    Args:
        name: "none", "bfloat16" or "float16". The precision of activations; "none" is float32, and
            for "float16" Keras' `compile` wraps the optimizer in its loss scaling.

    Returns:
        What was chosen, in a few words for people.

    Raises:
        ValueError: The name is none of these.
    """
    if name not in PRECISIONS:
        raise ValueError(f"Precision {name!r} is unknown: choose one of {', '.join(PRECISIONS)}.")
    policy, rewrite, description = _choice(name)
    keras.config.set_dtype_policy(policy)
    if rewrite or tf.config.optimizer.get_experimental_options().get(_REWRITER):
        tf.config.optimizer.set_experimental_options({_REWRITER: rewrite})
    return description


def _choice(name: str) -> tuple[str, bool, str]:
    """Return Keras' policy, whether TensorFlow rewrites graphs, and the description."""
    if name == "none":
        return "float32", False, "float32"
    if name == "float16":
        return "mixed_float16", False, "float16 by Keras' mixed_float16 policy, with loss scaling"
    for kind in ("GPU", "TPU"):
        if tf.config.list_logical_devices(kind):
            return "mixed_bfloat16", False, f"bfloat16 by Keras' mixed_bfloat16 policy, on {kind}"
    if not _cpu_multiplies_bfloat16():
        return (
            "float32",
            False,
            "float32 instead of bfloat16: this CPU has no instructions for bfloat16 "
            f"({' or '.join(_INSTRUCTIONS)}), without which it is slower than float32",
        )
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0":
        return "float32", False, "float32 instead of bfloat16: TF_ENABLE_ONEDNN_OPTS=0 is set"
    return "float32", True, "bfloat16 by oneDNN's automatic mixed precision"


def _cpu_multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU reports support; False where it cannot be asked (not Linux)."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not set(_INSTRUCTIONS).isdisjoint(flags.split())
