"""`landscape --m_sharpness`: the sharpness that SAM lowers, of groups of examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.measures.measure import Entry, Found, Measure, Shown, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from esgd_tf.cli.measures.bench import Bench, Measured
    from esgd_tf.landscape import Row

__all__ = ["MSharpness"]


class MSharpness(Measure):
    """SAM's and ASAM's sharpness of groups."""

    name = "m_sharpness"
    what = "SAM's and ASAM's sharpness of groups of --group images: mean and worst"

    def define_flags(self, line: CommandLine) -> None:
        line.integer("group", 1, 128, "--m_sharpness: images of a group, at most all")

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape

        data = bench.data(networks[0])
        return {
            kind: landscape.m_sharpness(
                networks[0].model,
                bench.loss,
                data,
                m=min(bench.fv.group, len(data[1])),
                kind=kind,
                batch_size=bench.fv.batch_size,
                seed=bench.fv.seed,
            )
            for kind in ("sam", "asam")
        }

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        rows = []
        for e in entries:
            cells = []
            for found in e.result.values():
                cells += [f"{found.mean:.4g} ± {found.standard_error:.1g}", f"{found.worst:.4g}"]
            rows.append((e.label, *cells))
        m = entries[0].result["sam"].m
        title = f"sharpness of groups of {m:,} images (± standard error over groups)"
        return titled(title, ("run", "sam", "worst", "asam", "worst"), rows)

    def rows(self, entry: Entry) -> Iterator[Row]:
        for found in entry.parts.values():
            for row in found.rows():
                # A single group has no spread.
                missing = row.standard_error != row.standard_error
                yield row._replace(standard_error="") if missing else row

    def plot(self, ax: Axes, one: Shown) -> None:
        for kind, shade in (("sam", 1.0), ("asam", 0.5)):
            found = one.result[kind]
            values = sorted(found.values, reverse=True)
            label = f"{one.label}, {kind}" if one.label else "_"
            ranks = range(1, len(values) + 1)
            ax.plot(ranks, values, ".-", color=one.color, alpha=shade, label=label)
        ax.set(xlabel="group, sorted", ylabel="sharpness of a group")
        ax.locator_params(axis="x", integer=True)  # groups are counted
