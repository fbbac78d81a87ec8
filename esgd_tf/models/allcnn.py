"""allcnn: All-CNN-C with batch normalisation, the CIFAR-10 network of the Entropy-SGD paper.

Nine convolutions, each with bias, batch normalisation and ReLU (the last 1x1 one too), then the
average over the image. Two convolutions of stride 2 replace pooling layers. 1,667,166 trainable
parameters for 3 channels and 10 classes.

Sources: Springenberg et al., arXiv 1412.6806 (All-CNN-C); Chaudhari et al., arXiv 1611.01838,
and the code they released (batch normalisation, places of dropout).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from esgd_tf.models.registry import InputShape, register

if TYPE_CHECKING:
    import keras

# Filters, kernel size, stride, and whether dropout follows.
_CONVOLUTIONS = (
    (96, 3, 1, False),
    (96, 3, 1, False),
    (96, 3, 2, True),
    (192, 3, 1, False),
    (192, 3, 1, False),
    (192, 3, 2, True),
    (192, 3, 1, False),
    (192, 3, 1, False),
)


@register("allcnn")
def allcnn(
    input_shape: InputShape, num_classes: int, *, dropout: float | None, seed: int | None
) -> keras.Model:
    """Build allcnn, for 32x32 colour images or any others from 8x8 up.

    Args:
        input_shape: tuple of three ints. Height, width, channels. The mean over the last feature
            map accepts any size; for 32x32 it equals the 8x8 pooling of the original.
        num_classes: int >= 1. The width of the logits.
        dropout: float in [0, 1). Rate after each convolution of stride 2, times 0.4 on the input.
            None means 0.5 (so 0.2 on the input), as in the paper and in the released code.
        seed: int. The seed of weights and dropout. None lets Keras choose it. Weights and biases
            start uniform on +-1/sqrt(fan_in) (Torch's default).

    Returns:
        The model, from ``[batch, *input_shape]`` to logits ``[batch, num_classes]``. The mean
        is taken after a ReLU, so they are not negative.

    Raises:
        ValueError: If height or width is below 8 pixels.
    """
    from esgd_tf.models import _layers as nn  # noqa: PLC0415 - loads TensorFlow

    nn.require_size("allcnn", input_shape, 8)
    rate = 0.5 if dropout is None else dropout
    seeds = nn.Seeds(seed)
    inputs = nn.keras.Input(input_shape)
    x = nn.drop_input(inputs, rate, seeds)
    for i, (filters, size, stride, drops) in enumerate(
        (*_CONVOLUTIONS, (num_classes, 1, 1, False)), start=1
    ):
        padding = "same"
        if stride > 1:
            x = nn.pad(x, name=f"pad_{i}")
            padding = "valid"
        x = nn.torch_conv(
            x, filters, size, seeds, strides=stride, padding=padding, name=f"conv_{i}"
        )
        x = nn.batch_norm(x, name=f"bn_{i}")
        x = nn.relu(x, name=f"relu_{i}")
        if drops:
            x = nn.drop(x, rate, seeds, name=f"drop_{i}")
    average = nn.keras.layers.GlobalAveragePooling2D(name="logits", dtype=nn.logits_dtype())
    logits = average(x)
    return nn.keras.Model(inputs, logits, name="allcnn")
