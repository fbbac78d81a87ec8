"""Take the measurements that are due; each gives rows of the table and lines to print."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from esgd_tf.walkers.measures import Measures, NotFiniteLossError
from esgd_tf.walkers.settings import Settings
from esgd_tf.walkers.workers import Workers

__all__ = ["Rounds"]

Row = dict[str, Any]


class Rounds:
    """Takes the measurements that are due after a step.

    Args:
        settings: Settings. The experiment.
        workers: Workers. The workers of the run.
        measures: Measures. Computes the measurements of one worker.
        add: callable. Called with new rows of the table.
        say: callable. Prints a line.

    Attributes:
        measured: The last step at which each kind was measured.
        walks: The number of random walks so far.
        moves: For each worker that continues from the end of its last walk, the two ends of it.
    """

    def __init__(
        self,
        settings: Settings,
        workers: Workers,
        measures: Measures,
        add: Callable[[list[Row]], None],
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._workers, self._measures = settings, workers, measures
        self._add, self._say = add, say
        self._network = workers.new_network()
        self.measured: dict[str, int] = {}
        self.walks = 0
        self.moves: dict[int, tuple[Any, Any]] = {}

    def _due(self, what: str, step: int, every: int, last: bool) -> bool:
        due = last or (every > 0 and step % every == 0)
        if not due or self.measured.get(what) == step:
            return False
        self.measured[what] = step
        return True

    def measure(self, step: int, n_steps: int, *, last: bool = False) -> list[Row]:
        """Take the measurements that are due.

        Args:
            step: int >= 0. Steps taken so far.
            n_steps: int >= 0. The total number of steps, for the printed lines.
            last: bool. Whether the run ends here, so that everything not measured yet is measured.
                Defaults to False.

        Returns:
            The rows of losses, if they were measured.

        Raises:
            NotFiniteLossError: A worker's training loss is not finite; nothing was written.
        """
        s, w = self._settings, self._workers
        # At the start only the losses are worth measuring.
        late = step > 0
        losses = self._due("stats", step, s.freq, last)
        lines = late and self._due("lines", step, s.freq_i, last)
        slow = late and self._due("slow", step, s.freq_h, last)
        if not (losses or lines or slow):
            return []
        weights = {k: self._weights(k) for k in w.ids}
        # This check comes before anything is written and before the last good state is replaced.
        for k in w.ids:
            try:
                self._measures.require_finite(weights[k])
            except NotFiniteLossError as error:
                raise NotFiniteLossError(
                    f"Worker {k} has left after {step} steps: {error}. Take a smaller --lr or "
                    "--momentum."
                ) from None
        stats = []
        if losses:
            stats = [
                {"kind": "stats", "step": step, "worker": k, "lr": w.lr, "momentum": w.momentum,
                 "alpha": w.alpha, **self._measures.stats(weights[k])}
                for k in w.ids
            ]  # fmt: skip
            self._add(stats)
            self._say(_line(step, n_steps, stats, w))
        if lines:
            distances = self._measures.distances([weights[k] for k in w.ids])
            self._add([{"kind": "distances", "step": step, "distances": distances}])
            self._lines(step, weights)
        if slow:
            self._slow(step, weights)
        return stats

    def _lines(self, step: int, weights: dict[int, Any]) -> None:
        chosen = self._settings.lines
        if chosen == "none":
            return
        kinds: Any = ["spherical", "linear"] if chosen == "both" else [chosen]
        # As in the original, i > j, and coefficient 1 is worker i.
        for i, j in ((b, a) for b in self._workers.ids for a in range(b)):
            rows = [
                {"kind": "line", "step": step, "i": i, "j": j, "main_line": kinds[0],
                 **self._measures.line(weights[j], weights[i], kind)}
                for kind in kinds
            ]  # fmt: skip
            self._add(rows)
            self._say(
                f"  line from {j} to {i}: distance {rows[0]['distance']:.4g}, barrier "
                + ", ".join(f"{_short(r['train']['barrier'])} ({r['line']})" for r in rows)
            )

    def _slow(self, step: int, weights: dict[int, Any]) -> None:
        s = self._settings
        for k in self._workers.ids:
            if s.hessian:
                found = self._measures.spectrum(weights[k])
                self._add([{"kind": "spectrum", "step": step, "worker": k, **found}])
                right, left = found["right"], found["left"]
                self._say(f"  Hessian of {k}: largest {_list(right)}, smallest {_list(left)}")
            if s.sharpness:
                found = self._measures.sharpness(weights[k])
                self._add([{"kind": "sharpness", "step": step, "worker": k, **found}])
                self._say(
                    f"  sharpness of {k}: train {found['train']:.4g}, test {found['test']:.4g}, "
                    f"after {found['steps']} steps ({found['stopped_by']})"
                )
            if s.explore and (k in s.explore_from or not s.explore_from):
                self.walk(k, step, weights[k])

    def full_spectra(self, step: int) -> None:
        """Compute all eigenvalues once, at the end of the run, if the settings ask for it.

        Args:
            step: int >= 0. Steps taken so far.
        """
        s = self._settings
        if not (s.hessian and s.full_spectrum and self._due("full", step, 0, last=True)):
            return
        for k in self._workers.ids:
            try:
                values = self._measures.full_spectrum(self._weights(k))
            except MemoryError as reason:
                self._say(f"  {reason}")
                return
            row = {"kind": "full_spectrum", "step": step, "worker": k, "eigenvalues": values}
            self._add([row])

    def walk(self, k: int, step: int, weights: Any = None) -> None:
        """Measure a random walk from a worker.

        Args:
            k: int in [0, n]. The number of the worker.
            step: int >= 0. Steps taken so far.
            weights: sequence of arrays. The worker's weights. Defaults to None, which reads
                them from the workers.
        """
        weights = self._weights(k) if weights is None else weights
        # Every walk of a run has random numbers of its own, whenever it takes place.
        self.walks += 1
        found, end = self._measures.walk(weights, self._settings.seed * 10**6 + self.walks)
        if self._settings.explore_moves:
            self.moves[k] = weights, end
        self._add([{"kind": "walk", "step": step, "worker": k, **found}])
        escape = found["escape_step"]
        ended = (
            f"left by step {escape}" if escape > 0 else f"still in after {self._settings.rw_steps}"
        )
        self._say(f"  walk from {k}: {ended}, {found['distances'][-1]:.4g} away")

    def _weights(self, k: int) -> Any:
        self._workers.copy_to(k, self._network)
        return self._network.get_weights()


def _line(step: int, total: int, stats: list[Row], workers: Workers) -> str:
    shown = [
        f"{row['worker']}{'c' if row['worker'] == 0 and workers.zero_is_center else ''} "
        f"{row['train']['loss']:.4g}/{row['test']['loss']:.4g}"
        for row in itertools.islice(stats, 8)
    ]
    more = f" and {len(stats) - 8} more" if len(stats) > 8 else ""
    return f"step {step} of {total}: loss train/test of workers {', '.join(shown)}{more}"


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _list(values: list[float]) -> str:
    return ", ".join(f"{v:.3g}" for v in values[:3]) + (", ..." if len(values) > 3 else "")
