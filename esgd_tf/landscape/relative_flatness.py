"""Relative flatness: the curvature of a layer in units of its neurons' weights.

For the weights w_s of the neurons s of a layer, and the blocks H_st of the loss' Hessian by w_s and
w_t,

    κ = Σ_s Σ_t <w_s, w_t> tr H_st,                                       Petzka et al.

With the layer's weights as a matrix W [inputs, neurons], κ is the trace of the Hessian by Z,

    W(Z) = W + Z R,    R' R = W' W,    κ = Σ_ja ∂²f/∂Z_ja²,

where R is taken from the singular value decomposition of W, so that Z has inputs x min(inputs,
neurons) entries. The trace is estimated by Hutch++ (`trace.py`), and exact where these are few.
Where the layer is multiplied by c and the next one divided by c, κ stays as it is.

Beside it stands the product ‖W‖² tr H of the layer, which stays as it is too. It is what the
measure is often reduced to; of neurons whose weights are orthogonal, all of one length, it is κ
times their number.

Source: Petzka et al., "Relative flatness and generalization", NeurIPS 2021, arXiv 2001.00939. Not
checked against the text of the paper: κ is what the authors' released code computes
(github.com/kampmichael/RelativeFlatnessAndGeneralization, `calculateNeuronwiseHessians_fc_layer`,
without its optional division of the traces by the number of inputs), and nothing was found that
states ‖W‖² tr H in these terms. They measure one layer, fully connected; that the filters of a
convolution are its neurons is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from esgd_tf import _checks
from esgd_tf.landscape._objective import Objective, Selection
from esgd_tf.landscape._result import Result, Row, axes
from esgd_tf.landscape._types import Vector
from esgd_tf.landscape._vectors import Array
from esgd_tf.landscape.hessian import HessianOperator
from esgd_tf.landscape.operator import CurvatureOperator
from esgd_tf.landscape.trace import trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RelativeFlatness", "relative_flatness"]


@dataclasses.dataclass(frozen=True, eq=False)
class RelativeFlatness(Result):
    """The relative flatness of each layer: small is flat.

    Attributes:
        layers: The paths of the layers' weights.
        values: [l], κ of each.
        standard_errors: [l], of κ, as for `trace`; 0 where it is exact.
        norm_times_trace: [l], ‖W‖² tr H of each.
        norm_times_trace_errors: [l], its standard errors.
        matvecs: Products with a vector that it took.
    """

    layers: tuple[str, ...]
    values: Array
    standard_errors: Array
    norm_times_trace: Array
    norm_times_trace_errors: Array
    matvecs: int

    def rows(self) -> Iterator[Row]:
        """Yield both measures of each layer."""
        for k, layer in enumerate(self.layers):
            yield Row("", "relative flatness", layer, self.values[k], self.standard_errors[k])
            yield Row(
                "", "norm² x trace", layer, self.norm_times_trace[k],
                self.norm_times_trace_errors[k],
            )  # fmt: skip

    def plot(
        self, ax: Axes | None = None, *, color: str | None = None, label: str | None = None
    ) -> Axes:
        """Plot κ by layer, with two standard errors."""
        ax = axes(ax)
        at = np.arange(len(self.layers))
        ax.errorbar(
            at, self.values, yerr=2 * self.standard_errors, fmt="o", capsize=3, color=color,
            label=label,
        )  # fmt: skip
        ax.set_xticks(at, [name.rsplit("/kernel", 1)[0] for name in self.layers], rotation=30)
        ax.set(ylabel="relative flatness κ ± 2 std. err.")
        return ax


def relative_flatness(
    model: keras.Model | Sequence[Any],
    loss: Any = None,
    data: Any = None,
    *,
    num_matvecs: int = 99,
    batch_size: int | None = None,
    variables: Selection = None,
    seed: int = 0,
    progress: bool | None = None,
) -> RelativeFlatness:
    """Estimate the relative flatness of each layer.

    Args:
        model: keras.Model that is built, or a list of weights. The network, as for
            `HessianOperator`.
        loss: nested structure of losses, or callable. The loss, as for `HessianOperator`. Defaults
            to None, which takes the one that the model was compiled with.
        data: nested structure of arrays, tf.data.Dataset, or iterable of batches. The data, as for
            `HessianOperator`. Defaults to None, which means that there are none.
        num_matvecs: int >= 6. Products with a vector for each of two traces of a layer, as for
            `trace`. Defaults to 99.
        batch_size: int >= 1. Examples at a time, for arrays, as for `HessianOperator`. Defaults to
            None, which means 512, or 32 where it matters how the data are cut.
        variables: list of variables, layers, names or indices, or a callable. The layers, as for
            `HessianOperator`; biases and other vectors among them are passed over. Defaults to
            None, which takes all.
        seed: int >= 0. The seed of the random vectors. Defaults to 0.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        ValueError: As for `HessianOperator`, or none of the weights is that of a layer.
    """
    num_matvecs = _checks.integer("num_matvecs", num_matvecs, at_least=6)
    options = {"loss": loss, "data": data, "batch_size": batch_size}
    objective = Objective(model, variables=variables, **options)
    shapes = objective.shapes
    axes_of = objective.filter_axes or [(len(shape) - 1,) for shape in shapes]
    found = []
    for number, (shape, kept) in enumerate(zip(shapes, axes_of, strict=True)):
        if len(shape) < 2:
            continue
        hessian = HessianOperator(model, variables=[objective.places[number]], **options)
        layer = _LayerOperator(hessian, shape, kept)
        settings: dict[str, Any] = {"seed": seed, "progress": progress}
        kappa = trace(layer, num_matvecs, **settings)
        whole = trace(hessian, num_matvecs, **settings)
        square = float(np.square(hessian.weights()).sum())
        found.append((objective.names[number], kappa, whole, square))
    if not found:
        raise ValueError(
            "None of the weights is that of a layer: relative flatness is of kernels, not of "
            "biases and other vectors."
        )
    return RelativeFlatness(
        layers=tuple(name for name, *_ in found),
        values=np.array([kappa.estimate for _, kappa, *_ in found]),
        standard_errors=np.array([kappa.standard_error for _, kappa, *_ in found]),
        norm_times_trace=np.array([square * whole.estimate for *_, whole, square in found]),
        norm_times_trace_errors=np.array(
            [square * whole.standard_error for *_, whole, square in found]
        ),
        matvecs=sum(kappa.matvecs + whole.matvecs for _, kappa, whole, _ in found),
        measured_at=objective.measured_at,
    )


class _LayerOperator(CurvatureOperator):
    """The Hessian by Z, where the weights of a layer are W + Z R.

    Args:
        hessian: CurvatureOperator. The Hessian by the weights of the layer.
        shape: tuple of ints. The shape of the weights.
        kept: tuple of ints. The axes of their filters.
    """

    def __init__(
        self, hessian: CurvatureOperator, shape: tuple[int, ...], kept: tuple[int, ...]
    ) -> None:
        self._hessian, self._shape = hessian, shape
        within = tuple(k for k in range(len(shape)) if k not in kept)
        # Axes with those of the neurons last, and back again.
        self._order = within + tuple(kept)
        self._moved = tuple(shape[k] for k in self._order)
        self._neurons = int(np.prod([shape[k] for k in kept]))
        w = hessian.weights().reshape(shape).transpose(self._order).reshape(-1, self._neurons)
        _, singular, rows = np.linalg.svd(w, full_matrices=False)
        self._factor = singular[:, None] * rows
        n = len(w) * len(self._factor)
        self.shape, self.matvecs = (n, n), 0
        self.measured_at = hessian.measured_at

    def _columns(self, rows: NDArray[np.number[Any]]) -> Vector:
        self.matvecs += len(rows)
        count, rank = len(rows), len(self._factor)
        moves = rows.reshape(count, -1, rank) @ self._factor
        moves = moves.reshape(count, *self._moved)
        back = (0, *(1 + int(k) for k in np.argsort(self._order)))
        products = self._hessian._columns(moves.transpose(back).reshape(count, -1))
        there = (0, *(1 + k for k in self._order))
        products = products.reshape(count, *self._shape).transpose(there)
        products = products.reshape(count, -1, self._neurons)
        return np.asarray(products @ self._factor.T, np.float64).reshape(count, -1)
