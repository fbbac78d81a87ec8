"""What happens between two steps: measurements, changes, questions, and the end.

After so many steps, in this order: what is due is measured; changes from the schedule, the control
file and the prompt hold from the next step on; the run ends where a bound was reached; the state is
saved where something was measured or somebody changed something.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from esgd_tf.walkers.control import Change, ControlFile, checked
from esgd_tf.walkers.measures import Measures, NotFiniteLossError, means
from esgd_tf.walkers.prompt import Prompt
from esgd_tf.walkers.records import Records
from esgd_tf.walkers.settings import Settings
from esgd_tf.walkers.workers import Workers

__all__ = ["Conductor", "ConductorCallback"]

Row = dict[str, Any]


class Conductor:
    """Measures, changes and ends a run.

    Args:
        settings: The experiment.
        workers: Whom to conduct.
        measures: How to measure them.
        records: Where to write, or None.
        control: The file to look at, or None.
        prompt: Whom to ask, or None.
        say: Prints a line.
    """

    def __init__(
        self,
        settings: Settings,
        workers: Workers,
        measures: Measures,
        records: Records | None = None,
        control: ControlFile | None = None,
        prompt: Prompt | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self._settings, self._workers, self._measures = settings, workers, measures
        self._records, self._control, self._prompt = records, control, prompt
        self._say = say
        self._network = workers.new_network()
        self._schedule: dict[int, list[Change]] = {}
        for step, name, value in settings.schedule:
            new = checked(name, value, n_workers=settings.n_workers, coupling=settings.coupling)
            self._schedule.setdefault(step, []).append(Change(name, new, "schedule"))
        self.n_steps = settings.n_steps
        self.rows: list[Row] = []
        self.ended_by = ""
        self._measured: dict[str, int] = {}  # the last step at which each was
        self._walks = 0
        self._moves: dict[int, tuple[Any, Any]] = {}  # of this step, if the run goes on
        self._dirty = False

    @property
    def held(self) -> Row:
        """What is in force, by the names of `control.HELD`."""
        w = self._workers
        return {"lr": w.lr, "momentum": w.momentum, "alpha": w.alpha, "n_steps": self.n_steps}

    @property
    def is_over(self) -> bool:
        """Whether no step is to follow."""
        return bool(self.ended_by) or self._workers.steps >= self.n_steps

    def begin(self) -> None:
        """Do what comes before the first step."""
        if self._control is not None:
            self._control.write(self.held)
        self.after_step()

    def resume(self, extra: Row, added: Sequence[tuple[int, str, Any]] = ()) -> None:
        """Go on from what `extra` returned, the workers being in that state already.

        Args:
            extra: From `extra`.
            added: What the schedule has that it had not before. What is for the step at hand is
                applied now; it has passed the others already.
        """
        self.n_steps, self._walks = extra["n_steps"], extra["walks"]
        self._measured = dict(extra["measured"])
        step = self._workers.steps
        for at, name, value in added:
            if at < step:
                self._say(f"WARNING: the schedule's {name} {value:g} at step {at} is in the past")
        for change in self._schedule.get(step, ()):
            if (step, change.name, change.value) in added:
                self._apply(change, step)
        self._go_on()
        if self._control is not None:
            self._control.write(self.held)
        # It may have other steps or another schedule now.
        self._save()

    def extra(self) -> Row:
        """Return what `resume` needs beside the state of the workers."""
        return {"n_steps": self.n_steps, "measured": self._measured, "walks": self._walks}

    def after_step(self) -> None:
        """Do what is due after the steps taken so far."""
        step = self._workers.steps
        stats = self._measure(step)
        self._changes(step)
        if not self.ended_by and stats:
            self._check_bounds(stats)
        if self.is_over:
            self._measure(step, last=True)
            self._full_spectra(step)
            if self._records is not None:
                self._add([{"kind": "end", "step": step, "by": self.ended_by or "n_steps"}])
        else:
            self._go_on()
        if self._dirty:
            self._save()

    def _go_on(self) -> None:
        """Move those who walked: now it is known that there is a next step."""
        moves, self._moves = self._moves, {}
        if self.is_over:
            return
        for k, (begin, end) in moves.items():
            if self._workers.move(k, begin, end):
                self._add([{"kind": "move", "step": self._workers.steps, "worker": k}])
                self._say(f"  {k} goes on from the end of its walk")

    def _save(self) -> None:
        if self._records is not None:
            self._records.save(self._workers.state(), self.extra())
        self._dirty = False

    # ---- measurements -------------------------------------------------------------------------

    def _due(self, what: str, step: int, every: int, last: bool) -> bool:
        due = last or (every > 0 and step % every == 0)
        if not due or self._measured.get(what) == step:
            return False
        self._measured[what] = step
        return True

    def _measure(self, step: int, last: bool = False) -> list[Row]:
        """Measure what is due and return the rows of losses, if they were."""
        s, w = self._settings, self._workers
        # Of everything but the losses, the start is not worth its time.
        late = step > 0
        losses = self._due("stats", step, s.freq, last)
        lines = late and self._due("lines", step, s.freq_i, last)
        slow = late and self._due("slow", step, s.freq_h, last)
        if not (losses or lines or slow):
            return []
        weights = {k: self._weights(k) for k in w.ids}
        # Before anything is written, and the last good state replaced.
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
            self._say(_line(step, self.n_steps, stats, w))
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
        # As in the original: i > j, and coefficient 1 is worker i.
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
                self._walk(k, step, weights[k])

    def _full_spectra(self, step: int) -> None:
        """Take all eigenvalues, once, where the run ends."""
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

    def _walk(self, k: int, step: int, weights: Any) -> None:
        # Every walk of a run has steps of its own, whenever it is asked for.
        self._walks += 1
        found, end = self._measures.walk(weights, self._settings.seed * 10**6 + self._walks)
        if self._settings.explore_moves:
            self._moves[k] = weights, end
        self._add([{"kind": "walk", "step": step, "worker": k, **found}])
        escape = found["escape_step"]
        ended = (
            f"left by step {escape}" if escape > 0 else f"still in after {self._settings.rw_steps}"
        )
        self._say(f"  walk from {k}: {ended}, {found['distances'][-1]:.4g} away")

    def _weights(self, k: int) -> Any:
        self._workers.copy_to(k, self._network)
        return self._network.get_weights()

    def _add(self, rows: list[Row]) -> None:
        self.rows += rows
        self._dirty = True
        if self._records is not None:
            self._records.add(rows)

    # ---- changes ------------------------------------------------------------------------------

    def _changes(self, step: int) -> None:
        for change in self._schedule.get(step, ()):
            self._apply(change, step)
        self._read_control(step)
        if self._prompt is not None and step < self.n_steps and self._prompt.is_due(step):
            for change in self._prompt.ask(step, self.held):
                self._apply(change, step)
            self._read_control(step)  # an edit made while the prompt waited
        if self._control is not None and not self._control.shows(self.held):
            self._control.write(self.held)

    def _read_control(self, step: int) -> None:
        if self._control is None:
            return
        changes, complaints = self._control.read()
        for sentence in complaints:
            self._complain(step, sentence)
        for change in changes:
            self._apply(change, step)

    def _apply(self, change: Change, step: int) -> None:
        w, name, value = self._workers, change.name, change.value
        if name == "quit":
            if value:
                self.ended_by = f"quit ({change.source})"
                self._say(f"step {step}: the end, by {change.source}")
            return
        if name == "walk":
            self._walk(value, step, self._weights(value))
            return
        old = self.held[name]
        if name == "lr":
            w.lr = value
        elif name == "momentum" and not w.takes_momentum:
            self._complain(step, f"adam has no momentum: {change.source} changes nothing")
            return
        elif name == "momentum":
            w.set_momentum(value)
        elif name == "alpha" and not w.count:
            self._complain(step, f"one worker has no center: {change.source} changes nothing")
            return
        elif name == "alpha":
            w.alpha = value
        else:
            self.n_steps = max(value, step)
        self._say(f"step {step}: {name} is {value:g} now, was {old:g} ({change.source})")
        self._add(
            [{"kind": "control", "step": step, "name": name, "value": value, "old": old,
              "source": change.source}]
        )  # fmt: skip

    def _complain(self, step: int, sentence: str) -> None:
        self._say(f"WARNING: {sentence}")
        self._add([{"kind": "complaint", "step": step, "text": sentence}])

    def _check_bounds(self, stats: list[Row]) -> None:
        gradient, cost = means(stats)
        s = self._settings
        if s.stop_grad and gradient < s.stop_grad:
            self.ended_by = "stop_grad"
        elif s.stop_cost and cost < s.stop_cost:
            self.ended_by = "stop_cost"
        if self.ended_by:
            self._say(
                f"the end, by {self.ended_by}: over the workers, the mean norm of the gradient is "
                f"{gradient:.4g} and the mean training loss {cost:.4g}"
            )


class ConductorCallback(keras.callbacks.Callback):
    """Lets a conductor act after each step of `fit`.

    Args:
        conductor: The conductor.
        workers: Whose steps they are.
    """

    def __init__(self, conductor: Conductor, workers: Workers) -> None:
        super().__init__()
        self._conductor, self._workers = conductor, workers

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the step, and conduct."""
        del batch, logs
        self._workers.advance()
        self._conductor.after_step()
        self.model.stop_training = self._conductor.is_over


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
