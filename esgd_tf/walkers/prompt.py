"""A prompt for changes, on a terminal or a pipe. This module loads no TensorFlow."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from esgd_tf.walkers.control import Change, ControlError, checked

__all__ = ["Prompt"]

_HELP = """\
  lr 0.05       learning rate            momentum 0.9  momentum
  alpha 0.1     pull to the center       steps 500     so many steps from here
  walk 1        a random walk from a worker
  quit          measure, save and end    Enter         go on"""


class Prompt:
    """Asks for changes at regular intervals.

    After the end of a pipe the run goes on without further prompts.

    Args:
        every: int >= 1. The number of steps between prompts.
        n_workers: int >= 0. The number n of stochastic workers; workers are numbered 0 ... n.
        coupling: str. The coupling of the workers; see `control.checked`. Defaults to 'elastic'.
        answers: file. The stream of answers. Defaults to None, which is the standard input.
        out: file. The stream for prompts. Defaults to None, which is the standard output.
    """

    def __init__(
        self,
        every: int,
        n_workers: int,
        coupling: str = "elastic",
        answers: TextIO | None = None,
        out: TextIO | None = None,
    ) -> None:
        self._every, self._n_workers, self._coupling = every, n_workers, coupling
        self._answers, self._out = answers, out
        self._ended = self._explained = False

    def is_due(self, step: int) -> bool:
        """Return whether to ask after this number of steps."""
        return not self._ended and step % self._every == 0

    def ask(self, step: int, held: Mapping[str, Any]) -> Iterator[Change]:
        """Ask until the answer is an empty line, "quit", or the end of the input.

        Args:
            step: int >= 0. Steps taken so far.
            held: mapping of values by name. The current values.

        Yields:
            Each change as soon as it is typed, so that it can be applied and shown before the next.
        """
        held = dict(held)
        if not self._explained:
            self._say(_HELP)
            self._explained = True
        while True:
            values = "  ".join(f"{n} {held[n]:g}" for n in ("lr", "momentum", "alpha"))
            self._say(f"step {step} of {held['n_steps']}  {values}  > ", end="")
            line = (self._answers or sys.stdin).readline()
            if not line:
                self._ended = True
                self._say("\nno more answers: the run goes on without questions")
                return
            if self._answers is not None or not sys.stdin.isatty():
                self._say(line.rstrip("\n"))  # a terminal has echoed it already
            if not line.strip():
                return
            try:
                change = self._change(line, step)
            except ControlError as error:
                self._say(f"{error}. What can be said:\n{_HELP}")
                continue
            if change.name in held:
                held[change.name] = change.value
            yield change
            if change.name == "quit":
                return

    def _change(self, line: str, step: int) -> Change:
        name, *rest = line.replace("=", " ").split()
        if name in ("quit", "q"):
            return Change("quit", True, "prompt")
        if len(rest) != 1:
            raise ControlError(f"{line.strip()!r} is not a name and a value")
        value: Any = rest[0]
        if name == "steps":
            more = checked("n_steps", value, n_workers=self._n_workers)
            return Change("n_steps", step + more, "prompt")
        value = checked(name, value, n_workers=self._n_workers, coupling=self._coupling)
        return Change(name, value, "prompt")

    def _say(self, text: str, end: str = "\n") -> None:
        print(text, end=end, file=self._out or sys.stdout, flush=True)
