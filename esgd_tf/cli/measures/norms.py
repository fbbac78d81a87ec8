"""`landscape --norms`: Fisher-Rao norm, Frobenius norm and effective dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.measures.measure import Entry, Found, Measure, Shown, numbers, titled
from esgd_tf.cli.parsers import FlagError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from esgd_tf.cli.measures.bench import Bench, Measured

__all__ = ["Norms"]


class Norms(Measure):
    """Norms of curvature matrices, and the effective dimension."""

    name = "norms"
    what = "Fisher-Rao and Frobenius norm, and effective dimension at --ridge"

    def define_flags(self, line: CommandLine) -> None:
        line.text("ridge", "0.1", "--norms: gamma of the effective dimension")

    def check_flags(self, fv: flags.FlagValues) -> None:
        if len(numbers("ridge", fv.ridge)) > 1:
            raise FlagError("--ridge is one number")

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape

        (network,) = networks
        gauss_newton = landscape.GaussNewtonOperator(
            network.model, bench.loss, bench.data(network), batch_size=bench.fv.batch_size
        )
        # Of the Gauss-Newton matrix, which has no negative eigenvalue.
        return {
            "fisher_rao": landscape.fisher_rao_norm(gauss_newton),
            "frobenius": landscape.frobenius_norm(bench.hessian(network), seed=bench.fv.seed),
            "dimension": landscape.effective_dimension(
                gauss_newton,
                numbers("ridge", bench.fv.ridge),
                num_probes=bench.fv.probes,
                num_steps=bench.fv.steps,
                seed=bench.fv.seed,
            ),
        }

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        rows = []
        for e in entries:
            frobenius, dimension = e.result["frobenius"], e.result["dimension"]
            rows.append(
                (
                    e.label,
                    f"{e.result['fisher_rao'].estimate:.4g}",
                    f"{frobenius.estimate:.4g} ± {frobenius.standard_error:.1g}",
                    f"{dimension.values[0]:.4g} ± {dimension.standard_errors[0]:.1g}",
                )
            )
        title = (
            "norms: w'Gw and effective dimension of the Gauss-Newton matrix G, ‖H‖ of the\n"
            f"Hessian (± standard error); the dimension counts eigenvalues above {fv.ridge}"
        )
        return titled(title, ("run", "Fisher-Rao w'Gw", "Frobenius ‖H‖", "dimension"), rows)

    def plot(self, ax: Axes, one: Shown) -> None:
        parts = one.result
        values = {
            "Fisher-Rao": parts["fisher_rao"].estimate,
            "Frobenius": parts["frobenius"].estimate,
            "effective dimension": parts["dimension"].values[0],
        }
        ax.plot(list(values), list(values.values()), "o", color=one.color, label=one.label)
        ax.set(ylabel="norm, or dimension")
        ax.set_yscale("symlog", linthresh=1e-3)
