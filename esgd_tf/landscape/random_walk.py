"""Random walks over the loss surface: how far can one stray before the loss rises?

    w(t+1) = w(t) + step_size N(0, I)

"free" walks until the loss leaves the excursion set {w: f(w) <= threshold}; the step at which it
does is the escape step. "rejecting" stays where it was whenever a step would leave the set, so that
it samples the set uniformly, as far as it is connected.

Source: the elementary-walkers code (free); Metropolis et al. 1953 (rejecting, for the density that
is constant on the set).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray

from esgd_tf import _checks
from esgd_tf.landscape._objective import Objective, Selection
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes
from esgd_tf.landscape._vectors import standard_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RandomWalk", "random_walk"]

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class RandomWalk(Result):
    """One or more walks from the same weights.

    Attributes:
        losses: [walks, steps + 1], f(w(t)); NaN after an escape. The first is f(w(0)).
        distances: [walks, steps + 1], ‖w(t) - w(0)‖.
        escape_steps: [walks], the step that left the set; -1 if none did.
        acceptance: [walks], the fraction of steps that were taken.
        threshold: Of the excursion set.
        step_size: Standard deviation of a step, for each weight.
        kind: "free" or "rejecting".
        end: [walks, n], where each walk ended. Not part of `to_dict`.
    """

    losses: Array
    distances: Array
    escape_steps: NDArray[np.int64]
    acceptance: Array
    threshold: float
    step_size: float
    kind: str
    end: Array = dataclasses.field(metadata={"written": False})

    @property
    def mean_escape_step(self) -> tuple[float, float]:
        """The mean escape step and its standard error; NaN unless every walk escaped.

        Two standard errors, which have Student's factor for the number of walks, hold the mean in
        89 to 95 of 100: escape steps are skewed, most of all in few dimensions.
        """
        steps = self.escape_steps.astype(np.float64)
        if np.any(steps < 0):
            return float("nan"), float("nan")
        return float(steps.mean()), float(standard_error(steps))

    def rows(self) -> Iterator[Row]:
        """Yield the loss of each walk by its steps."""
        for number, losses in enumerate(self.losses):
            for step, value in enumerate(losses):
                if math.isfinite(value):
                    yield Row("", f"walk {number}", step, value)

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot the loss of each walk against its steps."""
        ax = axes(ax)
        for number, losses in enumerate(self.losses):
            ax.plot(losses, lw=0.8, color=color, label=None if number else label)
        ax.axhline(
            self.threshold, color=color or "0.4", ls="--", lw=0.8,
            label=None if label else "threshold",
        )  # fmt: skip
        ax.set(xlabel="step", ylabel="loss", title=f"{self.kind} walks")
        ax.legend()
        return ax


def random_walk(
    model: keras.Model | Sequence[Any],
    loss: Any = None,
    data: Any = None,
    *,
    threshold: float,
    step_size: float = 0.005,
    kind: Literal["free", "rejecting"] = "free",
    max_steps: int = 1000,
    walks: int = 1,
    batch_size: int | None = None,
    variables: Selection = None,
    seed: int = 0,
    progress: bool | None = None,
) -> RandomWalk:
    """Walk at random from the model's weights; the model stays where it is.

    Args:
        model: keras.Model that is built, or a list of weights. The network, as for
            `HessianOperator`.
        loss: nested structure of losses, or callable. The loss, as for `HessianOperator`. Defaults
            to None, which takes the one that the model was compiled with.
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data, as for
            `HessianOperator`. Defaults to None, which means that there are none.
        threshold: float. Walk inside {f <= threshold}; the model must be inside.
        step_size: float > 0. The standard deviation of a step, for each weight. Defaults to 5e-3.
        kind: "free" or "rejecting". What happens at the threshold. Defaults to 'free'.
        max_steps: int >= 1. Steps after which a walk ends. Defaults to 1000.
        walks: int >= 1. Number of walks, one after the other. Defaults to 1.
        batch_size: int >= 1. Examples at a time, for arrays, as for `HessianOperator`. Defaults to
            None, which means 512, or 32 where it matters how the data are cut.
        variables: list of variables, layers, names or indices, or a callable. The weights that f is
            a function of, as for `HessianOperator`. Defaults to None, which means all trainable
            ones.
        seed: int >= 0. The seed of the steps; walk k of a seed is the same, however many there are.
            Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: An argument is out of range, or the model is outside the excursion set.
    """
    _checks.choice("kind", kind, ("free", "rejecting"))
    step_size = _checks.real("step_size", step_size, above=0)
    max_steps = _checks.integer("max_steps", max_steps, at_least=1)
    walks = _checks.integer("walks", walks, at_least=1)
    objective = Objective(model, loss, data, batch_size=batch_size, variables=variables)
    begin = objective.finite_start()
    if not begin <= threshold:
        raise ValueError(
            f"The walk would start outside: the loss is {begin:.6g} and `threshold` {threshold:g}."
        )
    start = objective.flatten(objective.start)
    losses = np.full((walks, max_steps + 1), np.nan)
    distances = np.full((walks, max_steps + 1), np.nan)
    losses[:, 0], distances[:, 0] = begin, 0.0
    escapes, acceptance = np.full(walks, -1), np.ones(walks)
    ends = np.empty((walks, objective.size))
    with progress_bar(walks * max_steps, "random walk", progress) as bar:
        for k in range(walks):
            rng = np.random.default_rng([seed, k])
            # In float64: small steps would be lost in large weights.
            offset, rejected = np.zeros_like(start), 0
            for t in range(1, max_steps + 1):
                proposed = offset + step_size * rng.standard_normal(objective.size)
                value = objective.evaluate(objective.unflatten(start + proposed))["loss"]
                bar.update(1)
                inside = value <= threshold  # not so for NaN
                if inside or kind == "free":
                    offset, losses[k, t] = proposed, value
                else:
                    rejected += 1
                    losses[k, t] = losses[k, t - 1]
                distances[k, t] = np.linalg.norm(offset)
                if not inside and kind == "free":
                    escapes[k] = t
                    break
            if kind == "rejecting":
                acceptance[k] = 1 - rejected / max_steps
            ends[k] = start + offset
    return RandomWalk(
        losses=losses,
        distances=distances,
        escape_steps=escapes,
        acceptance=acceptance,
        threshold=float(threshold),
        step_size=float(step_size),
        kind=kind,
        end=ends,
        measured_at=objective.measured_at,
    )
