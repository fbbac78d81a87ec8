"""The order in which a step receives its batch, and batches that are inspected before training.

When a data set ends, TensorFlow finds out inside the step: it asks for one more batch, and the part
of the step that does not need the batch (counters, the pull to the center) runs beside the request
that fails. Everything in a step is therefore made to wait for its batch.

Some batches must be seen before or beside training: gamma_0 is measured when training starts, and
BatchNormalization statistics are estimated from training data. Another pass over a shuffled data
set would change the order of all later passes. These batches are therefore taken from the training
iterator itself: they are fetched, inspected, and then trained on.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

__all__ = ["END", "Batches", "after_arrival"]

# At most this many minibatches of one replica are kept in memory, or fewer if they are large.
_MOST_BATCHES = 50
_MOST_BYTES = 2**28

#: The exceptions that mark the end of an iterator.
END = (StopIteration, tf.errors.OutOfRangeError)


def after_arrival(step: Callable[[Any], Any], data: Any) -> Any:
    """Return a function step(data) whose graph waits until all tensors of data have arrived."""
    tensors = [t for t in tf.nest.flatten(data, expand_composites=True) if tf.is_tensor(t)]
    with tf.control_dependencies(tensors):
        return step(data)


class Batches:
    """Fetches batches from an iterator before the training function does.

    Args:
        records: bool. Whether to keep the first inputs of the first replica. Defaults to False.
        look: callable. Called with the first `ahead` batches before any of them is trained on.
            Defaults to None, which calls nothing.
        ahead: int >= 0. The number of batches for `look`. Defaults to 0.
    """

    def __init__(
        self,
        records: bool = False,
        look: Callable[[list[Any]], None] | None = None,
        ahead: int = 0,
    ) -> None:
        self._look = look
        self._ahead = ahead
        self._waiting: collections.deque[Any] = collections.deque()
        self._is_first = True
        self._records = records
        self._source: Any = None
        self._bytes = 0
        #: Inputs of the first replica, each in a tuple of its own.
        self.recorded: list[tuple[Any]] = []

    def take(self, iterator: Any, count: int) -> Any:
        """Return an iterator that gives the training function its next `count` batches.

        Args:
            iterator: iterator. The iterator from which Keras would take the batches.
            count: int >= 1. Steps per execution.
        """
        if self._is_first:
            self._is_first, self._source = False, iterator
            if self._look is not None:
                self._pull(iterator, -(-self._ahead // count) * count)
                if self._waiting:
                    self._look(list(self._waiting)[: self._ahead])
        # Recording ends with the first pass, since the next one has the same examples again.
        self._records = self._records and iterator is self._source
        if self._records and not self._waiting:
            self._pull(iterator, count)
        if not self._waiting:
            return iterator
        taken = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        for batch in taken:
            self._record(batch)
        return iter(taken)

    def _pull(self, iterator: Any, count: int) -> None:
        # `extend` would lose the batches that came before the end.
        for _ in range(count):
            try:
                self._waiting.append(next(iterator))
            except END:
                return

    def _record(self, batch: Any) -> None:
        if not self._records:
            return
        inputs, _, _ = keras.utils.unpack_x_y_sample_weight(batch[0])
        self.recorded.append((inputs,))
        tensors = tf.nest.flatten(inputs, expand_composites=True)
        self._bytes += sum(t.dtype.size * int(tf.size(t)) for t in tensors)
        self._records = len(self.recorded) < _MOST_BATCHES and self._bytes < _MOST_BYTES
