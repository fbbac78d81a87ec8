"""The same function by other weights: layers of a network with rectifiers, rescaled.

A function h with h(c x) = c h(x) for c > 0, such as ReLU, max pooling or flattening, passes a
factor on. So for a layer with kernel K_1 and bias b_1, h, and a layer with kernel K_2 and bias b_2,

    K_1 → c K_1,    b_1 → c b_1,    K_2 → K_2 / c,    b_2 → b_2

changes the weights and nothing that the network computes. A measure of width that changes with it
depends on something that the network does not show.

Source: Dinh et al., "Sharp minima can generalize for deep nets", ICML 2017, section 4; Neyshabur,
Salakhutdinov and Srebro, "Path-SGD", NeurIPS 2015.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras

from esgd_tf import _checks
from esgd_tf.landscape._calls import Call, FlatCopy, scaled
from esgd_tf.landscape._homogeneous import HAS_KERNEL, kernel_of, next_with_kernel
from esgd_tf.landscape.batch_norm_folding import fold_batch_norm, has_batch_norm

__all__ = ["rescaled"]


def rescaled(model: keras.Model, c: float | Mapping[str, float]) -> keras.Model:
    """Return a copy of a model that computes the same with other weights.

    Examples:
        >>> from esgd_tf import landscape
        >>> layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)]
        >>> network = keras.Sequential([keras.Input((6,)), *layers])
        >>> other = landscape.rescaled(network, 4.0)
        >>> landscape.trace(landscape.HessianOperator(other, loss, (x, y))).estimate

    Layers with a kernel (Dense, convolutions) are taken in pairs that follow each other, with only
    ReLU, LeakyReLU, PReLU, pooling, dropout, flattening, padding and the like between them. The
    first of a pair is multiplied by c and the kernel of the second divided by c: of four layers in
    a row, the first and the third are multiplied. Powers of 2 are exact; with other factors
    outputs differ by rounding. BatchNormalization is folded first (`fold_batch_norm`). Losses that
    regularisers add do change.

    Args:
        model: keras.Model that is built. A Sequential or functional network. Of a model that
            `EntropySGD` trains the anchor is taken, and of `Replicas` the center, as in all
            measures.
        c: float > 0, or a mapping of these by the names of layers. The factor. By name, it is that
            of a layer, of which the one that follows it is divided by it.

    Returns:
        The copy, which is functional, without models in models, and not compiled.

    Raises:
        ValueError: A factor is out of range; no two layers, or not those that were named, can be
            rescaled against each other; or BatchNormalization cannot be folded.
    """
    factors: dict[str, float] | None = None
    every = 1.0
    if isinstance(c, Mapping):
        factors = {
            str(name): _checks.real(f"c[{name!r}]", value, above=0) for name, value in c.items()
        }
        if not factors:
            raise ValueError("`c` names no layer.")
    else:
        every = _checks.real("c", c, above=0)
    copy = FlatCopy(model)
    if has_batch_norm(copy.model):
        copy = FlatCopy(fold_batch_norm(model))
    followed, reasons = _pairs(copy)
    if factors is None:
        factors, taken = {}, set[int]()
        for name, (first, second) in followed.items():
            if not {id(first.made), id(second.made)} & taken:
                factors[name] = every
                taken |= {id(first.made), id(second.made)}
        if not factors:
            why = "; ".join(f"layer {name!r}: {reason}" for name, reason in reasons.items())
            raise ValueError(
                f"No layer of {model.name!r} can be rescaled ({why or 'none has a kernel'}): there "
                "must be two with only rectifiers, pooling, flattening and the like between them."
            )
    for name, factor in factors.items():
        if name not in followed:
            can = ", ".join(map(repr, followed)) or "none"
            why = reasons.get(name, "the model has no such layer with a kernel")
            raise ValueError(f"Layer {name!r} cannot be rescaled: {why}. Those that can: {can}.")
        first, second = followed[name]
        scaled(kernel_of(first.made), factor)
        if getattr(first.made, "bias", None) is not None:
            scaled(first.made.bias, factor)
        scaled(kernel_of(second.made), 1 / factor)
    return copy.model


def _pairs(copy: FlatCopy) -> tuple[dict[str, tuple[Call, Call]], dict[str, str]]:
    """Return pairs of layers that follow each other, by the name of the first, and why others not.

    The names are those of the copy, in which no two are the same.
    """
    followed, reasons = {}, {}
    for number, call in enumerate(copy.calls):
        if type(call.layer) in HAS_KERNEL:
            found = next_with_kernel(copy, number)
            if isinstance(found, str):
                reasons[call.made.name] = found
            else:
                followed[call.made.name] = (call, found)
    return followed, reasons
