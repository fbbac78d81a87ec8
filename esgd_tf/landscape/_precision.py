"""Full precision for measuring networks that are trained in mixed precision.

With `mixed_float16` and `mixed_bfloat16` the weights are float32 and activations have 11 or 8 bits.
That is enough to train by, and too little to measure by: sums over a batch lose what is smaller
than a 256th of them, so that a product with the Hessian shrinks as the batch grows, and squares of
small numbers vanish. So such a network is measured with float32 activations, at the same weights:
the loss is that of training but for the rounding of activations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

from esgd_tf import _keras

__all__ = ["in_full_precision", "refuse_half_weights"]

_HALF = ("float16", "bfloat16")


@contextlib.contextmanager
def in_full_precision(model: keras.Model) -> Iterator[None]:
    """Let the layers of a model compute in the dtype of their weights, and restore their policies.

    A graph that is traced inside the block computes in that dtype later too.

    Args:
        model: keras.Model. The model; one without mixed precision stays as it is.
    """
    # The attribute: setting the property would write into a policy that layers share by a map.
    mixed = [
        (layer, _keras.policy_of(layer))
        for layer in _keras.layers_in(model)
        if layer.compute_dtype in _HALF and layer.variable_dtype not in _HALF
    ]
    try:
        for layer, _ in mixed:
            _keras.set_policy(layer, keras.DTypePolicy(layer.variable_dtype))
        yield
    finally:
        for layer, policy in mixed:
            _keras.set_policy(layer, policy)


def refuse_half_weights(variables: list[keras.Variable]) -> None:
    """Refuse weights that have too few bits to be measured.

    Raises:
        ValueError: One of them is float16 or bfloat16.
    """
    for variable in variables:
        dtype = keras.backend.standardize_dtype(variable.dtype)
        if dtype in _HALF:
            raise ValueError(
                f"The weight {getattr(variable, 'path', '')!r} is stored as {dtype}, which rounds "
                "away what is measured: build the network with float32 weights (the "
                "policy 'float32' or a mixed one) and give it these weights by `set_weights`."
            )
