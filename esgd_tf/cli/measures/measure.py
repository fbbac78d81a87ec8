"""What the command `landscape` knows of a measure: one class a measure, in a module of its own."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from esgd_tf.cli.command_line import CommandLine
from esgd_tf.cli.parsers import FlagError
from esgd_tf.cli.tables import plain_table
from esgd_tf.runs.figures import new_figure
from esgd_tf.runs.stored_run import StoredRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from esgd_tf.cli.measures.bench import Bench, Measured
    from esgd_tf.landscape import Result, Row

__all__ = ["Entry", "Found", "Measure", "Shown", "error_and_loss", "numbers", "titled"]

_RISE = "increase of "

#: What was measured of a run: one result, or several by name.
Found = Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """What was measured of a run, or of a pair of them.

    Args:
        run: StoredRun. The run, or the second one of a pair.
        label: str. What the run, or the pair, is called.
        measure: Measure. What was measured.
        result: Result, or a dict of them by name. What was found.
    """

    run: StoredRun
    label: str
    measure: Measure
    result: Found

    @property
    def parts(self) -> dict[str, Result]:
        """The results by name; one alone has the name ""."""
        return self.result if isinstance(self.result, dict) else {"": self.result}


class Shown(NamedTuple):
    """What is shown of a run in a picture.

    Attributes:
        result: What was found.
        color: The color of runs of this kind.
        label: The name in the legend; None for none.
        title: The name of the run.
    """

    result: Found
    color: str
    label: str | None
    title: str


class Measure(ABC):
    """A measure of runs' networks: its flags, how it is taken, and how it is shown.

    Attributes:
        name: The name of its flag, and of its picture.
        what: What it measures, for the help.
        is_of_pairs: Whether it takes two networks, the first run's and another's.
        is_default: Whether it is taken where no measure is named.
    """

    name: str
    what: str
    is_of_pairs = False
    is_default = False

    def define_flags(self, line: CommandLine) -> None:
        """Define the flags that are this measure's alone.

        Args:
            line: CommandLine. The command.
        """

    def check_flags(self, fv: flags.FlagValues) -> None:
        """Check those flags, before anything is loaded.

        Args:
            fv: flags.FlagValues. The flags.

        Raises:
            FlagError: One has a bad value.
        """

    @abstractmethod
    def take(self, bench: Bench, *networks: Measured) -> Found:
        """Measure.

        Args:
            bench: Bench. The flags, and what several measures need.
            *networks: The network, or both of a pair.
        """

    @abstractmethod
    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        """Return what was found as a table of at most 80 columns.

        Args:
            entries: sequence of Entry. What was found of each run.
            fv: flags.FlagValues. The flags.
        """

    def rows(self, entry: Entry) -> Iterator[Row]:
        """Yield the numbers that were found, one a row.

        Args:
            entry: Entry. What was found of a run.
        """
        for result in entry.parts.values():
            yield from result.rows()

    def numbers(self, entry: Entry) -> Iterator[Row]:
        """Yield the numbers by which `compare --measures` ranks runs.

        By default all rows, but for those of the test images, from which no test error is to be
        told; of what rose, the rise.

        Args:
            entry: Entry. What was found of a run.
        """
        rows = [row for row in self.rows(entry) if row.split != "test"]
        rises = [row for row in rows if row.metric.startswith(_RISE)]
        for row in rises or rows:
            yield row._replace(metric=row.metric.removeprefix(_RISE))

    def figure(self, shown: Sequence[Shown]) -> Figure:
        """Return the picture of all runs.

        Args:
            shown: sequence of Shown. What was found of each run.
        """
        figure = new_figure(6.4, 4.2)
        ax = figure.subplots()
        for one in shown:
            self.plot(ax, one)
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize="small")
        return figure

    def plot(self, ax: Axes, one: Shown) -> None:
        """Plot what was found of a run.

        Args:
            ax: matplotlib.axes.Axes. What to plot on, shared by all runs.
            one: Shown. What was found.
        """
        one.result.plot(ax, color=one.color, label=one.label or "_")


def numbers(flag: str, text: str, at_least: int = 1) -> list[float]:
    """Return the positive numbers of a flag's value, separated by commas.

    Args:
        flag: str. The name of the flag.
        text: str. Its value.
        at_least: int >= 1. How many different ones there must be. Defaults to 1.

    Raises:
        FlagError: It is something else.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if len(set(values)) < at_least or not all(math.isfinite(v) and v > 0 for v in values):
        what = "a positive number" if at_least == 1 else f"{at_least} or more positive numbers"
        raise FlagError(f"--{flag}={text}: must be {what}, separated by commas")
    return values


def titled(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with a title above it.

    Args:
        title: str. The title.
        header: sequence of str. The names of the columns.
        rows: sequence of sequences of str. The cells.
    """
    return f"{title}\n\n{plain_table(header, rows)}"


def error_and_loss(shown: Sequence[Shown]) -> Figure:
    """Return a picture of results that plot the metrics "error" and "loss", side by side.

    Args:
        shown: sequence of Shown. What was found of each run.
    """
    figure = new_figure(8.4, 4.6)
    panels = figure.subplots(1, 2)
    for ax, metric in zip(panels, ("error", "loss"), strict=True):
        for one in shown:
            one.result.plot(ax, color=one.color, label=one.label or "_", metric=metric)
        ax.grid(alpha=0.3)
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    panels[1].set_yscale("log")
    lines, names = panels[0].get_legend_handles_labels()
    # Below: there are two lines for each run.
    figure.legend(lines, names, fontsize="small", loc="outside lower center", ncols=2)
    return figure
