"""Factors on the step sizes of single weights or layers, chosen by the weights' paths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import keras

from esgd_tf import _checks


class Multipliers:
    """Factors on a step size, by regular expressions that are searched in the weights' paths.

    Args:
        name: str. The name of the argument, for errors.
        factors: dict of floats >= 0 by regular expression. The factors; None for 1 everywhere.

    Raises:
        ValueError: A factor is not a number >= 0, or a pattern is not a regular expression.
    """

    def __init__(self, name: str, factors: Mapping[str, float] | None) -> None:
        self._name = name
        if factors is not None and not isinstance(factors, Mapping):
            raise ValueError(
                f"`{name}` must be a dict of factors by patterns of weights' paths, such as "
                f"{{'head/': 10.0}}, or None; got {factors!r}."
            )
        self.factors = {
            pattern: _checks.real(f"{name}[{pattern!r}]", factor, at_least=0)
            for pattern, factor in (factors or {}).items()
        }
        for pattern in self.factors:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise ValueError(
                    f"`{name}` has the pattern {pattern!r}, which is no regular expression: "
                    f"{error}."
                ) from None
        self._of: list[float] = []

    def build(self, weights: Sequence[keras.Variable]) -> None:
        """Find the factor of every weight.

        Raises:
            ValueError: A pattern is found in no weight's path, or two are found in one.
        """
        paths = [getattr(weight, "path", weight.name) for weight in weights]
        for pattern in self.factors:
            if not any(re.search(pattern, path) for path in paths):
                raise ValueError(
                    f"`{self._name}` names {pattern!r}, which is found in no weight's path: they "
                    f"are {', '.join(paths)}."
                )
        self._of = []
        for path in paths:
            found = [pattern for pattern in self.factors if re.search(pattern, path)]
            if len(found) > 1:
                raise ValueError(
                    f"`{self._name}` has more than one pattern for the weight {path}: "
                    f"{', '.join(map(repr, found))}."
                )
            self._of.append(self.factors[found[0]] if found else 1.0)

    def of(self, i: int) -> float:
        """Return the factor of weight number i."""
        return self._of[i]

    def config(self) -> dict[str, float] | None:
        """Return the constructor's argument."""
        return dict(self.factors) or None
