"""Stops a run when a signal asks for it, without losing its state."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import keras
import tensorflow as tf

__all__ = ["Guard", "Interrupted"]


class Interrupted(BaseException):
    """A signal asked the run to stop; carries the signal's number.

    Like KeyboardInterrupt it is not an `Exception`: TensorFlow, which may be tracing when it comes,
    would take an `Exception` for an error in the traced code.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class Guard(keras.callbacks.Callback):
    """Stops a run that a signal asks to stop, between two steps.

    Used as a context manager around `fit`, it takes SIGINT (Ctrl-C), SIGTERM, which schedulers
    send before they take a machine away, and SIGHUP, which a closed terminal sends. The first
    signal lets the step under way end; a second SIGINT ends the process at once. While the first
    step is still being traced, which takes minutes for many replicas, there is none to wait for.
    Several processes all stop after the same step, whichever of them got the signal.

    Args:
        gather: callable. Returns the numbers of all processes; see `Processes`. Defaults to None,
            which means that there are no others.
        alone: bool. Whether there is one process only. Defaults to True.
    """

    def __init__(
        self, gather: Callable[[int], list[int]] | None = None, *, alone: bool = True
    ) -> None:
        super().__init__()
        self._alone = alone
        self._has_stepped = False
        self._received: int | None = None
        self._previous: dict[int, Any] = {}
        self._gather = gather or (lambda value: [value])

    def __enter__(self) -> Guard:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup makes a process ignore that its terminal was closed.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
        if self._alone and not self._has_stepped and tf.inside_function():
            raise Interrupted(number)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Raise if a signal has come.

        Raises:
            Interrupted: A signal has come.
        """
        self._has_stepped = True
        # After the last minibatch the epoch is completed first, since otherwise its line and its
        # validation would be missing for good.
        if batch + 1 < (self.params or {}).get("steps", 0):
            self._stop_if_asked()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Raise if a signal has come during validation.

        Raises:
            Interrupted: A signal has come.
        """
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        received = max(self._gather(self._received or 0))
        if received:
            raise Interrupted(received)
