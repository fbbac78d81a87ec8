"""`landscape --quantization`: error and loss with rounded kernels."""

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

__all__ = ["Quantization"]


class Quantization(Measure):
    """Quantization of both splits."""

    name = "quantization"
    what = "error and loss with kernels rounded to few bits, train and test"

    def define_flags(self, line: CommandLine) -> None:
        line.text("bits", "8,7,6,5,4,3,2", "--quantization: bits of a weight")
        line.choice(
            "scale",
            ("channel", "tensor"),
            "channel",
            "--quantization: each filter or each kernel has a scale",
        )

    def check_flags(self, fv: flags.FlagValues) -> None:
        values = numbers("bits", fv.bits)
        if any(v != int(v) or not 2 <= v <= 24 for v in values):
            raise FlagError(f"--bits={fv.bits}: must be whole numbers from 2 to 24")

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape

        return landscape.quantization(
            networks[0].model,
            networks[0].data,
            [int(b) for b in numbers("bits", bench.fv.bits)],
            per=bench.fv.scale,
            loss=bench.loss,
            batch_size=bench.fv.batch_size,
        )

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        at = entries[0].result.bits
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
        header = ("run", "split", "float", *(f"{at[k]:g}" for k in chosen))
        return titled(
            f"error (%) with kernels rounded to so many bits, scale per {entries[0].result.per}",
            header,
            rows,
        )

    def figure(self, shown: Sequence[Shown]) -> Figure:
        return error_and_loss(shown)
