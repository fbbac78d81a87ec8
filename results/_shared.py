"""What the scripts of this folder share: numbers that are kept, and the look of their figures.

A script keeps what it measured in a small `numbers.json` beside its tables, so that a figure can be
plotted again without training again (`--draw`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
# So that the scripts run from a checkout as it is.
sys.path.insert(0, str(ROOT))

from esgd_tf._files import replaced_when_whole

# The colours of Okabe and Ito, which are told apart by colour-blind readers too; and where colours
# are not enough, lines and markers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X")


def parser_of(doc: str | None, *, data: str = "", runs: str = "") -> argparse.ArgumentParser:
    """Return a parser with the flags that the scripts share.

    Args:
        doc: str. The script's docstring, which is its help.
        data: str. The data sets whose archives it needs. Defaults to "", for none.
        runs: str. The folder of its runs of train.py, under runs/. Defaults to "", for none.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", action="store_true", help="only plot what was kept again")
    if data:
        parser.add_argument("--raw_dir", help=f"folder with the archives of {data}")
    if runs:
        parser.add_argument("--data_dir", default="tfrecords", help="where prepared data lie")
        parser.add_argument("--runs", type=Path, default=ROOT / "runs" / runs)
    return parser


def figure_of(width: float, height: float) -> Figure:
    """Return an empty figure whose text is readable at half its width.

    Args:
        width: float > 0. In inches; a column of the site has about eight.
        height: float > 0. In inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish(figure: Figure, path: Path) -> None:
    """Enlarge the text of a figure, and write it.

    Args:
        figure: Figure. The figure.
        path: Path. A PNG file, replaced when the new one is whole.
    """
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=12)
        for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
            text.set_fontsize(13)
        legend = axis.get_legend()
        if legend is not None:
            for text in legend.get_texts():
                text.set_fontsize(12)
    with replaced_when_whole(path) as partial:
        figure.savefig(partial, dpi=130, format="png")


def style(number: int) -> dict[str, Any]:
    """Return color and line by which a curve is told from those of other numbers, up to 49.

    Args:
        number: int >= 0. The number of the curve.
    """
    line = (number + number // len(COLORS)) % len(LINES)
    return {"color": COLORS[number % len(COLORS)], "ls": LINES[line]}


def plot_mean_and_spread(
    axis: Axes, x: Sequence[float], runs: Sequence[Sequence[float]], number: int, label: str
) -> None:
    """Plot the mean over runs as a line, with a band of one sample standard deviation.

    Args:
        axis: Axes. Where to plot.
        x: sequence of float. What stands on the horizontal axis, the same in all runs.
        runs: sequence of sequences of float. The values of each run at each x.
        number: int >= 0. Tells colour and line from those of the others.
        label: str. For the legend.
    """
    values = np.asarray(runs, float)
    mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
    look = style(number)
    axis.plot(x, mean, **look, lw=2, label=label)
    axis.fill_between(x, mean - spread, mean + spread, color=look["color"], alpha=0.2, lw=0)


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Return the mean and the sample standard deviation as text.

    Args:
        values: sequence of float, at least two. One value a seed.
        digits: int >= 0. Digits after the point.
    """
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def write_numbers(path: Path, numbers: Mapping[str, Any]) -> None:
    """Keep what was measured, with what measured it.

    Args:
        path: Path. A JSON file, replaced when the new one is whole.
        numbers: mapping. What was measured.
    """
    kept = {"made_by": machine(), **numbers}
    with replaced_when_whole(path) as partial:
        partial.write_text(_lines(kept) + "\n")


def read_numbers(path: Path) -> dict[str, Any]:
    """Return what was kept.

    Args:
        path: Path. The JSON file.

    Raises:
        SystemExit: There is none.
    """
    if not path.exists():
        raise SystemExit(f"There is no {path.name} in {path.parent}: run this without --draw.")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def rounded(values: Any, digits: int = 5) -> list[float]:
    """Return numbers of so many digits: what a figure needs, in a small file.

    Args:
        values: array or sequence of float. The numbers.
        digits: int >= 1. Significant digits.
    """
    return [float(f"{value:.{digits}g}") for value in np.ravel(values)]


def history(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's history.csv, or none if the file does not exist.

    Args:
        run: Path. The folder of the run.
    """
    path = run / "history.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def machine() -> str:
    """Return cores, processor and versions, as the tables state them."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    number = len(os.sched_getaffinity(0))
    cores = "1 core" if number == 1 else f"{number} cores"
    return (
        f"{cores} ({processor}), Python {platform.python_version()}, "
        f"TensorFlow {version('tensorflow')}, Keras {version('keras')}"
    )


def _lines(numbers: Any, indent: str = "") -> str:
    """Return JSON with a line for each list of numbers, so that differences can be read."""
    if isinstance(numbers, Mapping):
        deeper = indent + " "
        items = [f"{deeper}{json.dumps(k)}: {_lines(v, deeper)}" for k, v in numbers.items()]
        return "{\n" + ",\n".join(items) + "\n" + indent + "}"
    return json.dumps(numbers, ensure_ascii=False)
