"""Temporary changes of attributes and functions that belong to other libraries.

A change lasts for the time of a `with` block. Blocks may be nested, and several threads may be in
them at once: an attribute gets its old value when the last block that changed it is left, by an
error too. A function is replaced only for threads that are in a block; others that call it in the
meantime call the old one.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["Functions", "settings"]

# Functions of other libraries, which have no types.
Function = Callable[..., Any]

_lock = threading.Lock()
# For each attribute that is changed, by the id of its owner and its name: the number of blocks that
# hold it, its old value, and its owner.
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
        # The owner is kept alive, so that no other object gets its id.
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
    """Functions that are replaced for the threads that are in a block.

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
        """Replace the functions inside the block."""
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
