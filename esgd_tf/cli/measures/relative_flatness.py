"""`landscape --relative_flatness`: the curvature of each layer in units of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from esgd_tf.cli.measures.measure import Entry, Found, Measure, titled

if TYPE_CHECKING:
    from esgd_tf.cli.measures.bench import Bench, Measured

__all__ = ["RelativeFlatness"]

# For each of two traces of a layer.
_PRODUCTS = 30


class RelativeFlatness(Measure):
    """Relative flatness by layer."""

    name = "relative_flatness"
    what = "curvature of each layer in units of its neurons' weights"

    def take(self, bench: Bench, *networks: Measured) -> Found:
        from esgd_tf import landscape

        return landscape.relative_flatness(
            networks[0].model,
            bench.loss,
            bench.data(networks[0]),
            num_matvecs=_PRODUCTS,
            batch_size=bench.fv.batch_size,
            seed=bench.fv.seed,
        )

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        rows = []
        for e in entries:
            found = e.result
            numbers = zip(
                found.layers, found.values, found.standard_errors, found.norm_times_trace,
                found.norm_times_trace_errors, strict=True,
            )  # fmt: skip
            for layer, value, error, product, spread in numbers:
                name = layer.rsplit("/kernel", 1)[0]
                cells = (f"{value:.3g} ± {error:.1g}", f"{product:.3g} ± {spread:.1g}")
                rows.append((e.label, name, *cells))
        title = "relative flatness of each layer, and norm² x trace (± standard error)"
        return titled(title, ("run", "layer", "relative flatness", "norm² x trace"), rows)
