"""The base class of the measures of the command `landscape`; each has a module of its own."""

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

__all__ = [
    "Entry", "Found", "Measure", "Shown", "error_and_loss", "in_units", "numbers", "titled",
]  # fmt: skip

_RISE = "increase of "

#: The result of a measure for a run, or a dict of several results by name.
Found = Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """The results of one measure for a run, or for a pair of runs.

    Args:
        run: StoredRun. The run, or the second one of a pair.
        label: str. The name of the run, or of the pair, in tables.
        measure: Measure. The measure that was taken.
        result: Result, or a dict of them by name. The results.
    """

    run: StoredRun
    label: str
    measure: Measure
    result: Found

    @property
    def parts(self) -> dict[str, Result]:
        """The results by name; a single result has the name ""."""
        return self.result if isinstance(self.result, dict) else {"": self.result}


class Shown(NamedTuple):
    """The content and style of one run in a picture.

    Attributes:
        result: The result to plot.
        color: The color of runs of this kind.
        label: The name in the legend; None leaves it out.
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
        what: A description of what it measures, for the help.
        is_of_pairs: Whether it takes two networks, the first run's and another's.
        is_default: Whether it is taken if no measure is named.
    """

    name: str
    what: str
    is_of_pairs = False
    is_default = False

    def define_flags(self, line: CommandLine) -> None:
        """Define the flags that only this measure has.

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
        """Take the measure.

        Args:
            bench: Bench. The flags, and data that several measures need.
            *networks: The network, or both networks of a pair.
        """

    @abstractmethod
    def table(self, entries: Sequence[Entry], fv: flags.FlagValues) -> str:
        """Return the results as a table of at most 80 columns.

        Args:
            entries: sequence of Entry. The results of each run.
            fv: flags.FlagValues. The flags.
        """

    def rows(self, entry: Entry) -> Iterator[Row]:
        """Yield the numbers of the results, one per row.

        Args:
            entry: Entry. The results of a run.
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
            shown: sequence of Shown. The results of each run.
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
        """Plot the result of a run.

        Args:
            ax: matplotlib.axes.Axes. The axes to plot on, shared by all runs.
            one: Shown. The result to plot.
        """
        one.result.plot(ax, color=one.color, label=one.label or "_")


def numbers(flag: str, text: str, at_least: int = 1) -> list[float]:
    """Return the positive numbers of a flag's value, separated by commas.

    Args:
        flag: str. The name of the flag.
        text: str. Its value.
        at_least: int >= 1. The smallest number of different values. Defaults to 1.

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


def in_units(units: str) -> str:
    """Return what a title says of --units.

    Args:
        units: str. The value of the flag.
    """
    return {"weight": ", per weight", "filter": ", per filter"}.get(units, "")


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
