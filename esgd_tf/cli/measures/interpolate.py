"""`landscape --interpolate`: lines from the first run's network to the others'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.measures.measure import Entry, Found, Measure, Shown, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from esgd_tf.cli.measures.bench import Bench, Measured
    from esgd_tf.landscape import Row

__all__ = ["Interpolate"]


class Interpolate(Measure):
    """The line between two runs' networks."""

    name = "interpolate"
    what = "lines from the first run to each of the others: loss and error"
    is_of_pairs = True

    def define_flags(self, line: CommandLine) -> None:
        line.integer("points", 2, 15, "--plane and --interpolate: points along a direction")
        line.choice("path", ("linear", "spherical"), "linear", "--interpolate: kind of line")

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape

        first, other = networks
        return landscape.interpolate(
            first.model,
            first.model,
            other.model,
            np.unique(np.r_[np.linspace(-0.5, 1.5, 2 * bench.fv.points + 1), 0.0, 1.0]),
            loss=bench.loss,
            data=first.data,
            kind=bench.fv.path,
            gradient_norm=False,
            reestimate=bench.reestimate(first),
            batch_size=bench.fv.batch_size,
        )

    def numbers(self, entry: Entry) -> Iterator[Row]:
        return iter(())  # no one number of it

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        rows = [
            (
                e.label,
                f"{e.result.distance:.4g}",
                *(f"{e.result.barrier(split, 'loss'):.4f}" for split in ("train", "test")),
                *(f"{100 * e.result.barrier(s, 'error'):.2f}" for s in ("train", "test")),
            )
            for e in entries
        ]
        header = ("line", "distance", "loss, train", "test", "error %, train", "test")
        return titled(f"barriers on {fv.path} lines", header, rows)

    def plot(self, ax: Axes, one: Shown) -> None:
        one.result.plot(ax, color=one.color, label=one.label or "_", metric="loss")
        ax.set(xlabel="0 is the first run, 1 the second", ylabel="loss (nats)", yscale="log")
