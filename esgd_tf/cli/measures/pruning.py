"""`landscape --pruning`: error and loss without the smallest weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.measures.measure import (
    Entry,
    Found,
    Measure,
    Shown,
    error_and_loss,
    numbers,
    titled,
)
from esgd_tf.cli.parsers import FlagError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from esgd_tf.cli.measures.bench import Bench, Measured

__all__ = ["Pruning"]


class Pruning(Measure):
    """Pruning of both splits."""

    name = "pruning"
    what = "error and loss without the smallest weights, train and test"

    def define_flags(self, line: CommandLine) -> None:
        line.text(
            "fractions", "0.2,0.4,0.6,0.8,0.9,0.95", "--pruning: of the weights that become 0"
        )
        line.choice(
            "smallest",
            ("network", "layer"),
            "network",
            "--pruning: of the network or of each layer",
        )

    def check_flags(self, fv: flags.FlagValues) -> None:
        values = numbers("fractions", fv.fractions)
        if any(v > 1 for v in values):
            raise FlagError(f"--fractions={fv.fractions}: must be numbers from 0 to 1")

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape

        return landscape.pruning(
            networks[0].model,
            networks[0].data,
            numbers("fractions", bench.fv.fractions),
            per=bench.fv.smallest,
            loss=bench.loss,
            batch_size=bench.fv.batch_size,
        )

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        at = entries[0].result.fractions
        # At most five columns of width.
        chosen = sorted({round(k * (len(at) - 1) / 4) for k in range(5)})
        rows = [
            (
                e.label,
                split,
                f"{100 * e.result.reference[split]['error']:.2f}",
                *(f"{100 * by_metric['error'][k]:.2f}" for k in chosen),
            )
            for e in entries
            for split, by_metric in e.result.values.items()
        ]
        header = ("run", "split", "whole", *(f"{at[k]:g}" for k in chosen))
        return titled(
            f"error (%) without so many of the weights, smallest of each {entries[0].result.per}",
            header,
            rows,
        )

    def figure(self, shown: Sequence[Shown]) -> Figure:
        return error_and_loss(shown)
