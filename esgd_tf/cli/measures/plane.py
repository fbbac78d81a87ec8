"""`landscape --plane`: the loss on a plane through the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from esgd_tf.cli.measures.measure import Entry, Found, Measure, Shown, titled
from esgd_tf.runs.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from esgd_tf.cli.measures.bench import Bench, Measured
    from esgd_tf.landscape import Row

__all__ = ["Plane"]


class Plane(Measure):
    """The loss on a plane: of the kept checkpoints, or of two random directions."""

    name = "plane"
    what = (
        "loss on a plane through the weights: that of the run's kept checkpoints "
        "(train.py --keep_every), else two random filter-normalised directions"
    )

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape
        from esgd_tf.runs.checkpoints import load_network

        (network,) = networks
        kept = sorted(network.run.folder.kept.glob("*.keras"))
        pca = len(kept) > 1
        return landscape.plane(
            network.model,
            loss=bench.loss,
            data={bench.fv.split: bench.data(network)},
            directions="pca" if pca else "random",
            trajectory=[load_network(path)[0] for path in kept] if pca else None,
            extent=1e-3 if pca else 1.0,
            points=bench.fv.points,
            reestimate=bench.reestimate(network) if pca else None,
            batch_size=bench.fv.batch_size,
            seed=bench.fv.seed,
        )

    def numbers(self, entry: Entry) -> Iterator[Row]:
        return iter(())  # no one number of it

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        rows = []
        for e in entries:
            (values,) = e.result.values.values()
            middle = values["loss"].shape[0] // 2
            what = "random" if e.result.trajectory is None else "checkpoints"
            center = values["loss"][middle, middle]
            rows.append((e.label, what, f"{center:.4f}", f"{values['loss'].max():.4g}"))
        return titled("planes", ("run", "directions", "loss near the center", "largest"), rows)

    def figure(self, shown: Sequence[Shown]) -> Figure:
        columns = min(len(shown), 3)
        lines = math.ceil(len(shown) / columns)
        figure = new_figure(4.6 * columns, 3.8 * lines)
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax, one in zip(panels, shown, strict=False):
            one.result.plot(ax)
            ax.set_title(one.title, fontsize="medium")
        for ax in panels[len(shown) :]:
            ax.axis("off")
        return figure
