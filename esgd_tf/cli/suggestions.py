"""Suggestions for mistyped names, in one style for all kinds of names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

__all__ = ["dashed", "did_you_mean"]

# A flag's name of at most this many letters is shown with one dash; every flag takes one or two.
_LETTERS = 3


def dashed(name: str) -> str:
    """Return a flag's name with its dashes: one for the shortest names, else two."""
    return f"-{name}" if len(name) <= _LETTERS else f"--{name}"


def did_you_mean(word: str, names: Iterable[str], shown: Callable[[str], str] = str) -> str:
    """Return "; did you mean NAME?", or "" if no name is similar.

    Args:
        word: str. The word that was typed.
        names: iterable of str. The names that exist.
        shown: callable. Returns a name as it is shown. Defaults to str, which changes nothing.
    """
    # Names that differ only in capitals, or in dashes for underscores, count as equal.
    by_plain = {_plain(name): name for name in reversed(list(names))}
    plain = _plain(str(word))
    near = difflib.get_close_matches(plain, by_plain, n=5)
    # Among equally similar names, the first is one with the same letters in another order.
    near = sorted(near, key=lambda name: (-_ratio(name, plain), sorted(name) != sorted(plain)))
    if not near and len(plain) >= _LETTERS:
        near = sorted((name for name in by_plain if name.startswith(plain)), key=len)
    return f"; did you mean {shown(by_plain[near[0]])}?" if near else ""


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
