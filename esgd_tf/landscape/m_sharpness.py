"""The sharpness that SAM lowers: that of groups of m examples, each with its own step.

For a group B of m examples with mean loss f_B and gradient g_B,

    sam     s_B = f_B(w + ρ g_B / ‖g_B‖) - f_B(w)
    asam    s_B = f_B(w + ρ T² g_B / ‖T g_B‖) - f_B(w),    T = diag(|w_i| + η)

SAM takes its step on minibatches (on each device for a part of one), so that what it lowers is the
mean of s_B over groups, not the sharpness of the loss over all the data, which is the case m = N.
To first order that mean is ρ times the mean of ‖g_B‖, which grows as m falls: each group chooses a
direction of its own.

Sources: Foret et al., "Sharpness-aware minimization", ICLR 2021, section 4.1 (m-sharpness); Kwon et
al., "ASAM: adaptive sharpness-aware minimization", ICML 2021 (asam).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from esgd_tf import _checks
from esgd_tf.landscape._climb import Array, Climb, one_step
from esgd_tf.landscape._objective import Objective, Selection
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes
from esgd_tf.landscape._vectors import standard_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MSharpness", "m_sharpness"]

_RADIUS = {"sam": 0.05, "asam": 0.5}


@dataclasses.dataclass(frozen=True, eq=False)
class MSharpness(Result):
    """The sharpness of groups of examples.

    Attributes:
        mean: Of the groups' sharpness.
        standard_error: Of the mean, from the spread of the groups, with Student's factor for their
            number. NaN with a single group.
        worst: The largest sharpness of a group.
        values: [g], of each group.
        losses: [g], f_B(w) of each group.
        kind: "sam" or "asam".
        m: The number of examples of a group.
        radius: ρ.
        gradient_evaluations: Gradients of groups that it took.
    """

    mean: float
    standard_error: float
    worst: float
    values: Array
    losses: Array
    kind: str
    m: int
    radius: float
    gradient_evaluations: int

    def rows(self) -> Iterator[Row]:
        """Yield the mean and the worst, at the number of examples of a group."""
        yield Row("", f"mean m-sharpness ({self.kind})", self.m, self.mean, self.standard_error)
        yield Row("", f"worst m-sharpness ({self.kind})", self.m, self.worst)

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot the sharpness of the groups in order, and the mean as a line."""
        ax = axes(ax)
        rank = np.arange(1, len(self.values) + 1)
        (points,) = ax.plot(rank, np.sort(self.values)[::-1], ".", color=color, label=label)
        ax.axhline(self.mean, color=points.get_color(), lw=1, ls="--")
        ax.set(xlabel="group, sorted", ylabel=f"{self.kind} sharpness of {self.m:,} examples")
        ax.locator_params(axis="x", integer=True)  # groups are counted
        return ax


def m_sharpness(
    model: keras.Model | Sequence[Any],
    loss: Any = None,
    data: Any = None,
    *,
    m: int = 128,
    kind: Literal["sam", "asam"] = "sam",
    radius: float | None = None,
    eta: float = 0.01,
    groups: int | None = None,
    batch_size: int | None = None,
    variables: Selection = None,
    seed: int = 0,
    progress: bool | None = None,
) -> MSharpness:
    """Measure the sharpness of groups of m examples, each in the direction of its own gradient.

    The examples are shuffled and cut into groups; those left over, fewer than m, are not used. With
    m = N it is `sharpness` of the same kind.

    Args:
        model: keras.Model that is built, or a list of weights. The network, as for
            `HessianOperator`.
        loss: nested structure of losses, or callable. The loss, as for `HessianOperator`. Defaults
            to None, which takes the one that the model was compiled with.
        data: nested structure of arrays. Arrays (x, y) or (x, y, sample_weight), which can be cut
            into groups. Defaults to None, which is refused.
        m: int in [1, N]. Examples of a group. Defaults to 128.
        kind: "sam" or "asam". Which sharpness. Defaults to 'sam'.
        radius: float > 0. ρ. Defaults to None, which means 0.05 for sam and 0.5 for asam.
        eta: float >= 0. η of asam. Defaults to 0.01.
        groups: int >= 1. The most groups that are measured. Defaults to None, which measures all
            N / m.
        batch_size: int >= 1. Examples at a time, as for `HessianOperator`: memory, not the result.
            Defaults to None, which means 512, or 32 where it matters how the data are cut.
        variables: list of variables, layers, names or indices, or a callable. The weights that f is
            a function of, as for `HessianOperator`. Defaults to None, which means all trainable
            ones.
        seed: int >= 0. The seed of the shuffle. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: An argument is out of range, the data are no arrays, or the loss or its gradient
            is not finite.
    """
    _checks.choice("kind", kind, tuple(_RADIUS))
    radius = _checks.real("radius", _RADIUS[kind] if radius is None else radius, above=0)
    eta = _checks.real("eta", eta, at_least=0)
    if groups is not None:
        groups = _checks.integer("groups", groups, at_least=1)
    objective = Objective(model, loss, data, batch_size=batch_size, variables=variables)
    if not objective.is_over_arrays:
        raise ValueError("m-sharpness cuts the data into groups: give arrays, such as (x, y).")
    count = int(objective.count)
    m = _checks.integer("m", m, at_least=1, at_most=count)
    objective.finite_start()
    start = objective.flatten(objective.start)
    scale = np.abs(start) + eta if kind == "asam" else np.ones_like(start)
    order = np.random.default_rng(seed).permutation(count)
    number = count // m if groups is None else min(groups, count // m)
    values, losses, evaluations = np.empty(number), np.empty(number), 0
    with progress_bar(number, "m-sharpness", progress) as bar:
        for k in range(number):
            # In their order, so that the sums of a single group are those of all the data.
            group = objective.of_examples(np.sort(order[k * m : (k + 1) * m]))
            climb = Climb(group, start, _Silent())
            delta, _ = one_step(climb, radius, scale)
            losses[k] = group.evaluate()["loss"]
            values[k] = group.evaluate(group.unflatten(start + delta))["loss"] - losses[k]
            evaluations += climb.evaluations
            if not np.isfinite(values[k]):
                raise ValueError(
                    "The loss of a group is not finite at the perturbed weights, at a distance of "
                    f"{np.linalg.norm(delta):.3g}: take a smaller `radius`."
                )
            bar.update(1)
    return MSharpness(
        mean=float(values.mean()),
        standard_error=float(standard_error(values)),
        worst=float(values.max()),
        values=values,
        losses=losses,
        kind=kind,
        m=m,
        radius=radius,
        gradient_evaluations=evaluations,
        measured_at=objective.measured_at,
    )


class _Silent:
    """A bar that shows nothing: the one of the measure counts groups."""

    def update(self, number: int) -> None:
        pass
