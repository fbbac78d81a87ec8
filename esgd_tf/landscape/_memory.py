"""Free memory, and errors for arrays that do not fit into it, before hours are spent on them."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

__all__ = ["free_memory", "gib", "refuse", "require", "rows_that_fit"]

# The part of free memory that may be taken: the network and the products need some as well.
_SHARE = 0.8


def free_memory() -> int | None:
    """Return the bytes that can be had without swapping; None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None
    except OSError:
        return None


def require(needed: int, what: str, instead: str) -> None:
    """Raise an error if something does not fit into free memory.

    Args:
        needed: int >= 0. How many bytes are needed.
        what: str. What they are for, as the beginning of a sentence.
        instead: str. What to do, as its end.

    Raises:
        MemoryError: Fewer bytes than that may be taken.
    """
    free = free_memory()
    if free is not None and needed > _SHARE * free:
        refuse(needed, what, instead)


def refuse(needed: int, what: str, instead: str) -> NoReturn:
    """Raise the MemoryError of `require`."""
    raise MemoryError(
        f"{what} takes {gib(needed)} GiB and {gib(free_memory() or 0)} GiB of memory are free, of "
        f"which {_SHARE:.0%} may be taken: {instead}."
    )


def rows_that_fit(each: int, rows: int, multiple: int = 1) -> int:
    """Return how many of some rows fit into memory at once.

    Args:
        each: int >= 1. How many bytes a row takes.
        rows: int >= 1. How many rows there are.
        multiple: int >= 1. Of what number the answer is to be a multiple where not all fit, if it
            can be: products come in blocks. Defaults to 1.

    Returns:
        A number from 0 to `rows`.
    """
    free = free_memory()
    if free is None or each * rows <= _SHARE * free:
        return rows
    fit = int(_SHARE * free // each)
    return fit - fit % multiple if fit > multiple else fit


def gib(number: float) -> str:
    """Return bytes as a number of GiB to read."""
    size = number / 2**30
    return f"{size:,.1f}" if size >= 0.05 else f"{size:.2g}"
