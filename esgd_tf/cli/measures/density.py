"""`landscape --density`: the density of the eigenvalues of the Hessian."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.measures.measure import Entry, Found, Measure, in_units, titled

if TYPE_CHECKING:
    from esgd_tf.cli.measures.bench import Bench, Measured
    from esgd_tf.landscape import Row

__all__ = ["Density"]


class Density(Measure):
    """The density of eigenvalues, and their sum."""

    name = "density"
    what = "density of all its eigenvalues, and their sum"
    is_default = True

    def define_flags(self, line: CommandLine) -> None:
        line.integer("probes", 1, 10, "--density, --norms: random vectors")
        line.integer("steps", 1, 100, "--density, --norms: Lanczos steps of each")

    def take(self, bench: Bench, *networks: Measured) -> Found:
        return bench.density(networks[0], bench.fv.units)

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        rows = []
        for e in entries:
            density = e.result
            mean, error = density.mean(lambda t: t)
            small, spread = density.fraction_below(0.01 * density.largest)
            rows.append(
                (
                    e.label,
                    f"{density.largest:.3g}",
                    f"{density.smallest:.3g}",
                    f"{density.size * mean:.4g} ± {density.size * error:.2g}",
                    f"{100 * small:.1f} ± {100 * spread:.1f}",
                )
            )
        title = (
            f"density of eigenvalues{in_units(fv.units)} (± standard error over probes)\n"
            "% small: of the eigenvalues, those below 1 % of the largest in magnitude"
        )
        return titled(title, ("run", "largest", "smallest", "trace", "% small"), rows)

    def numbers(self, entry: Entry) -> Iterator[Row]:
        from esgd_tf.landscape import Row

        density = entry.result
        mean, error = density.mean(lambda t: t)
        yield Row("", "largest node", "", float(density.largest))
        yield Row("", "trace", "", float(density.size * mean), float(density.size * error))
