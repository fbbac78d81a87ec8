"""Batches on their way to training: state waits for them, and what is looked at is what it gets.

When a data set ends, TensorFlow finds out inside the step: it asks for one more batch, and the part
of the step that does not need the batch (counters, the pull to the center) runs beside the request
that fails. Everything in a step is therefore made to wait for its batch.

Some batches must be seen before or beside training: gamma_0 is measured where training starts, and
BatchNormalization statistics are estimated from training data. Another pass over a shuffled data
set would shift the order of all passes after it. So these batches are taken off the way of training
itself: pulled from its iterator, looked at, and trained on.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

__all__ = ["END", "Batches", "after_arrival"]

# Kept in memory of what passes by: so many minibatches of one replica, or fewer large ones.
_MOST_BATCHES = 50
_MOST_BYTES = 2**28

#: What says that an iterator has come to its end.
END = (StopIteration, tf.errors.OutOfRangeError)


def after_arrival(step: Callable[[Any], Any], data: Any) -> Any:
    """Return step(data), no part of which runs in a graph before all tensors of data are there."""
    tensors = [t for t in tf.nest.flatten(data, expand_composites=True) if tf.is_tensor(t)]
    with tf.control_dependencies(tensors):
        return step(data)


class Batches:
    """Takes batches off an iterator before a training function does.

    Args:
        records: bool. Whether to keep inputs of the first replica, the first that pass by. Defaults
            to False.
        look: callable. Called with the first `ahead` batches before any of them is trained on.
            Defaults to None, which looks at none.
        ahead: int >= 0. How many batches to look at. Defaults to 0.
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
        """Return what a training function should get its next `count` batches from.

        Args:
            iterator: iterator. Where Keras would get the batches.
            count: int >= 1. Steps per execution.
        """
        if self._is_first:
            self._is_first, self._source = False, iterator
            if self._look is not None:
                self._pull(iterator, -(-self._ahead // count) * count)
                if self._waiting:
                    self._look(list(self._waiting)[: self._ahead])
        # The next pass would show the same examples again.
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
        # Not by `extend`: what came before the end is kept.
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
