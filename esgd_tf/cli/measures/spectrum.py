"""`landscape --spectrum`: eigenvalues of the Hessian at both ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.measures.measure import Entry, Found, Measure, Shown, in_units, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from esgd_tf.cli.measures.bench import Bench, Measured
    from esgd_tf.landscape import Row

__all__ = ["Spectrum"]

# The ends of a bulk of eigenvalues never converge, so the products are limited.
_MAX_PRODUCTS = 400


class Spectrum(Measure):
    """The largest and the smallest eigenvalues."""

    name = "spectrum"
    what = "largest and smallest eigenvalues of the Hessian of the loss"
    is_default = True

    def define_flags(self, line: CommandLine) -> None:
        line.integer("eigenvalues", 1, 5, "--spectrum: how many at each end", "k")
        line.choice("units", ("absolute", "weight", "filter"), "absolute",
                    "--spectrum, --density: curvature by the weights, or by relative changes, in "
                    "units of each weight or of the norm of its filter")  # fmt: skip

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape

        hessian = bench.curvature(networks[0], bench.fv.units)
        k = min(bench.fv.eigenvalues, hessian.shape[0])
        settings = {"tol": 1e-3, "max_matvecs": _MAX_PRODUCTS, "seed": bench.fv.seed}
        return {
            "largest": landscape.eigenpairs(hessian, k, "LA", **settings),
            "smallest": landscape.eigenpairs(hessian, k, "SA", **settings),
        }

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        rows = []
        for e in entries:
            ends = e.result["largest"].eigenvalues, e.result["smallest"].eigenvalues[::-1]
            bad = sum(int((~pairs.converged).sum()) for pairs in e.result.values())
            shown = [" ".join(f"{v:.3g}" for v in end[:3]) for end in ends]
            rows.append((e.label, *shown, str(bad) if bad else "-"))
        title = f"eigenvalues of the Hessian{in_units(fv.units)} (the first three at each end)"
        return titled(title, ("run", "largest", "smallest", "not converged"), rows)

    def rows(self, entry: Entry) -> Iterator[Row]:
        for end, pairs in entry.parts.items():
            for row in pairs.rows():
                yield row._replace(metric=f"{end} {row.metric}")

    def numbers(self, entry: Entry) -> Iterator[Row]:
        return (row for row in self.rows(entry) if row.at == 1)

    def plot(self, ax: Axes, one: Shown) -> None:
        top, low = (one.result[end].eigenvalues for end in ("largest", "smallest"))
        low = low[::-1]
        ax.plot(range(1, len(top) + 1), top, "o-", color=one.color, label=one.label)
        ax.plot(range(1, len(low) + 1), low, "v:", color=one.color)
        ax.locator_params(axis="x", integer=True)
        ax.set(xlabel="rank from the end", ylabel="eigenvalue: largest ●, smallest ▼")
        ax.set_yscale("symlog", linthresh=1e-2)
