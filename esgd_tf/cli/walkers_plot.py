"""`walkers plot`: plot the figure page of a run. This module loads no TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from esgd_tf._files import expanded
from esgd_tf.cli.command_line import CommandLine, output_path

__all__ = ["command_line", "main"]


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: sequence of str. "plot" and what follows it.

    Returns:
        The exit status.
    """
    return command_line().run(argv, _plot)


def command_line() -> CommandLine:
    """Return the command's flags and help."""
    line = CommandLine(
        "walkers plot",
        "RUN",
        "Plots what a run of `walkers` has measured, also while it goes on: losses, distances, "
        "barriers and lines between the workers, spectra, sharpness, random walks.",
        ["runs/walkers-nn-100-2", "RUN --out page.png"],
    )
    line.path("out", None, "the picture (default: walkers.png in the folder of the run)")
    return line


def _plot(fv: Any, words: list[str]) -> None:
    if fv.out is not None:
        output_path("--out", fv.out, ".png", ".pdf", ".svg")
    from esgd_tf.walkers.figures import figure_page

    print(figure_page(expanded(words[0]), fv.out))
