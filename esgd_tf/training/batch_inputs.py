"""The inputs of a network, batch by batch, from what Keras users pass as data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

__all__ = ["input_batches"]

_WANTED = "`data` must be batches, (inputs, ...) tuples or inputs"


def input_batches(data: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Yield the number of examples and the inputs, as tensors, of every batch that has examples.

    A batch is a tuple or list (inputs, targets, weights), of which the last one or two may be
    missing, or else bare inputs: an array or a dict of arrays. Several inputs are one tuple or
    dict: ((x1, x2), targets). With a distributed dataset, the parts of one batch that lie on the
    devices of this process are joined again.

    Args:
        data: iterable of batches. A `tf.data.Dataset`, a distributed dataset, a
            `keras.utils.PyDataset`, a generator or a list. Whole arrays are refused, for there is
            no telling rows from batches.

    Raises:
        TypeError: `data` is nothing to iterate over.
        ValueError: `data` is arrays instead of batches, or never ends, or a batch is not of the
            form above.
    """
    _refuse_what_is_no_batches(data)
    for batch in data:
        if isinstance(batch, list | tuple) and not 1 <= len(batch) <= 3:
            raise ValueError(
                f"A batch is inputs, (inputs, targets) or (inputs, targets, weights), and this "
                f"one has {len(batch)} parts: put several inputs into one tuple, ((x1, x2), y)."
            )
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        inputs = keras.tree.map_structure(_tensor, inputs)
        leaves = [leaf for leaf in keras.tree.flatten(inputs) if leaf is not None]
        if not leaves or any(leaf.shape.rank == 0 for leaf in leaves):
            raise ValueError(
                f"{_WANTED}, whose first axis counts the examples, and one of its elements is "
                f"{_described(batch)}."
            )
        examples = int(leaves[0].shape[0])
        if examples:
            yield examples, inputs


def _refuse_what_is_no_batches(data: Any) -> None:
    whole = None
    if _is_array(data) or isinstance(data, Mapping):
        whole = _described(data)
    elif isinstance(data, tuple) and any(_is_array(d) or isinstance(d, Mapping) for d in data):
        whole = "a tuple of " + " and ".join(_described(part) for part in data)
    if whole is not None:
        raise ValueError(
            f"{_WANTED}, and this is {whole}: pass "
            "tf.data.Dataset.from_tensor_slices(data).batch(128), or [data] if it is one batch."
        )
    if not isinstance(data, Iterable):
        raise TypeError(f"{_WANTED}, to iterate over; got {_described(data)}.")
    if (
        isinstance(data, tf.data.Dataset)
        and int(data.cardinality()) == tf.data.INFINITE_CARDINALITY
    ) or (isinstance(data, keras.utils.PyDataset) and data.num_batches is None):
        raise ValueError(
            "`data` never ends: pass as many of its batches as shall be used, such as "
            "dataset.take(50)."
        )


def _tensor(leaf: Any) -> Any:
    if isinstance(leaf, tf.distribute.DistributedValues):
        parts = tf.distribute.get_strategy().experimental_local_results(leaf)
        return tf.concat(parts, axis=0)
    if leaf is None or isinstance(leaf, tf.RaggedTensor | tf.SparseTensor):
        return leaf
    return tf.convert_to_tensor(leaf)


def _is_array(data: Any) -> bool:
    # Tensors, Keras variables, data frames and other libraries' arrays have it too.
    return hasattr(data, "__array__") or isinstance(data, tf.RaggedTensor | tf.SparseTensor)


def _described(data: Any) -> str:
    if isinstance(data, Mapping):
        return f"a dict with the keys {', '.join(map(repr, data))}"
    shape = getattr(data, "shape", None)
    if shape is None:
        return f"{type(data).__name__} {data!r:.60}"
    return f"an array of shape {tuple(shape)}"
