"""nn-H-L: a fully connected network of L hidden layers of H ReLU units and nothing else.

nn-100-2 is the network of the walkers experiment and of the Hessian papers of Sagun et al.: 89,610
parameters for 28x28x1 and 10 classes. Its loss is a function of the weights alone, and smooth
except for the kinks of the ReLU, as measurements of its curvature require.

Source: elementary-walkers, load-model.lua (`nn`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from esgd_tf.models.registry import InputShape, register

if TYPE_CHECKING:
    import keras


def _check(hidden: int, layers: int) -> None:
    if min(hidden, layers) < 1:
        raise ValueError(
            f"nn-{hidden}-{layers} has no hidden units: give it at least 1 layer of 1 unit."
        )


@register("nn-{hidden}-{layers}", examples=("nn-100-2",), check=_check)
def nn(
    input_shape: InputShape,
    num_classes: int,
    *,
    dropout: float | None,
    seed: int | None,
    hidden: int,
    layers: int,
) -> keras.Model:
    """Build the network for images of any size, which it flattens.

    Args:
        input_shape: tuple of three ints. Height, width, channels.
        num_classes: int >= 1. The width of the logits.
        dropout: float in [0, 1). Rate after each hidden layer. None means 0.
        seed: int. The seed of weights and dropout. None lets Keras choose it. Weights and biases
            start uniform on +-1/sqrt(fan_in) (Torch's default).
        hidden: int >= 1. Units of each hidden layer.
        layers: int >= 1. Number of hidden layers.

    Returns:
        The model, from ``[batch, *input_shape]`` to logits ``[batch, num_classes]``.
    """
    from esgd_tf.models import _layers  # noqa: PLC0415 - loads TensorFlow

    keras = _layers.keras
    seeds = _layers.Seeds(seed)
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten(name="flatten")(inputs)
    for i in range(1, layers + 1):
        x = _layers.torch_dense(x, hidden, seeds, name=f"dense_{i}")
        x = _layers.relu(x, name=f"relu_{i}")
        x = _layers.drop(x, 0.0 if dropout is None else dropout, seeds, name=f"drop_{i}")
    logits = _layers.torch_dense(x, num_classes, seeds, name="logits", dtype=_layers.logits_dtype())
    return keras.Model(inputs, logits, name=f"nn-{hidden}-{layers}")
