"""How far the weights can move in the worst direction before the network gets much worse.

    α* = the largest α with   max_{|u_i| <= α b_i} E(w + u) - E(w) <= bound

    b_i = 1             box="additive"
    b_i = |w_i| + ε     box="relative"

with E the error rate, or the loss. The maximum over a box is sought by L-BFGS-B on the LOSS, as in
`sharpness(kind="epsilon")`, and E is taken where that ends; α is bracketed by doubling, then
bisected. Every u that is found lies in all larger boxes too. So where an ascent finds a rise above
the bound, α* is certainly below; where it finds none, a better ascent might. What is returned is
therefore an upper bound of α*, up to the bisection.

Source: Jiang et al., "Fantastic generalization measures and where to find them", ICLR 2020: the α
of their sharpness measures 1/α² and, with the relative box, 1/α'², at which the accuracy drops by
0.1. (They climb by steps of the gradient.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from esgd_tf import _checks
from esgd_tf.landscape._climb import Array, Climb, NotFiniteError, maximise_in_box
from esgd_tf.landscape._metrics import Metric, named_metrics
from esgd_tf.landscape._objective import Objective, Selection
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, Row, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["WorstCaseRadius", "worst_case_radius"]

# Where the search begins, as a part of `max_radius`, and where it ends downwards.
_FIRST, _LEAST = 1e-4, 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class WorstCaseRadius(Result):
    """The largest box in which an ascent does not make the network much worse.

    Attributes:
        radius: The largest α that was tried below the first one that exceeds the bound.
        beyond: That first one; inf if there is none. The true α* is below it.
        increase: By how much the metric rises at the end of the ascent in the box of `radius`.
        increase_beyond: The same of `beyond`; NaN if there is none.
        bound: What it was to stay below.
        box: "additive" or "relative".
        epsilon: ε of the relative box; 0 for the additive one.
        gradient_evaluations: Passes over the data with a gradient.
        bracketed: False if even the box of `max_radius` stays below the bound; the radius is then
            `max_radius`.
    """

    radius: float
    beyond: float
    increase: float
    increase_beyond: float
    bound: float
    box: str
    epsilon: float
    gradient_evaluations: int
    bracketed: bool

    def rows(self) -> Iterator[Row]:
        """Yield the radius, at the bound."""
        yield Row("", f"worst-case radius ({self.box})", self.bound, self.radius)

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot the radius, with what the bisection left open."""
        ax = axes(ax)
        open_above = [self.beyond - self.radius] if np.isfinite(self.beyond) else [0.0]
        ax.errorbar(
            [0], [self.radius], yerr=[[0.0], open_above], fmt="o", capsize=4, color=color,
            label=label,
        )  # fmt: skip
        ax.set(ylabel=f"largest α ({self.box} box) with increase ≤ {self.bound:g}", xticks=[])
        return ax


def worst_case_radius(
    model: keras.Model | Sequence[Any],
    data: Any,
    metric: Metric = "error",
    *,
    bound: float = 0.1,
    box: Literal["additive", "relative"] = "additive",
    epsilon: float = 1e-3,
    max_radius: float = 10.0,
    max_steps: int = 20,
    rtol: float = 0.02,
    loss: Any = None,
    batch_size: int | None = None,
    variables: Selection = None,
    progress: bool | None = None,
) -> WorstCaseRadius:
    """Find the largest box in which gradient ascent raises a metric by no more than a bound.

    Args:
        model: keras.Model that is built, or a list of weights. The network, as for
            `HessianOperator`; with a list of weights `metric` is "loss".
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data, as for
            `HessianOperator`.
        metric: str, metric or callable. What must not rise, as for `local_energy`, but one only.
            Defaults to 'error'.
        bound: float > 0. By how much it may rise; of the error, 0.1 is 10 % points. Defaults to
            0.1.
        box: "additive" or "relative". Whether the box is the same for all weights, or in units of
            |w_i| + ε. Defaults to 'additive'.
        epsilon: float > 0. ε of the relative box. Defaults to 1e-3.
        max_radius: float > 0. Where the search gives up. Defaults to 10.0.
        max_steps: int >= 1. The most steps of L-BFGS-B in a box. Defaults to 20.
        rtol: float > 0. The relative accuracy of the radius. Defaults to 0.02.
        loss: nested structure of losses, or callable. The loss that is climbed, as for
            `HessianOperator`. Defaults to None, which takes the one that the model was compiled
            with.
        batch_size: int >= 1. Examples at a time, for arrays, as for `HessianOperator`. Defaults to
            None, which means 512, or 32 where it matters how the data are cut.
        variables: list of variables, layers, names or indices, or a callable. The weights that
            move, as for `HessianOperator`. Defaults to None, which moves all trainable ones.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: An argument is out of range, the loss or the metric is not finite at these
            weights, or no box is small enough.
    """
    bound = _checks.real("bound", bound, above=0)
    _checks.choice("box", box, ("additive", "relative"))
    epsilon = _checks.real("epsilon", epsilon, above=0)
    max_radius = _checks.real("max_radius", max_radius, above=0)
    max_steps = _checks.integer("max_steps", max_steps, at_least=1)
    rtol = _checks.real("rtol", rtol, above=0)
    metrics = named_metrics(metric)
    if len(metrics) != 1:
        raise ValueError("`metric` must be one: the radius is searched for each alone.")
    ((name, function),) = metrics.items()
    # The loss is climbed, whatever is measured.
    beside = {} if isinstance(function, str) and function == "loss" else metrics
    objective = Objective(
        model, loss, data, batch_size=batch_size, variables=variables, metrics=beside
    )
    objective.finite_start()
    reference = objective.evaluate()[name]
    if not np.isfinite(reference):
        raise ValueError(f"The {name} at the weights of the model is {reference}.")
    start = objective.flatten(objective.start)
    sides = np.ones_like(start) if box == "additive" else np.abs(start) + epsilon
    rises: dict[float, float] = {}

    def exceeds(radius: float) -> bool:
        if radius not in rises:
            rises[radius] = _rise(objective, climb, start, radius * sides, max_steps, name)
            rises[radius] -= reference
        return rises[radius] > bound

    with progress_bar(None, "worst-case radius", progress) as bar:
        climb = Climb(objective, start, bar)
        low = _FIRST * max_radius
        while not exceeds(low) and low < max_radius:
            low = min(2 * low, max_radius)
        bracketed, high = exceeds(low), float("inf")
        while exceeds(low):
            low, high = low / 2, low
            if low < _LEAST * max_radius:
                raise ValueError(
                    f"No box keeps the increase of {name} below {bound}: take a larger `bound`."
                )
        while bracketed and high > (1 + rtol) * low:
            middle = float(np.sqrt(low * high))
            if exceeds(middle):
                high = middle
            else:
                low = middle
    return WorstCaseRadius(
        radius=low,
        beyond=high,
        increase=rises[low],
        increase_beyond=rises.get(high, float("nan")),
        bound=bound,
        box=box,
        epsilon=epsilon if box == "relative" else 0.0,
        gradient_evaluations=climb.evaluations,
        bracketed=bracketed,
        measured_at=objective.measured_at,
    )


def _rise(
    objective: Objective, climb: Climb, start: Array, box: Array, steps: int, name: str
) -> float:
    """Return the metric where the ascent in a box ends; inf where the loss becomes infinite."""
    try:
        delta, _, _ = maximise_in_box(climb, box, steps)
    except NotFiniteError:
        return float("inf")
    value = objective.evaluate(objective.unflatten(start + delta))[name]
    # A network of NaN is a bad one.
    return float("inf") if np.isnan(value) else value
