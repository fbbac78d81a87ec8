"""mnistfc: the fully connected network of the Entropy-SGD paper.

Two hidden layers of 1024 units, each followed by batch normalisation, ReLU and dropout, as in
the authors' PyTorch code. (The experiments of the paper ran without batch normalisation, which
was added to the code later.) 1,867,786 trainable parameters for 28x28x1 and 10 classes.

Source: Chaudhari et al., arXiv 1611.01838, and the PyTorch code they released.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from esgd_tf.models.registry import InputShape, register

if TYPE_CHECKING:
    import keras

_WIDTH = 1024


@register("mnistfc")
def mnistfc(
    input_shape: InputShape, num_classes: int, *, dropout: float | None, seed: int | None
) -> keras.Model:
    """Build mnistfc for images of any size, which it flattens.

    Args:
        input_shape: tuple of three ints. Height, width, channels.
        num_classes: int >= 1. The width of the logits.
        dropout: float in [0, 1). Rate after each hidden layer, times 0.4 on the input. None means
            0.5 (so 0.2 on the input), as in the released code; the paper's Entropy-SGD runs used
            0.15.
        seed: int. The seed of weights and dropout. None lets Keras choose it. Weights and biases
            start uniform on +-1/sqrt(fan_in) (Torch's default).

    Returns:
        The model, from ``[batch, *input_shape]`` to logits ``[batch, num_classes]``.
    """
    from esgd_tf.models import _layers as nn  # noqa: PLC0415 - loads TensorFlow

    rate = 0.5 if dropout is None else dropout
    seeds = nn.Seeds(seed)
    inputs = nn.keras.Input(input_shape)
    x = nn.keras.layers.Flatten(name="flatten")(inputs)
    x = nn.drop_input(x, rate, seeds)
    for i in (1, 2):
        x = nn.torch_dense(x, _WIDTH, seeds, name=f"dense_{i}")
        x = nn.batch_norm(x, name=f"bn_{i}")
        x = nn.relu(x, name=f"relu_{i}")
        x = nn.drop(x, rate, seeds, name=f"drop_{i}")
    logits = nn.torch_dense(x, num_classes, seeds, name="logits", dtype=nn.logits_dtype())
    return nn.keras.Model(inputs, logits, name="mnistfc")
