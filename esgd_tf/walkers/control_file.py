"""A JSON file that shows hyperparameters and may be edited. This module loads no TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esgd_tf.runs.run_folder import replaced_when_whole
from esgd_tf.walkers.control import HELD, Change, ControlError, checked, parsed

__all__ = ["ControlFile"]


class ControlFile:
    """A JSON file that shows the current hyperparameters and may be edited during the run.

    Only the values that differ from those last written or read count as edits, so that the run may
    change one value without undoing a user's edit of another.

    Args:
        path: Path. The file.
        n_workers: int >= 0. The number n of stochastic workers; workers are numbered 0 ... n.
        coupling: str. The coupling of the workers; see `checked`.
    """

    def __init__(self, path: Path, n_workers: int, coupling: str) -> None:
        self._path, self._n_workers, self._coupling = path, n_workers, coupling
        self._known: dict[str, Any] = {}
        self._signature: Any = None
        self._text = ""

    def write(self, held: Mapping[str, Any]) -> None:
        """Write the current values, unless the file has been edited since it was last read.

        Args:
            held: mapping of values by name. The current values, by the names in `HELD`.
        """
        if self._signature is not None and self._look() != self._signature:
            return  # an edit must be read first
        self._known = {**{name: held[name] for name in HELD}, "walk": None, "quit": False}
        if self._path.exists() and not self._path.is_file():
            return  # `read` reports a folder of that name
        text = json.dumps(self._known, indent=2) + "\n"
        with replaced_when_whole(self._path) as partial:
            partial.write_text(text)
        self._text, self._signature = text, self._look()

    def shows(self, held: Mapping[str, Any]) -> bool:
        """Return whether the file shows the current values and no request; True if it is invalid.

        Args:
            held: mapping of values by name. The current values, as for `write`.
        """
        try:
            found = parsed(self._text)
        except ValueError:
            return True  # the user may want to mend an invalid edit
        asked = {**{name: held[name] for name in HELD}, "walk": None, "quit": False}
        return not isinstance(found, dict) or found == asked

    def read(self) -> tuple[list[Change], list[str]]:
        """Return the edits since the file was last read, and sentences about invalid content.

        An unchanged file costs one system call. Invalid content gives one sentence and changes
        nothing until the file changes again.
        """
        signature = self._look()
        if signature == self._signature:
            return [], []
        self._signature = signature
        try:
            found = self._content()
        except ControlError as error:
            return [], [f"{self._path.name} {error}"]
        changes, complaints = [], []
        for name, value in found.items():
            if name in self._known and value == self._known[name]:
                continue
            if name in ("walk", "quit") and (value is None or value is False):
                self._known[name] = value
                continue
            try:
                new = checked(name, value, n_workers=self._n_workers, coupling=self._coupling)
            except ControlError as error:
                complaints.append(f"{self._path.name}: {error}; it is left as it was")
                continue
            if self._known.get(name) != new:
                changes.append(Change(name, new, self._path.name))
            self._known[name] = new
        return changes, ["; ".join(complaints)] if complaints else []

    def _content(self) -> dict[str, Any]:
        """Return the content of the file, or nothing if it is unchanged.

        Raises:
            ControlError: The file cannot be read or its content is invalid.
        """
        if self._signature is None:
            raise ControlError("is gone: it comes back with the next change")
        if not self._path.is_file():  # a pipe would block
            raise ControlError("is no file: nothing can be changed by it")
        try:
            text = self._path.read_text()
            if text == self._text:
                return {}
            self._text = text
            found = parsed(text)
        except OSError as error:
            reason = error.strerror or error
            raise ControlError(f"cannot be read and changes nothing ({reason})") from None
        except ValueError as error:
            raise ControlError(f"is no JSON and changes nothing ({error})") from None
        if not isinstance(found, dict):
            raise ControlError("holds no names and values, and changes nothing")
        return found

    def _look(self) -> Any:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
