"""One experiment: trains the workers, takes the measurements and writes the results."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from esgd_tf.runs.errors import CheckpointError
from esgd_tf.runs.run_folder import RunFolder, replaced_when_whole
from esgd_tf.walkers.conductor import Conductor, ConductorCallback
from esgd_tf.walkers.control_file import ControlFile
from esgd_tf.walkers.measures import Measures
from esgd_tf.walkers.problem import Problem, cross_entropy, error
from esgd_tf.walkers.prompt import Prompt
from esgd_tf.walkers.records import Records
from esgd_tf.walkers.settings import Settings
from esgd_tf.walkers.workers import Workers

__all__ = ["Experiment"]


class Experiment:
    """One or more coupled networks on a loss landscape.

    Examples:
        >>> from esgd_tf import walkers
        >>> settings = walkers.Settings(dataset="fashion_mnist_small", n_workers=3, alpha=0.1)
        >>> experiment = walkers.Experiment(settings, "runs/three")
        >>> experiment.run()
        >>> [row["train"]["loss"] for row in experiment.rows if row["kind"] == "stats"]
        >>> network = experiment.network(0)                     # the center

    Args:
        settings: Settings. The settings of the experiment.
        folder: str or Path. The folder for results. Defaults to None, which writes nothing and
            cannot be resumed.
        problem: Problem. The data. Defaults to None, which loads the data that the settings name.
        build: callable. Returns a new network for a seed. Defaults to None, which builds the
            network that the settings name.
        loss: callable. A function of (y, outputs) that gives each example's loss. Defaults to
            cross_entropy.
        metric: callable. A function of (y, outputs) that gives 1 for each example that is wrong.
            Defaults to error.
        resume: bool. Whether to go on from the state in the folder. Defaults to False.
        n_steps: int >= 1. A new total number of steps for a run that is resumed. Defaults to None,
            which keeps the old one.
        ask_every: int >= 0. The number of steps between prompts on the standard input; 0 for no
            prompt. Defaults to 0.
        say: callable. Prints a line. Defaults to None, which prints nothing.

    Raises:
        RunFolderError: The folder holds no state to resume from.
        CheckpointError: The state belongs to another experiment.
    """

    def __init__(
        self,
        settings: Settings,
        folder: str | Path | None = None,
        *,
        problem: Problem | None = None,
        build: Callable[[int], keras.Model] | None = None,
        loss: Callable[[Any, Any], Any] = cross_entropy,
        metric: Callable[[Any, Any], Any] = error,
        resume: bool = False,
        n_steps: int | None = None,
        ask_every: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        self._folder = None if folder is None else RunFolder(Path(folder))
        self.problem = Problem.load(settings) if problem is None else problem
        self.workers = Workers(settings, self.problem, build, loss)
        measures = Measures(self.workers.new_network(), self.problem, settings, loss, metric)
        self._records, control = None, None
        if self._folder is not None:
            path = self._folder.path
            name = path.absolute().name
            self._records = Records(path, name, settings.n_workers, settings.resolution)
            control = ControlFile(path / "control.json", settings.n_workers, settings.coupling)
        prompt = Prompt(ask_every, settings.n_workers, settings.coupling) if ask_every else None
        self._resume, self._n_steps = resume, n_steps
        self._conductor = Conductor(
            settings, self.workers, measures, self._records, control, prompt, say or _nothing
        )
        self._say = say or _nothing

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The measurements of this process, as in table.jsonl."""
        return self._conductor.rows

    @property
    def ended_by(self) -> str:
        """The reason why the run ended before its last step; "" if it did not."""
        return self._conductor.ended_by

    def network(self, k: int) -> keras.Model:
        """Return a copy of the network of worker k.

        Args:
            k: int in [0, n]. The number of the worker; 0 is the center, or the worker that
                takes its place.
        """
        network = self.workers.new_network()
        self.workers.copy_to(k, network)
        return network

    def run(self) -> None:
        """Train and measure until the run ends.

        Raises:
            NotFiniteLossError: A worker's loss has become NaN or infinite.
        """
        with self._folder or contextlib.nullcontext():
            if self._resume:
                self._restore()
            else:
                self._write_config()
                if self._records is not None:
                    self._records.begin(self.settings.to_dict())
                self._conductor.begin()
            self._train()
            self._save_networks()

    def _train(self) -> None:
        workers, conductor = self.workers, self._conductor
        while not conductor.is_over:
            if workers.model is None:
                workers.advance()
                conductor.after_step()
                continue
            # Steps that are added during the run need another call of `fit`.
            workers.model.fit(
                workers.minibatches(),
                batch_norm_data=workers.batch_norm_data,
                steps_per_epoch=conductor.n_steps - workers.steps,
                callbacks=[ConductorCallback(conductor, workers)],
                verbose=0,
            )

    def _restore(self) -> None:
        if self._records is None:
            raise ValueError("Without a folder there is nothing to go on from.")
        arrays, extra = self._records.restore()
        try:
            self.workers.set_state(arrays)
        except ValueError as reason:
            raise CheckpointError(f"{self._records.state_file}: {reason}") from None
        assert self._folder is not None  # a resumed experiment has a folder
        before = Settings.from_dict((self._folder.read_config() or {})["settings"])
        added = [change for change in self.settings.schedule if change not in before.schedule]
        if self._n_steps is not None:
            extra["n_steps"] = max(self._n_steps, self.workers.steps)
            self.settings = dataclasses.replace(self.settings, n_steps=self._n_steps)
        # A later resumption continues with these changes as well.
        self._write_config()
        self._say(f"going on after {self.workers.steps} of {extra['n_steps']} steps")
        self._conductor.resume(extra, added)

    def _write_config(self) -> None:
        if self._folder is not None:
            self._folder.write_config({"command": "walkers", "settings": self.settings.to_dict()})

    def _save_networks(self) -> None:
        if self._folder is None:
            return
        for k in self.workers.ids:
            with replaced_when_whole(self._folder.checkpoints / f"worker_{k}.keras") as partial:
                self.network(k).save(partial)


def _nothing(line: str) -> None:
    del line
