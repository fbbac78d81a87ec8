"""`landscape --sharpness`: four kinds of sharpness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from esgd_tf.cli.measures.measure import Entry, Found, Measure, Shown, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from esgd_tf.cli.measures.bench import Bench, Measured

__all__ = ["Sharpness"]


class Sharpness(Measure):
    """All kinds of sharpness."""

    name = "sharpness"
    what = "sharpness: of the ascent, Keskar's, SAM's and ASAM's"
    is_default = True

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape

        return {
            kind: landscape.sharpness(
                networks[0].model,
                bench.loss,
                bench.data(networks[0]),
                kind=kind,
                # Fast enough that a valley is left by distance, not by the number of steps.
                step_size=0.01,
                max_steps=200 if kind == "ascent" else None,
                batch_size=bench.fv.batch_size,
            )
            for kind in ("ascent", "epsilon", "sam", "asam")
        }

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        kinds = list(entries[0].result)
        rows = [(e.label, *(f"{e.result[k].value:.3g}" for k in kinds)) for e in entries]
        return titled("sharpness", ("run", *kinds), rows)

    def plot(self, ax: Axes, one: Shown) -> None:
        kinds = list(one.result)
        # A logarithmic axis cannot show a value of 0 or less.
        values = [one.result[k].value for k in kinds]
        ax.plot(kinds, values, "o", color=one.color, label=one.label)
        ax.set(ylabel="sharpness (each kind has its own unit)")
        ax.set_yscale("symlog", linthresh=1e-3)
