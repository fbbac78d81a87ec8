"""The changes of a schedule, by step, and which of them come too late to take effect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from esgd_tf.walkers.control import Change

__all__ = ["Schedule"]

# After the last step these changes have no effect; a walk is still taken, and n_steps adds steps.
_OF_STEPS = ("lr", "momentum", "alpha")


class Schedule:
    """The changes of a schedule, by step.

    Args:
        changes: iterable of pairs. The number of steps before each change, and the change; changes
            at one step are applied in their order.
    """

    def __init__(self, changes: Iterable[tuple[int, Change]]) -> None:
        self._changes: dict[int, list[Change]] = {}
        for step, change in changes:
            self._changes.setdefault(step, []).append(change)
        self._told: set[tuple[int, int]] = set()

    def at(self, step: int) -> Sequence[Change]:
        """Return the changes after this number of steps."""
        return self._changes.get(step, ())

    def end(self, step: int, n_steps: int) -> int:
        """Return the step after which the run will end if nothing else changes.

        Args:
            step: int >= 0. Steps taken so far; changes at this step are not made yet, or `n_steps`
                includes them.
            n_steps: int >= 0. The total number of steps that is in force now.
        """
        for at in sorted(self._changes):
            if not step <= at <= n_steps:
                continue
            for change in self._changes[at]:
                if change.name == "n_steps":
                    n_steps = max(change.value, at)
                elif change.name == "quit" and change.value:
                    return at
        return n_steps

    def newly_late(self, step: int, n_steps: int) -> list[tuple[int, Change]]:
        """Return the changes that will never take effect and were not returned before.

        Args:
            step: int >= 0. Steps taken so far, as for `end`.
            n_steps: int >= 0. The total number of steps, as for `end`.
        """
        end = self.end(step, n_steps)
        late = []
        for at in sorted(self._changes):
            for number, change in enumerate(self._changes[at]):
                acts = at < end or (at == end and change.name not in _OF_STEPS)
                if at >= step and not acts and (at, number) not in self._told:
                    self._told.add((at, number))
                    late.append((at, change))
        return late
