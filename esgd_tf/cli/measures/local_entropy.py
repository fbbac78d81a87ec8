"""`landscape --local_entropy`: by Langevin chains, and by the density of eigenvalues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.measures.measure import Entry, Found, Measure, Shown, numbers, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from esgd_tf.cli.measures.bench import Bench, Measured

__all__ = ["LocalEntropy"]


class LocalEntropy(Measure):
    """Local entropy, by chains and by the density."""

    name = "local_entropy"
    what = "local entropy by Langevin chains, and by the density of eigenvalues"

    def define_flags(self, line: CommandLine) -> None:
        line.text("gammas", "1,10,100", "--local_entropy: scopes; the largest is the reference")
        line.integer("chain_steps", 8, 200, "--local_entropy: Langevin steps at each of its nodes")

    def check_flags(self, fv: flags.FlagValues) -> None:
        numbers("gammas", fv.gammas, 2)

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape

        gammas = numbers("gammas", bench.fv.gammas, 2)
        langevin = landscape.local_entropy(
            networks[0].model,
            bench.loss,
            bench.data(networks[0]),
            gammas,
            burn_in=max(bench.fv.chain_steps // 4, 8),
            samples=bench.fv.chain_steps,
            batch_size=bench.fv.batch_size,
            seed=bench.fv.seed,
        )
        laplace = landscape.laplace_local_entropy(
            bench.hessian(networks[0]), gammas, spectrum=bench.density(networks[0])
        )
        return {"langevin": langevin, "laplace": laplace}

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        rows = []
        for e in entries:
            for method, found in e.result.items():
                cells = [
                    f"{v:.3g} ± {s:.1g}"
                    for v, s in zip(found.excess[:-1], found.standard_errors, strict=False)
                ]
                rows.append((e.label, method + ("" if found.converged else "*"), *cells))
        gammas = entries[0].result["langevin"].gammas
        header = ("run", "method", *(f"{g:g}" for g in gammas[:-1]))
        title = (
            f"local entropy relative to that of a flat loss and to gamma = {gammas[-1]:g}, by gamma"
        )
        table = titled(title, header, rows)
        if any(not e.result["langevin"].converged for e in entries):
            table += "\n* the chains have not converged: raise --chain_steps or --gammas"
        return table

    def plot(self, ax: Axes, one: Shown) -> None:
        for method, found in one.result.items():
            found.plot(ax, color=one.color, label=f"{one.label}, {method}" if one.label else "_")
