"""A bar for work that takes long."""

from __future__ import annotations

from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(total: int | None, what: str, shown: bool | None) -> tqdm:
    """Return a bar on standard error.

    Args:
        total: int >= 0. How many steps there are; None where it is not known.
        what: str. What is done.
        shown: bool. Whether to show the bar; None shows it on a terminal.
    """
    return tqdm(
        total=total, desc=what, leave=False, ncols=80, disable=None if shown is None else not shown
    )
