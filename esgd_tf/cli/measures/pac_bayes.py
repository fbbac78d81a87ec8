"""`landscape --pac_bayes`: a bound on the true error with noise on the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.measures.measure import Entry, Found, Measure, titled

if TYPE_CHECKING:
    from esgd_tf.cli.measures.bench import Bench, Measured

__all__ = ["PacBayes"]


class PacBayes(Measure):
    """The bound with a prior around the weights that training began with."""

    name = "pac_bayes"
    what = "PAC-Bayes bound on the error with noise; always on training images"

    def define_flags(self, line: CommandLine) -> None:
        line.integer("bound_samples", 1, 100, "--pac_bayes: networks sampled for the bound")

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape
        from esgd_tf.runs.initial_weights import read_initial_weights

        (network,) = networks
        shapes = [tuple(weight.shape) for weight in network.model.weights]
        return landscape.pac_bayes_bound(
            network.model,
            network.data["train"],
            read_initial_weights(network.run, shapes),
            samples=bench.fv.bound_samples,
            loss=bench.loss,
            batch_size=bench.fv.batch_size,
            seed=bench.fv.seed,
        )

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        rows = [
            (
                e.label,
                f"{100 * e.result.bound:.2f}",
                f"{100 * e.result.risk:.2f}",
                f"{100 * e.result.error:.2f}",
                f"{e.result.kl:.4g}",
                f"{e.result.sigma:.3g}",
                f"{e.result.examples:,}",
            )
            for e in entries
        ]
        first = entries[0].result
        title = (
            "PAC-Bayes bound on the error (%) with noise on the weights, KL in nats\n"
            f"holds with probability {1 - first.delta - first.sample_delta:g}; 100 says nothing"
        )
        header = ("run", "bound", "training, noise", "without", "KL", "sigma", "images")
        return titled(title, header, rows)
