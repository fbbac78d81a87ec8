"""`landscape --tolerance`: how much noise, and how large a step, a network bears."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.measures.measure import Entry, Found, Measure, Shown, numbers, titled
from esgd_tf.cli.parsers import FlagError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from esgd_tf.cli.measures.bench import Bench, Measured
    from esgd_tf.landscape import Row

__all__ = ["Tolerance"]

_NOISES: tuple[Literal["additive", "multiplicative", "mixed"], ...]
_NOISES = ("additive", "multiplicative", "mixed")
_BOXES: tuple[Literal["additive", "relative"], ...] = ("additive", "relative")


class Tolerance(Measure):
    """The largest noise of three kinds and the largest box of two kinds."""

    name = "tolerance"
    what = "largest noise, and largest step, by which the error rises by no more than --rise"

    def define_flags(self, line: CommandLine) -> None:
        line.text("rise", "0.1", "--tolerance: rise of the error; 0.1 is 10 % points")

    def check_flags(self, fv: flags.FlagValues) -> None:
        if len(numbers("rise", fv.rise)) > 1:
            raise FlagError("--rise is one number")

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape

        (bound,) = numbers("rise", bench.fv.rise)
        model, data = networks[0].model, bench.data(networks[0])
        shared = {"bound": bound, "loss": bench.loss, "batch_size": bench.fv.batch_size}
        found: dict[str, landscape.Result] = {}
        for noise in _NOISES:
            found[f"{noise} noise"] = landscape.pac_bayes_sigma(
                model, data, "error", noise=noise, samples=bench.fv.perturbations, rtol=0.01,
                seed=bench.fv.seed, **shared,
            )  # fmt: skip
        for box in _BOXES:
            found[f"{box} box"] = landscape.worst_case_radius(model, data, box=box, **shared)
        return found

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        rows = []
        for e in entries:
            for name, found in e.result.items():
                noisy = hasattr(found, "sigma")
                value = found.sigma if noisy else found.radius
                shown = f"{value:.3g}" + (f" ± {found.standard_error:.1g}" if noisy else "")
                rows.append((e.label, name, shown if found.bracketed else f"above {value:g}"))
        title = f"what raises the error by no more than {100 * float(fv.rise):g} % points"
        return titled(title, ("run", "of", "largest σ or α"), rows)

    def rows(self, entry: Entry) -> Iterator[Row]:
        for name, found in entry.parts.items():
            for row in found.rows():
                yield row._replace(metric=f"largest {name}")

    def plot(self, ax: Axes, one: Shown) -> None:
        values = [getattr(f, "sigma", None) or f.radius for f in one.result.values()]
        ax.plot(list(one.result), values, "o", color=one.color, label=one.label)
        ax.set(ylabel="largest σ of noise, or α of a box", yscale="log")
        ax.tick_params(axis="x", labelsize="small", rotation=15)
