"""A batch (x, y, sample_weight): making the data that users give into tensors, and cutting rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from esgd_tf.landscape._types import Batch, Data, Nested, Tensors

__all__ = ["KINDS", "as_arrays", "cut_rows", "first_line", "leaves", "mapped", "rows_of", "triple"]

#: What data may be, as the beginning of an error's message.
KINDS = (
    "Data must be (x, y) or (x, y, sample_weight) arrays, or a batched tf.data.Dataset or other "
    "object that gives such batches at each pass"
)


def rows_of(x: Nested) -> tf.Tensor:
    """Return the number of examples of a batch of inputs, an int32 scalar."""
    first = next(t for t in tf.nest.flatten(x) if t is not None)
    if isinstance(first, tf.SparseTensor):
        return tf.cast(first.dense_shape[0], tf.int32)
    if isinstance(first, tf.RaggedTensor):
        return tf.cast(first.nrows(), tf.int32)
    return tf.shape(first)[0]


def cut_rows(value: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
    """Return the rows from start to stop of a tensor of any kind."""
    if isinstance(value, tf.SparseTensor):
        shape = value.dense_shape
        begin = tf.concat([[tf.cast(start, tf.int64)], tf.zeros_like(shape[1:])], 0)
        size = tf.concat([[tf.cast(stop - start, tf.int64)], shape[1:]], 0)
        return tf.sparse.slice(value, begin, size)
    return value[start:stop]


def triple(element: object) -> Batch:
    """Return an element of a data set as (x, y, sample_weight), with None for a part it lacks."""
    if not isinstance(element, list | tuple):
        element = (element,)
    if not 1 <= len(element) <= 3:
        raise ValueError(
            "Each element of the data must be a batch (x, y) or (x, y, sample_weight); got "
            f"{len(element)} parts."
        )
    x, y, weight = (mapped(_as_tensor, part) for part in (*element, None, None)[:3])
    if any(t.shape.rank == 0 for t in leaves(x)):
        raise ValueError("The data come one example at a time: end the dataset with `.batch(n)`.")
    return x, y, weight


def _as_tensor(value: object) -> tf.Tensor:
    return value if isinstance(value, tf.RaggedTensor | tf.SparseTensor) else _tensor(value)


def _tensor(value: object) -> tf.Tensor:
    try:
        return tf.convert_to_tensor(value)
    except (TypeError, ValueError) as reason:
        raise ValueError(
            f"The data hold a {type(value).__name__} that is no array: {first_line(reason)}"
        ) from reason


def as_arrays(part: Data) -> Data:
    """Return Python lists of numbers, however deep, as arrays; structures of arrays as they are."""
    if part is None or isinstance(part, Mapping):
        return part if part is None else {k: as_arrays(v) for k, v in part.items()}
    if isinstance(part, list | tuple):
        if any(hasattr(leaf, "shape") for leaf in tf.nest.flatten(part)):
            return type(part)(as_arrays(p) for p in part)
        try:
            array = np.asarray(part)
        except ValueError:
            raise ValueError(
                "The data hold a list of lists of different lengths: make a rectangular array of "
                "it, or a tf.RaggedTensor."
            ) from None
        if array.dtype == object:
            raise ValueError(f"The data hold a list of what are no numbers: {part[:1]!r} ...")
        return tf.constant(array) if array.dtype.kind in "US" else array
    if not hasattr(part, "shape"):
        if not hasattr(part, "__array__"):
            raise ValueError(f"{KINDS}; got a {type(part).__name__} in them.")
        part = np.asarray(part)
    if isinstance(part, np.ndarray) and part.dtype.kind in "OUS":
        # Keras knows strings as tensors.
        try:
            return tf.constant(part.astype(object), tf.string)
        except (TypeError, ValueError):
            raise ValueError(
                f"The data hold an array of what are no numbers: {part[:1]!r}"
            ) from None
    return part


def mapped(function: Callable[[tf.Tensor], tf.Tensor], part: Nested) -> Nested:
    """Return a structure with a function applied to its tensors; None stays None."""
    return tf.nest.map_structure(lambda leaf: None if leaf is None else function(leaf), part)


def leaves(part: Nested) -> Tensors:
    """Return the tensors of a structure, without None."""
    return [leaf for leaf in tf.nest.flatten(part) if leaf is not None]


def first_line(reason: Exception) -> str:
    """Return the first line of an error's message."""
    return str(reason).strip().splitlines()[0]
