"""The trial of an operator when it is made, and the error that names the layer or loss at fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esgd_tf.landscape._check import Trial, few_examples, mistake
from esgd_tf.landscape._culprit import culprit
from esgd_tf.landscape._float64 import in_float64, wide
from esgd_tf.landscape._second_derivatives import without_second_derivative
from esgd_tf.landscape._types import Batch, Held, Tensors

if TYPE_CHECKING:
    from esgd_tf.landscape.operator import CurvatureOperator

__all__ = ["NOT_DIFFERENTIABLE", "no_products", "try_products"]

# The errors that TensorFlow raises where an operation has no gradient: which one depends on the
# caller and on the operation.
NOT_DIFFERENTIABLE = (LookupError, TypeError, AttributeError, NotImplementedError)


def try_products(operator: CurvatureOperator) -> None:
    """Compare products of an operator with what they should be, on a few examples.

    Raises:
        ValueError: They are wrong, or there are none.
    """
    error = _found(operator)
    if error is not None:
        raise error[0] from error[1]


def no_products(operator: CurvatureOperator) -> ValueError:
    """Return the error to raise where TensorFlow failed to compute a product."""
    found = _found(operator)
    return _refusal(operator, "the network") if found is None else found[0]


def _found(operator: CurvatureOperator) -> tuple[ValueError, Exception | None] | None:
    """Return the error to raise for an operator and its cause; None if the operator is right."""
    objective = operator._objective
    weights, held, batch = objective.start, objective.held, few_examples(objective)
    with in_float64(objective.model):
        at, kept, few = wide(weights), wide(held), wide(batch)
        try:
            return _judged(operator, at, kept, few, double=True)
        except _NotInFloat64:
            pass
    return _judged(operator, weights, held, batch, double=False)


class _NotInFloat64(Exception):  # noqa: N818
    """A layer or a loss cannot be computed in float64."""


def _judged(
    operator: CurvatureOperator, weights: Tensors, held: Held, batch: Batch, double: bool
) -> tuple[ValueError, Exception | None] | None:
    f = operator._objective.batch_loss
    trial = Trial(
        lambda w: f.gradient_sum(w, held, *batch),
        lambda w, columns: operator._product_of_a_batch(f, w, columns, held, *batch),
        lambda w, v, step: operator._difference(f, w, v, step, held, *batch),
    )
    raised = None
    try:
        with without_second_derivative() as names:
            wrong = mistake(trial, weights, double=double)
    except Exception as error:  # anything, from a layer that is given float64
        if double:
            try:
                trial.gradient(weights)
            except Exception:
                raise _NotInFloat64 from None
        if not isinstance(error, NOT_DIFFERENTIABLE):
            raise
        wrong, raised = "it has none", error
    if names and operator.needs_second_derivatives:
        return _refusal(operator, names[0]), raised
    if wrong is None:
        return None
    name = culprit(f, weights, held, batch, double)
    return _refusal(operator, name), raised


def _refusal(operator: CurvatureOperator, name: str) -> ValueError:
    if "loss" in name:
        instead = "use another loss, or write this one with operations that it can"
    else:
        instead = (
            "leave it out, write it with operations that it can, or vary only weights that come "
            "after it (`variables`)"
        )
    return ValueError(
        f"There are no right products with {operator.matrix} here, because TensorFlow cannot "
        f"differentiate {name} twice: {instead}."
    )
