"""What somebody may have meant who typed a name that there is not: one style for all names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

__all__ = ["dashed", "did_you_mean"]

# A flag's name of no more letters is shown with one dash; all take one or two.
_LETTERS = 3


def dashed(name: str) -> str:
    """Return a flag's name with its dashes: one for the shortest names, else two."""
    return f"-{name}" if len(name) <= _LETTERS else f"--{name}"


def did_you_mean(word: str, names: Iterable[str], shown: Callable[[str], str] = str) -> str:
    """Return "; did you mean NAME?", or nothing where no name is near.

    Args:
        word: str. What was typed.
        names: iterable of str. What there is.
        shown: callable. Returns a name as it is shown. Defaults to str, which changes nothing.
    """
    # Capitals, and a dash for an underscore, are no different name.
    by_plain = {_plain(name): name for name in reversed(list(names))}
    plain = _plain(str(word))
    near = difflib.get_close_matches(plain, by_plain, n=5)
    # Of those that are equally near, the one whose letters stand in another order only.
    near = sorted(near, key=lambda name: (-_ratio(name, plain), sorted(name) != sorted(plain)))
    if not near and len(plain) >= _LETTERS:
        near = sorted((name for name in by_plain if name.startswith(plain)), key=len)
    return f"; did you mean {shown(by_plain[near[0]])}?" if near else ""


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
