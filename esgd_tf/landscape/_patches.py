"""Settings of objects that are not ours, changed for the time of a block and put back after it.

Blocks may be nested, and several threads may be in them at once: a setting is put back when the
last block that wants it is left, whatever happens inside. A function is changed for the threads
that are in a block; others that call it in the meantime get what it always was.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["Functions", "settings"]

# Functions of any arguments and results: they are those of other libraries.
Function = Callable[..., Any]

_lock = threading.Lock()
# How many blocks hold a setting, and what it was: by the id of its owner, and its name.
_held: dict[tuple[int, str], tuple[int, object, object]] = {}


@contextlib.contextmanager
def settings(wanted: Sequence[tuple[object, str, object]]) -> Iterator[None]:
    """Let attributes have other values inside the block.

    Args:
        wanted: sequence of (owner, name, value). The attributes to set. Where another block holds
            the same attribute, its value stays.
    """
    taken: list[tuple[object, str]] = []
    try:
        for owner, name, value in wanted:
            _take(owner, name, value)
            taken.append((owner, name))
        yield
    finally:
        for owner, name in reversed(taken):
            _put_back(owner, name)


def _take(owner: object, name: str, value: object) -> None:
    key = (id(owner), name)
    with _lock:
        # The owner is kept, so that its id is no other object's.
        count, before, _ = _held.get(key) or (0, getattr(owner, name), owner)
        if not count:
            setattr(owner, name, value)
        _held[key] = (count + 1, before, owner)


def _put_back(owner: object, name: str) -> None:
    key = (id(owner), name)
    with _lock:
        count, before, _ = _held.pop(key)
        if count > 1:
            _held[key] = (count - 1, before, owner)
        else:
            setattr(owner, name, before)


class Functions:
    """Functions of a module that do something else for the threads that are in the block.

    Args:
        replacements: sequence of (owner, name, function). Each function to replace, and what is
            called in its place, with the function that was there before the arguments.
    """

    def __init__(self, replacements: Sequence[tuple[object, str, Function]]) -> None:
        self._replacements = replacements
        self._thread = threading.local()

    @property
    def active(self) -> bool:
        """Whether this thread is in the block."""
        return getattr(self._thread, "depth", 0) > 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Let the functions be the other ones inside the block."""
        wanted = [
            (owner, name, self._switch(getattr(owner, name), other))
            for owner, name, other in self._replacements
        ]
        with settings(wanted):
            self._thread.depth = getattr(self._thread, "depth", 0) + 1
            try:
                yield
            finally:
                self._thread.depth -= 1

    def _switch(self, before: Function, other: Function) -> Function:
        @functools.wraps(before)
        def either(*arguments: object, **options: object) -> object:
            if self.active:
                return other(before, *arguments, **options)
            return before(*arguments, **options)

        return either
