"""What a first batch tells of a loss: is it a function of the weights, and do the cuts matter?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from esgd_tf.landscape._batch import cut_rows, rows_of
from esgd_tf.landscape._batch_loss import BatchLoss
from esgd_tf.landscape._traces import Traces
from esgd_tf.landscape._types import Batch, Vector

__all__ = ["depends_on_cuts"]

# By how much two passes over a batch may differ before the layers are said to use random numbers:
# sums in float32 by several threads differ by less.
_SAME = 1e-5


def depends_on_cuts(
    f: BatchLoss, sums_of: Callable[[Batch], Vector], batch: Batch, traces: Traces, *, large: bool
) -> bool:
    """Refuse layers that use random numbers; return whether it matters how large arrays are cut.

    Args:
        f: BatchLoss. The loss.
        sums_of: callable. Given a batch, returns the sum of its losses and those of its metrics.
        batch: tuple (x, y, sample_weight). The first batch.
        traces: Traces. Where it is noted that the loss has been seen to be a function.
        large: bool. Whether the data are arrays that could be cut in another way; where they are
            not, the answer is False.

    Raises:
        ValueError: Two passes over the batch give different losses.
    """
    if traces.is_function and not (large and f.loss.has_unknown_parts):
        whole = np.zeros(1)
    else:
        whole, again = (sums_of(batch) for _ in range(2))
        rounding = _SAME * _largest(whole)
        if not np.allclose(whole, again, rtol=_SAME, atol=rounding, equal_nan=True):
            raise ValueError(
                "Two passes over the same data give different losses, so the model samples "
                "random numbers though it is not in training (a layer that calls tf.random?), "
                "and its loss is not a function of the weights: give it a seed of its own, or "
                "leave the layer out."
            )
        traces.is_function = True
    return large and _differs_by_cuts(f, sums_of, batch, whole)


def _differs_by_cuts(
    f: BatchLoss, sums_of: Callable[[Batch], Vector], batch: Batch, whole: Vector
) -> bool:
    loss = f.loss
    if loss.depends_on_batches or not loss.has_unknown_parts or not f.takes_loss:
        return loss.depends_on_batches
    # A function that the user wrote may be anything, so it is compared with its own two halves.
    rows = int(rows_of(batch[0]))
    halves = [
        tf.nest.map_structure(lambda t: t if t is None else cut_rows(t, a, b), batch)  # noqa: B023
        for a, b in ((0, rows // 2), (rows // 2, rows))
    ]
    apart = sum(sums_of(half)[0] for half in halves)
    return not np.allclose(apart, whole[0], rtol=_SAME)


def _largest(values: Vector) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max(initial=0.0))
