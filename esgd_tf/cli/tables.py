"""Tables of several runs in 80 columns, and the names of runs in them, without TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Sequence

from esgd_tf.runs.stored_run import StoredRun

__all__ = ["cut", "kind_of", "label_of", "markdown_table", "place_of", "plain_table"]

_WIDTH = 80
# Settings that are ignored when runs are compared: the seed, and what is shown and kept.
_DECIDES_NOTHING = ("seed", "monitor", "checkpoint_steps", "keep_every")
# Columns of words, which are aligned to the left.
_LEFT = ("model", "corrupt", "optimizer", "split", "method", "directions")


def kind_of(run: StoredRun) -> str:
    """Return everything but the seed that decides the result of a run."""
    settings = {k: v for k, v in run.run.items() if k not in _DECIDES_NOTHING}
    return json.dumps([dict(run.experiment), settings], sort_keys=True)


def label_of(run: StoredRun) -> str:
    """Return the optimizer of a run, in words."""
    e = run.experiment
    return e["optimizer"] + (f", L = {e['langevin_steps']}" if e["langevin_steps"] else "")


def place_of(run: StoredRun) -> str:
    """Return the name of the weights of a run's network: its anchor, or its replicas' center."""
    return "center" if run.experiment.get("replicas", 1) > 1 else "anchor"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a README."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |" for r in cells)


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of at most 80 columns; a first column too wide for it is cut in the middle."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rest = sum(widths[1:]) + 2 * (len(widths) - 1)
    widths[0] = min(widths[0], max(_WIDTH - rest, 8))
    lines = []
    for row in [header, *rows]:
        first = f"{cut(row[0], widths[0]):<{widths[0]}}"
        # Names are aligned to the left, numbers to the right.
        others = [
            f"{cell:<{width}}" if name in _LEFT else f"{cell:>{width}}"
            for name, cell, width in zip(header[1:], row[1:], widths[1:], strict=True)
        ]
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def cut(text: str, width: int) -> str:
    """Return a text cut to at most `width` characters by leaving out its middle."""
    if len(text) <= width:
        return text
    kept = width - 1
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
