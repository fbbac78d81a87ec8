"""A bar for work that takes long."""

from __future__ import annotations

from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(total: int | None, what: str, shown: bool | None) -> tqdm:
    """Return a bar on standard error.

    Args:
        total: Steps.
        what: What is done.
        shown: Whether to show it; None for "on a terminal".
    """
    return tqdm(
        total=total, desc=what, leave=False, ncols=80, disable=None if shown is None else not shown
    )
