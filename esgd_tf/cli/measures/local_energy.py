"""`landscape --local_energy`: the rise of error and loss with noise on the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.measures.measure import Entry, Found, Measure, Shown, numbers, titled
from esgd_tf.runs.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from esgd_tf.cli.measures.bench import Bench, Measured

__all__ = ["LocalEnergy"]


class LocalEnergy(Measure):
    """The local energy of both splits, for error and loss."""

    name = "local_energy"
    what = "error and loss of the weights times 1 + sigma N(0, 1), train and test"
    is_default = True

    def define_flags(self, line: CommandLine) -> None:
        line.text("sigmas", "0.05,0.1,0.15,0.2,0.25,0.3", "--local_energy: strengths of the noise")
        line.integer(
            "perturbations",
            2,
            30,
            "--local_energy, --tolerance: samples of the noise at each strength",
        )

    def check_flags(self, fv: flags.FlagValues) -> None:
        numbers("sigmas", fv.sigmas)

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape

        return landscape.local_energy(
            networks[0].model,
            networks[0].data,
            ["error", "loss"],
            sigmas=numbers("sigmas", bench.fv.sigmas),
            samples=bench.fv.perturbations,
            loss=bench.loss,
            batch_size=bench.fv.batch_size,
            seed=bench.fv.seed,
        )

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        sigmas = entries[0].result.sigmas
        # At most four widths get a column.
        chosen = sorted({round(k * (len(sigmas) - 1) / 3) for k in range(4)})
        rows = []
        for e in entries:
            for split in e.result.increase:
                value, error = e.result.curve(split, "error")
                cells = [f"{100 * value[k]:.2f} ± {100 * error[k]:.2f}" for k in chosen]
                rows.append((e.label, split, *cells))
        header = ("run", "split", *(f"{sigmas[k]:g}" for k in chosen))
        title = "local energy: increase of the error in % points, by sigma (± standard error)"
        return titled(title, header, rows)

    def figure(self, shown: Sequence[Shown]) -> Figure:
        figure = new_figure(8.4, 3.8)
        panels = figure.subplots(1, 2)
        for ax, metric in zip(panels, ("error", "loss"), strict=True):
            for one in shown:
                one.result.plot(ax, color=one.color, label=one.label or "_", metric=metric)
            unit = " (% points)" if metric == "error" else " (nats)"
            ax.set(xlabel="σ of multiplicative noise", ylabel=f"increase of {metric}{unit}")
            ax.grid(alpha=0.3)
        panels[0].legend(fontsize="small")
        if panels[1].get_legend() is not None:
            panels[1].get_legend().remove()
        return figure
