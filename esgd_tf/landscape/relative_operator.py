"""Curvature in units of the weights themselves: D A D for a curvature matrix A.

In the coordinates z around w, in which a step is measured by the weights' own size,

    w_i(z) = w_i (1 + z_i),               D = diag(w)             per="weight"
    w_i(z) = w_i + ‖w_F(i)‖ z_i,          D = diag(‖w_F(i)‖)      per="filter"

with F(i) the filter that weight i belongs to (see `_filters.py`), the gradient of the loss is D g
and its Hessian D H D: w is linear in z, so that no term with the gradient is added. Where a layer
of a network with rectifiers is multiplied by c and the next one divided by c, f as a function of z
is the same as before, and so is D H D; H is not.

For small σ, the local energy of the loss under multiplicative noise is

    E_z[f(w + σ z * w)] - f(w) = σ²/2 tr(D H D) + O(σ⁴),    z ~ N(0, I).

Sources: Dinh et al., "Sharp minima can generalize for deep nets", ICML 2017, section 4 (the
reparametrisation that changes H); Tsuzuku, Sato and Sugiyama, "Normalized flat minima", ICML 2020,
and Li et al., "Visualizing the loss landscape of neural nets", NeurIPS 2018 (filters as units).
"""

from __future__ import annotations

import copy
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esgd_tf import _checks
from esgd_tf.landscape._filters import filter_norms
from esgd_tf.landscape._types import Vector, Weights
from esgd_tf.landscape.operator import CurvatureOperator

__all__ = ["RelativeOperator"]


class RelativeOperator(CurvatureOperator):
    """The curvature of the loss by relative changes of the weights, D A D.

    Examples:
        >>> from esgd_tf import landscape
        >>> H = landscape.HessianOperator(model, loss, (x, y))
        >>> landscape.eigenpairs(landscape.RelativeOperator(H), k=5).eigenvalues

    Eigenvalues, density, trace and diagonal are taken of it as of H itself. A product costs one
    with A. Directions and vectors are in the coordinates z: a step along z moves weight i by
    `scale[i] * z[i]`, and `gradient()` is that by z.

    Args:
        operator: CurvatureOperator. A, the Hessian, Gauss-Newton or Fisher matrix.
        per: "weight" or "filter". What the unit of a weight is: the weight itself, or the norm of
            its filter (of a bias, its absolute value). Defaults to 'weight'.

    Attributes:
        per: The unit.
        scale: [n], the diagonal of D.

    Raises:
        ValueError: `operator` is no curvature operator or a relative one already, or `per` is
            something else.
    """

    def __init__(
        self, operator: CurvatureOperator, per: Literal["weight", "filter"] = "weight"
    ) -> None:
        _checks.choice("per", per, ("weight", "filter"))
        if not isinstance(operator, CurvatureOperator) or isinstance(operator, RelativeOperator):
            raise ValueError(
                "`operator` must be a HessianOperator, GaussNewtonOperator or FisherOperator; got "
                f"a {type(operator).__name__}."
            )
        self.per = per
        self.matrix = f"{operator.matrix} in relative coordinates"
        self.needs_second_derivatives = operator.needs_second_derivatives
        self._take(operator)

    def _take(self, operator: CurvatureOperator) -> None:
        self._operator = operator
        self.shape, self.measured_at = operator.shape, operator.measured_at
        self.matvecs = 0
        weights = operator.weights()
        if self.per == "weight":
            self.scale = weights
        else:
            objective = operator._objective
            self.scale = filter_norms(weights, objective.shapes, objective.filter_axes)

    def at(self, weights: Weights | ArrayLike | None = None) -> Self:
        """See `CurvatureOperator.at`."""
        other = copy.copy(self)
        other._take(self._operator.at(weights))
        return other

    def _columns(self, rows: NDArray[np.number[Any]]) -> Vector:
        self.matvecs += len(rows)
        return self._operator._columns(rows * self.scale) * self.scale

    @property
    def block_size(self) -> int:
        """See `CurvatureOperator.block_size`."""
        return self._operator.block_size

    def weights(self) -> Vector:
        """Return w, not in the coordinates z."""
        return self._operator.weights()

    def loss(self) -> float:
        """See `CurvatureOperator.loss`."""
        return self._operator.loss()

    def gradient(self) -> Vector:
        """Return D ∇f(w), the gradient by z, a vector [n]."""
        return self.scale * self._operator.gradient()

    def unflatten(self, v: ArrayLike) -> list[NDArray[np.floating[Any]]]:
        """See `CurvatureOperator.unflatten`."""
        return self._operator.unflatten(v)
