"""mnistconv: the LeNet of the Entropy-SGD paper, with batch normalisation.

Two blocks of convolution, batch normalisation, ReLU, max-pooling and dropout (20 and 50 filters
of 5x5; pools of 3 and 2), then a hidden layer of 500 units. This is the block order of the
authors' PyTorch code; their Lua code normalises after pooling. 132,220 trainable parameters for
28x28x1 and 10 classes.

Source: Chaudhari et al., arXiv 1611.01838, and the PyTorch code they released.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from esgd_tf.models.registry import InputShape, register

if TYPE_CHECKING:
    import keras


@register("mnistconv")
def mnistconv(
    input_shape: InputShape, num_classes: int, *, dropout: float | None, seed: int | None
) -> keras.Model:
    """Build mnistconv, for 28x28 grey images or any others from 22x22 up.

    Args:
        input_shape: tuple of three ints. Height, width, channels.
        num_classes: int >= 1. The width of the logits.
        dropout: float in [0, 1). Rate after each of the three hidden blocks. None means 0.5, as in
            the released code; the paper's Entropy-SGD runs used 0.25.
        seed: int. The seed of weights and dropout. None lets Keras choose it. Weights and biases
            start uniform on +-1/sqrt(fan_in) (Torch's default).

    Returns:
        The model, from ``[batch, *input_shape]`` to logits ``[batch, num_classes]``.

    Raises:
        ValueError: If height or width is below 22 pixels, which leaves nothing to pool.
    """
    from esgd_tf.models import _layers as nn  # noqa: PLC0415 - loads TensorFlow

    nn.require_size("mnistconv", input_shape, 22)
    rate = 0.5 if dropout is None else dropout
    seeds = nn.Seeds(seed)
    x = inputs = nn.keras.Input(input_shape)
    for i, (filters, pool) in enumerate(((20, 3), (50, 2)), start=1):
        x = nn.torch_conv(x, filters, 5, seeds, name=f"conv_{i}")
        x = nn.batch_norm(x, name=f"bn_{i}")
        # max commutes with ReLU, gradients included. After the pool, ReLU has 9 (then 4) times
        # fewer numbers to compute.
        x = nn.keras.layers.MaxPooling2D(pool, name=f"pool_{i}")(x)
        x = nn.relu(x, name=f"relu_{i}")
        x = nn.drop(x, rate, seeds, name=f"drop_{i}")
    x = nn.keras.layers.Flatten(name="flatten")(x)
    x = nn.torch_dense(x, 500, seeds, name="dense_3")
    x = nn.batch_norm(x, name="bn_3")
    x = nn.relu(x, name="relu_3")
    x = nn.drop(x, rate, seeds, name="drop_3")
    logits = nn.torch_dense(x, num_classes, seeds, name="logits", dtype=nn.logits_dtype())
    return nn.keras.Model(inputs, logits, name="mnistconv")
