"""lenet-A-B-H: LeNet without batch normalisation, of any size.

Two blocks of a 5x5 convolution (A, then B filters), ReLU and max-pooling by 2, then a hidden layer
of H units. lenet-10-20-128 is the small-LeNet whose Hessian Chaudhari et al. formed: 47,658
parameters for 28x28x1 and 10 classes. Without batch normalisation the loss is a function of the
weights alone, as measurements of its curvature require.

Source: Chaudhari et al., arXiv 1611.01838, section 3 (their sizes; ReLU and pooling by 2 reproduce
the number of parameters).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from esgd_tf.models.registry import InputShape, register

if TYPE_CHECKING:
    import keras


def _check(first: int, second: int, hidden: int) -> None:
    if min(first, second, hidden) < 1:
        raise ValueError(
            f"lenet-{first}-{second}-{hidden} has a layer without units: give each at least 1."
        )


@register("lenet-{first}-{second}-{hidden}", examples=("lenet-10-20-128",), check=_check)
def lenet(
    input_shape: InputShape,
    num_classes: int,
    *,
    dropout: float | None,
    seed: int | None,
    first: int,
    second: int,
    hidden: int,
) -> keras.Model:
    """Build a LeNet, for 28x28 grey images or any others from 16x16 up.

    Args:
        input_shape: tuple of three ints. Height, width, channels.
        num_classes: int >= 1. The width of the logits.
        dropout: float in [0, 1). Rate after the hidden layer. None means 0.
        seed: int. The seed of weights and dropout. None lets Keras choose it. Weights and biases
            start uniform on +-1/sqrt(fan_in) (Torch's default).
        first: int >= 1. Filters of the first convolution.
        second: int >= 1. Filters of the second convolution.
        hidden: int >= 1. Units of the hidden layer.

    Returns:
        The model, from ``[batch, *input_shape]`` to logits ``[batch, num_classes]``.

    Raises:
        ValueError: If height or width is below 16 pixels, which leaves nothing to pool.
    """
    from esgd_tf.models import _layers as nn  # noqa: PLC0415 - loads TensorFlow

    name = f"lenet-{first}-{second}-{hidden}"
    nn.require_size(name, input_shape, 16)
    seeds = nn.Seeds(seed)
    x = inputs = nn.keras.Input(input_shape)
    for i, filters in enumerate((first, second), start=1):
        x = nn.torch_conv(x, filters, 5, seeds, name=f"conv_{i}")
        x = nn.keras.layers.MaxPooling2D(2, name=f"pool_{i}")(x)
        x = nn.relu(
            x, name=f"relu_{i}"
        )  # max commutes with ReLU, and there are 4 times fewer numbers now
    x = nn.keras.layers.Flatten(name="flatten")(x)
    x = nn.torch_dense(x, hidden, seeds, name="dense_3")
    x = nn.relu(x, name="relu_3")
    x = nn.drop(x, 0.0 if dropout is None else dropout, seeds, name="drop_3")
    logits = nn.torch_dense(x, num_classes, seeds, name="logits", dtype=nn.logits_dtype())
    return nn.keras.Model(inputs, logits, name=name)
