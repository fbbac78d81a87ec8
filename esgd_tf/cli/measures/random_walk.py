"""`landscape --random_walk`: the steps of random walks before the loss has risen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.measures.measure import Entry, Found, Measure, Shown, numbers, titled
from esgd_tf.cli.parsers import FlagError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from esgd_tf.cli.measures.bench import Bench, Measured
    from esgd_tf.landscape import Row

__all__ = ["RandomWalk"]


class RandomWalk(Measure):
    """Random walks that start at the network's weights."""

    name = "random_walk"
    what = "free random walks until the loss has risen by --threshold"

    def define_flags(self, line: CommandLine) -> None:
        line.text("threshold", "0.1", "--random_walk: rise of the loss that ends a walk")
        line.text("step_size", "0.005", "--random_walk: standard deviation of a step")

    def check_flags(self, fv: flags.FlagValues) -> None:
        if any(len(numbers(name, fv[name].value)) > 1 for name in ("threshold", "step_size")):
            raise FlagError("--threshold and --step_size are one number each")

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape

        (network,) = networks
        (threshold,) = numbers("threshold", bench.fv.threshold)
        (step_size,) = numbers("step_size", bench.fv.step_size)
        return landscape.random_walk(
            network.model,
            bench.loss,
            bench.data(network),
            threshold=bench.hessian(network).loss() + threshold,
            step_size=step_size,
            walks=5,
            batch_size=bench.fv.batch_size,
            seed=bench.fv.seed,
        )

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        rows = []
        for e in entries:
            walk = e.result
            mean, error = walk.mean_escape_step
            escaped = f"{mean:.1f} ± {error:.1f}" if math.isfinite(mean) else "not all escaped"
            rows.append((e.label, escaped, f"{walk.threshold:.4f}"))
        return titled("random walks", ("run", "escape step", "threshold"), rows)

    def numbers(self, entry: Entry) -> Iterator[Row]:
        from esgd_tf.landscape import Row

        mean, error = entry.result.mean_escape_step
        if math.isfinite(mean):
            yield Row("", "escape step", "", float(mean), float(error))

    def plot(self, ax: Axes, one: Shown) -> None:
        super().plot(ax, one)
        ax.set(xlabel="step", ylabel="loss (nats)", title="")
