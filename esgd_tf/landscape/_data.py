"""Data that are the same at each pass.

A loss over data is a function of the weights only if each pass sees the same batches. Arrays are
cut into batches once. Whatever else gives batches when it is iterated (a `tf.data.Dataset`, a
`keras.utils.PyDataset`, a data loader) is gone through twice at the beginning, and refused if the
two passes differ.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf import _checks, _keras
from esgd_tf.landscape._batch import KINDS, as_arrays, first_line, leaves, mapped, rows_of, triple
from esgd_tf.landscape._types import Batch, Data

__all__ = ["FixedData"]

_DEFAULT_BATCH_SIZE = 512
# The most batches of a data set that does not know its own length.
_ENDLESS = 10_000


@dataclasses.dataclass
class FixedData:
    """Batches that are the same at each pass, and how many examples they have.

    Args:
        source: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data; None
            for none.
        batch_size: int >= 1. Examples of a batch, for arrays; None for 512.
        for_model: bool. Whether the data go into a Keras model: then there must be some, and arrays
            become what Keras makes of them.

    Attributes:
        count: How many examples there are; 1 without data.
        absent: Whether there are no data.
    """

    source: Data
    batch_size: int | None
    for_model: bool
    count: float = dataclasses.field(default=1.0, init=False)
    absent: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        self._list: list[Batch] | None = None
        if self.source is None:
            if self.for_model:
                raise ValueError("There are no data: give (x, y) arrays or a tf.data.Dataset.")
            self.absent = True
            nothing = tf.zeros([1])
            self._list = [(nothing, nothing, None)]
            return
        if self._gives_batches():
            if self.batch_size is not None:
                raise ValueError(
                    f"`batch_size` is for arrays: a {type(self.source).__name__} comes in batches."
                )
            self.count = self._check_passes()
        else:
            self._slice()
        if self.count <= 0:
            raise ValueError("The data have no examples.")
        if self._all_weights_are_zero():
            raise ValueError("All sample weights are 0: there is nothing to measure.")

    @property
    def is_arrays(self) -> bool:
        """Whether the data are arrays, which are cut into batches here."""
        return not self.absent and not self._gives_batches()

    def batches(self) -> Iterator[Batch]:
        """Return the batches, from the first."""
        if self._list is not None:
            return iter(self._list)
        return (triple(element) for element in self._elements())

    def first(self) -> Batch:
        """Return the first batch."""
        return next(self.batches())

    def examples(self, chosen: NDArray[np.integer[Any]]) -> Data:
        """Return some examples of data that are arrays, as arrays (x, y, sample_weight).

        Args:
            chosen: array of ints. The numbers of the examples.

        Raises:
            ValueError: The data are sparse.
        """

        def take(array: Data) -> Data:
            if isinstance(array, tf.SparseTensor):
                raise ValueError("Sparse data cannot be cut into groups: make them dense.")
            if tf.is_tensor(array) or isinstance(array, tf.RaggedTensor):
                return tf.gather(array, chosen)
            return np.asarray(array)[chosen]

        return tuple(mapped(take, as_arrays(part)) for part in self._parts())

    # ---- arrays ---------------------------------------------------------------------------------

    def _slice(self) -> None:
        size = _DEFAULT_BATCH_SIZE if self.batch_size is None else self.batch_size
        size = _checks.integer("batch_size", size, at_least=1)
        arrays = tuple(as_arrays(part) for part in self._parts())
        lengths = {int(a.shape[0]) if len(a.shape) else 0 for a in leaves(arrays)}
        if len(lengths) != 1:
            raise ValueError(f"The data differ in their number of examples: {sorted(lengths)}.")
        (n,) = lengths
        self.count = float(n)
        if n == 0:
            return
        if self.for_model:
            try:
                cut = _keras.dataset_of_arrays(arrays, batch_size=int(size))
            except (ValueError, TypeError) as reason:
                raise ValueError(f"{KINDS}. Keras says: {first_line(reason)}") from reason
            self._list = [triple(element) for element in cut]
        else:
            self._list = [_rows(arrays, at, at + int(size)) for at in range(0, n, size)]

    def _parts(self) -> tuple[Data, Data, Data]:
        source = self.source
        if isinstance(source, np.ndarray | tf.Tensor | tf.RaggedTensor | tf.SparseTensor | Mapping):
            return source, None, None
        if not isinstance(source, list | tuple) or not 1 <= len(source) <= 3:
            what = type(source).__name__
            if isinstance(source, list | tuple):
                what += f" of {len(source)}"
            raise ValueError(f"{KINDS}; got {what}.")
        return (*source, None, None)[:3]

    def _all_weights_are_zero(self) -> bool:
        if self._list is None:
            return False
        weights = [w for batch in self._list for w in leaves(batch[2])]
        return bool(weights) and not any(bool(tf.reduce_any(w != 0)) for w in weights)

    # ---- data that come in batches --------------------------------------------------------------

    def _gives_batches(self) -> bool:
        source = self.source
        if isinstance(source, tf.data.Dataset | keras.utils.PyDataset):
            return True
        known = list | tuple | Mapping | np.ndarray | tf.Tensor | tf.RaggedTensor | tf.SparseTensor
        return (
            not isinstance(source, known | str | bytes)
            and isinstance(source, Iterable)
            and not hasattr(source, "__array__")
        )

    def _elements(self) -> Iterable[object]:
        source = self.source
        if isinstance(source, keras.utils.PyDataset):
            return (source[k] for k in range(source.num_batches))
        assert isinstance(source, Iterable)
        return source

    def _check_passes(self) -> float:
        """Return the number of examples; refuse data that change from pass to pass or never end."""
        source = self.source
        if _iter_is_once(source):
            raise ValueError(
                "The data are a generator, which can be gone through only once, and a measure "
                "needs many passes: give arrays, or a tf.data.Dataset that ends with `.cache()`."
            )
        endless = "The dataset never ends: limit it with `take` or do not `repeat`."
        limit = None
        if isinstance(source, tf.data.Dataset):
            length = source.cardinality()
            if length == tf.data.INFINITE_CARDINALITY:
                raise ValueError(endless)
            limit = _ENDLESS if length == tf.data.UNKNOWN_CARDINALITY else None
        elif isinstance(source, keras.utils.PyDataset):
            if source.num_batches is None:
                raise ValueError(endless)
        else:
            limit = None if hasattr(source, "__len__") else _ENDLESS
        count, fingerprints = 0.0, []
        for number, element in enumerate(self._elements()):
            if limit is not None and number >= limit:
                raise ValueError(
                    f"The dataset has given {limit:,} batches and does not know how many there "
                    "are. If it never ends, limit it with `take`; if it does, say how long it is "
                    "with `.apply(tf.data.experimental.assert_cardinality(...))`."
                )
            count += float(rows_of(triple(element)[0]))
            fingerprints.append(_fingerprint(element))
        again = (_fingerprint(element) for element in self._elements())
        # Compared element by element, so that the first difference ends it.
        same = all(a == b for a, b in itertools.zip_longest(fingerprints, again))
        if not same:
            raise ValueError(
                "The dataset gives other batches at its second pass (it shuffles anew, or samples "
                "random augmentations), so the loss over it is not a function of the weights: "
                "leave these out, or end it with `.cache()`."
            )
        return count


def _rows(arrays: tuple[Data, ...], start: int, stop: int) -> Batch:
    """Return the rows from start to stop of (x, y, sample_weight) as tensors."""
    x, y, weight = (mapped(lambda a: tf.convert_to_tensor(a[start:stop]), a) for a in arrays)
    return x, y, weight


def _iter_is_once(source: Data) -> bool:
    """Whether data can be gone through only once, as a generator can."""
    return isinstance(source, Iterator)


def _fingerprint(element: object) -> int:
    crc = 0
    for tensor in tf.nest.flatten(element, expand_composites=True):
        array = np.asarray(tensor)
        if array.dtype == object:  # strings: the array holds pointers to them
            for text in array.ravel():
                crc = zlib.crc32(text if isinstance(text, bytes) else str(text).encode(), crc)
                crc = zlib.crc32(b"\0", crc)
        else:
            crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
    return crc
