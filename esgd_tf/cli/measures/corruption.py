"""`landscape --corruption`: error and loss on noisy test images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.measures.measure import Entry, Found, Measure, Shown, error_and_loss, titled
from esgd_tf.cli.parsers import FlagError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from esgd_tf.cli.measures.bench import Bench, Measured

__all__ = ["Corruption"]


class Corruption(Measure):
    """The error on test images with noise on them, of kinds that train.py knows."""

    name = "corruption"
    what = "error and loss on test images with noise"

    def define_flags(self, line: CommandLine) -> None:
        line.text(
            "noise_kinds", "gaussian:0.25,gaussian:0.5,gaussian:1,some_noise:7",
            "--corruption: kinds of noise, as for --corrupt of train.py",
        )  # fmt: skip

    def check_flags(self, fv: flags.FlagValues) -> None:
        _kinds(fv.noise_kinds)

    def take(self, bench: Bench, *networks: Measured) -> Found:
        import numpy as np
        import tensorflow as tf

        from esgd_tf import data, landscape

        x, y = networks[0].data["test"]
        indices = np.arange(len(y))
        noisy = {}
        for kind in _kinds(bench.fv.noise_kinds):
            corrupt = data.input_corruption([kind], seed=bench.fv.seed)
            assert corrupt is not None
            with tf.device("/CPU:0"):
                noisy[str(kind)] = (corrupt(x, indices).numpy(), y)
        return landscape.corruption_error(
            networks[0].model,
            (x, y),
            noisy,
            loss=bench.loss,
            batch_size=bench.fv.batch_size,
        )

    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        # At most four columns of width.
        names = list(entries[0].result.values)[:4]
        rows = [
            (
                e.label,
                f"{100 * e.result.reference['error']:.2f}",
                *(f"{100 * e.result.values[name]['error']:.2f}" for name in names),
            )
            for e in entries
        ]
        return titled("error (%) on noisy test images", ("run", "clean", *names), rows)

    def figure(self, shown: Sequence[Shown]) -> Figure:
        return error_and_loss(shown)


def _kinds(text: str) -> list[Any]:
    """Return the kinds of noise of the flag.

    Raises:
        FlagError: One is none, or named twice.
    """
    from esgd_tf.data.corruption import parse_corruptions
    from esgd_tf.data.errors import DataError

    kinds: list[Any] = []
    for part in text.split(","):
        try:
            found = parse_corruptions(part)
        except DataError as error:
            raise FlagError(f"--noise_kinds={text}: {error}") from None
        if len(found) != 1 or not found[0].is_noise or found[0] in kinds:
            raise FlagError(
                f"--noise_kinds={text}: must be different kinds of noise, separated by commas: "
                "all_noise, some_noise:k or gaussian:s"
            )
        kinds += found
    return kinds
