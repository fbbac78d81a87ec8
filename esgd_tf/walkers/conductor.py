"""Everything between two steps: measurements, changes, questions, and the end.

After each step the conductor works in this order. It takes the measurements that are due. Changes
from the schedule, the control file and the prompt take effect from the next step on. The run ends
if a stopping criterion is met. The state is saved if something was measured or changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from esgd_tf.walkers.control import Change, checked
from esgd_tf.walkers.control_file import ControlFile
from esgd_tf.walkers.measures import Measures, means
from esgd_tf.walkers.prompt import Prompt
from esgd_tf.walkers.records import Records
from esgd_tf.walkers.rounds import Rounds
from esgd_tf.walkers.schedule import Schedule
from esgd_tf.walkers.settings import Settings
from esgd_tf.walkers.workers import Workers

__all__ = ["Conductor", "ConductorCallback"]

Row = dict[str, Any]


class Conductor:
    """Takes measurements, applies changes of hyperparameters, and ends the run.

    Args:
        settings: Settings. The experiment.
        workers: Workers. The workers of the run.
        measures: Measures. Computes the measurements.
        records: Records. The files for results. Defaults to None, which writes nothing.
        control: ControlFile. The file in which a user may edit hyperparameters. Defaults to None,
            which reads no file.
        prompt: Prompt. Asks the user for changes. Defaults to None, which does not ask.
        say: callable. Prints a line. Defaults to print.
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
        self._settings, self._workers = settings, workers
        self._rounds = Rounds(settings, workers, measures, self._add, say)
        self._records, self._control, self._prompt = records, control, prompt
        self._say = say
        self._schedule = Schedule(
            (step, Change(name, checked(name, value, n_workers=settings.n_workers,
                                        coupling=settings.coupling), "schedule"))
            for step, name, value in settings.schedule
        )  # fmt: skip
        self.n_steps = settings.n_steps
        self.rows: list[Row] = []
        self.ended_by = ""
        self._dirty = False

    @property
    def held(self) -> Row:
        """The current value of each hyperparameter, by the names of `control.HELD`."""
        w = self._workers
        return {"lr": w.lr, "momentum": w.momentum, "alpha": w.alpha, "n_steps": self.n_steps}

    @property
    def is_over(self) -> bool:
        """Return whether the run has ended."""
        return bool(self.ended_by) or self._workers.steps >= self.n_steps

    def begin(self) -> None:
        """Take the measurements that are due before the first step, and save the state."""
        if self._control is not None:
            self._control.write(self.held)
        self._tell_what_never_comes(0)
        self.after_step()

    def resume(self, extra: Row, added: Sequence[tuple[int, str, Any]] = ()) -> None:
        """Continue from a state that `extra` returned; the workers must already be in that state.

        Args:
            extra: dict. The state that `extra` returned.
            added: sequence of (step, name, value). Entries of the schedule that are new since the
                run was saved. Entries for the current step are applied now; entries for earlier
                steps come too late. Defaults to ().
        """
        self.n_steps = extra["n_steps"]
        self._rounds.walks, self._rounds.measured = extra["walks"], dict(extra["measured"])
        step = self._workers.steps
        for at, name, value in added:
            if at < step:
                self._say(f"WARNING: the schedule's {name} {value:g} at step {at} is in the past")
        for change in self._schedule.at(step):
            if (step, change.name, change.value) in added:
                self._apply(change, step)
        self._tell_what_never_comes(step)
        self._go_on()
        if self._control is not None:
            self._control.write(self.held)
        # The number of steps or the schedule may have been changed.
        self._save()

    def extra(self) -> Row:
        """Return the state that `resume` needs in addition to the workers' state."""
        rounds = self._rounds
        return {"n_steps": self.n_steps, "measured": rounds.measured, "walks": rounds.walks}

    def after_step(self) -> None:
        """Do the measurements, changes and saving that are due after the steps taken so far."""
        step = self._workers.steps
        stats = self._rounds.measure(step, self.n_steps)
        self._changes(step)
        if not self.ended_by and stats:
            self._check_bounds(stats)
        if self.is_over:
            self._rounds.measure(step, self.n_steps, last=True)
            self._rounds.full_spectra(step)
            self._tell_what_never_comes(step)
            if self._records is not None:
                self._add([{"kind": "end", "step": step, "by": self.ended_by or "n_steps"}])
        else:
            self._go_on()
        if self._dirty:
            self._save()

    def _go_on(self) -> None:
        """Move workers to the ends of their random walks, since training goes on."""
        moves, self._rounds.moves = self._rounds.moves, {}
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

    def _add(self, rows: list[Row]) -> None:
        self.rows += rows
        self._dirty = True
        if self._records is not None:
            self._records.add(rows)

    # ---- changes ------------------------------------------------------------------------------

    def _changes(self, step: int) -> None:
        for change in self._schedule.at(step):
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
            self._rounds.walk(value, step)
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

    def _tell_what_never_comes(self, step: int) -> None:
        """Warn once about each scheduled change that lies beyond the end of the run."""
        end = step if self.ended_by else self.n_steps
        late = self._schedule.newly_late(step, end)
        if late:
            at, change = late[0]
            more = f" and {len(late) - 1} more" if len(late) > 1 else ""
            self._complain(
                step,
                f"the schedule's {change.name} {change.value:g} at step {at}{more} will never act: "
                f"the run ends after {self._schedule.end(step, end)} steps",
            )

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
    """Calls a conductor after each step of `fit`.

    Args:
        conductor: Conductor. The conductor.
        workers: Workers. The workers whose steps are counted.
    """

    def __init__(self, conductor: Conductor, workers: Workers) -> None:
        super().__init__()
        self._conductor, self._workers = conductor, workers

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the step, and call the conductor."""
        del batch, logs
        self._workers.advance()
        self._conductor.after_step()
        self.model.stop_training = self._conductor.is_over
