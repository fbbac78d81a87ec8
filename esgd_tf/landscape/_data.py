"""Data that are the same at each pass."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["FixedData"]

_DEFAULT_BATCH_SIZE = 512


@dataclasses.dataclass
class FixedData:
    """Batches that are the same at each pass, and how many examples they have."""

    source: Any
    batch_size: int | None
    needed: bool
    count: float = 1.0
    absent: bool = False

    def __post_init__(self) -> None:
        self._list: list[tuple[Any, Any, Any]] | None = None
        if self.source is None:
            if self.needed:
                raise ValueError("There are no data: give (x, y) arrays or a tf.data.Dataset.")
            self.absent = True
            nothing = tf.zeros([1])
            self._list = [(nothing, nothing, tf.ones([1]))]
        elif isinstance(self.source, tf.data.Dataset):
            if self.batch_size is not None:
                raise ValueError("`batch_size` is for arrays: a tf.data.Dataset comes in batches.")
            if self.source.cardinality() == tf.data.INFINITE_CARDINALITY:
                raise ValueError("The dataset never ends: limit it with `take` or do not `repeat`.")
            self.count = self._check_passes()
        else:
            self._list = self._sliced()
            self.count = sum(float(tf.reduce_sum(w)) for _, _, w in self._list)
        if self.count <= 0:
            raise ValueError("The data have no examples (or all their sample weights are 0).")

    def batches(self) -> Iterator[tuple[Any, Any, Any]]:
        if self._list is not None:
            return iter(self._list)
        return (_with_weight(element) for element in self.source)

    def _sliced(self) -> list[tuple[Any, Any, Any]]:
        if not isinstance(self.source, list | tuple) or len(self.source) not in (2, 3):
            raise ValueError(
                "Data must be (x, y) or (x, y, sample_weight) arrays, or a batched "
                f"tf.data.Dataset; got {type(self.source).__name__}."
            )
        size = _DEFAULT_BATCH_SIZE if self.batch_size is None else self.batch_size
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"`batch_size` must be a positive integer; got {size!r}.")
        arrays = tf.nest.map_structure(
            lambda a: a if tf.is_tensor(a) else np.asarray(a), tuple(self.source)
        )
        lengths = {int(a.shape[0]) if len(a.shape) else 0 for a in tf.nest.flatten(arrays)}
        if len(lengths) != 1:
            raise ValueError(f"The data differ in their number of examples: {sorted(lengths)}.")
        (n,) = lengths
        return [
            _with_weight(
                tf.nest.map_structure(
                    lambda a: tf.convert_to_tensor(a[at : at + size]),  # noqa: B023 - used at once
                    arrays,
                )
            )
            for at in range(0, n, size)
        ]

    def _check_passes(self) -> float:
        """Return the number of examples; refuse a dataset of which two passes differ."""
        count, fingerprints = 0.0, []
        for element in self.source:
            count += float(tf.reduce_sum(_with_weight(element)[2]))
            fingerprints.append(_fingerprint(element))
        again = (_fingerprint(element) for element in self.source)
        # Element by element: the first that differs is enough.
        same = all(a == b for a, b in itertools.zip_longest(fingerprints, again))
        if not same:
            raise ValueError(
                "The dataset gives other batches at its second pass (it shuffles anew, or draws "
                "random augmentations), so the loss over it is not a function of the weights: "
                "leave these out, or end it with `.cache()`."
            )
        return count


def _with_weight(element: Any) -> tuple[Any, Any, Any]:
    if not isinstance(element, list | tuple) or len(element) not in (2, 3):
        raise ValueError(
            "Each element of the data must be a batch (x, y) or (x, y, sample_weight)."
        )
    if len(element) == 3:
        weight = tf.cast(element[2], tf.float32)
        return element[0], element[1], tf.reshape(weight, [-1])
    x = tf.nest.flatten(element[0])[0]
    return element[0], element[1], tf.ones([tf.shape(x)[0]])


def _fingerprint(element: Any) -> int:
    crc = 0
    for tensor in tf.nest.flatten(element):
        crc = zlib.crc32(np.ascontiguousarray(tensor.numpy()).tobytes(), crc)
    return crc
