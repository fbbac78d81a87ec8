"""wrn-D-K: wide residual networks of depth D = 6n + 4 and widening factor K.

Three groups of n blocks with 16K, 32K and 64K filters; the second and third group halve the
image. A block is, before its addition, BN-ReLU-convolution-BN-ReLU-dropout-convolution, 3x3 and
without bias. Where the width changes, the shortcut is a 1x1 convolution of the activated input.
wrn-28-10 has 36,479,194 trainable parameters for 3 channels and 10 classes, 36,536,884 for 100.

Source: Zagoruyko and Komodakis, arXiv 1605.07146, and the Torch code they released.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esgd_tf.models.registry import InputShape, register

if TYPE_CHECKING:
    import keras


def _check(depth: int, width: int) -> None:
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(
            f"A wide residual network wrn-D-K needs a depth D = 6n + 4 (10, 16, 22, 28, ...), "
            f"but D is {depth}."
        )
    if width < 1:
        raise ValueError(
            f"A wide residual network wrn-D-K needs a width K of at least 1, but K is {width}."
        )


@register("wrn-{depth}-{width}", examples=("wrn-16-4", "wrn-28-10"), check=_check)
def wide_resnet(
    input_shape: InputShape,
    num_classes: int,
    *,
    dropout: float | None,
    seed: int | None,
    depth: int,
    width: int,
) -> keras.Model:
    """Build wrn-<depth>-<width>, for 32x32 colour images or any others from 8x8 up.

    Args:
        input_shape: tuple of three ints. Height, width, channels.
        num_classes: int >= 1. The width of the logits.
        dropout: float in [0, 1). Rate between the two convolutions of each block. None means 0; the
            paper's variant with dropout used 0.3.
        seed: int. The seed of weights and dropout. None lets Keras choose it. Convolutions start
            normal with variance 2 / (size * size * filters) (MSR by fan-out), the last layer
            uniform on +-1/sqrt(fan_in) with bias 0, as in the released code.
        depth: int of the form 6n + 4. Number of convolutions in the longest path, plus the last
            layer.
        width: int >= 1. Factor on the 16, 32 and 64 filters of the three groups.

    Returns:
        The model, from ``[batch, *input_shape]`` to logits ``[batch, num_classes]``.

    Raises:
        ValueError: If height or width is below 8 pixels.
    """
    from esgd_tf.models import _layers as nn  # noqa: PLC0415 - loads TensorFlow

    name = f"wrn-{depth}-{width}"
    nn.require_size(name, input_shape, 8)
    rate = 0.0 if dropout is None else dropout
    seeds = nn.Seeds(seed)

    def conv(
        x: keras.KerasTensor, filters: int, size: int, *, name: str, **options: Any
    ) -> keras.KerasTensor:
        msr = nn.keras.initializers.VarianceScaling(
            scale=2.0, mode="fan_out", distribution="untruncated_normal", seed=seeds.next()
        )
        return nn.keras.layers.Conv2D(
            filters, size, use_bias=False, kernel_initializer=msr, name=name, **options
        )(x)

    def block(x: keras.KerasTensor, filters: int, stride: int, name: str) -> keras.KerasTensor:
        shortcut = x
        x = nn.batch_norm(x, name=f"{name}_bn_1")
        x = nn.relu(x, name=f"{name}_relu_1")
        if shortcut.shape[-1] != filters:
            shortcut = conv(x, filters, 1, strides=stride, name=f"{name}_shortcut")
        if stride > 1:
            x = nn.pad(x, name=f"{name}_pad")
            x = conv(x, filters, 3, strides=stride, name=f"{name}_conv_1")
        else:
            x = conv(x, filters, 3, padding="same", name=f"{name}_conv_1")
        x = nn.batch_norm(x, name=f"{name}_bn_2")
        x = nn.relu(x, name=f"{name}_relu_2")
        x = nn.drop(x, rate, seeds, name=f"{name}_drop")
        x = conv(x, filters, 3, padding="same", name=f"{name}_conv_2")
        return nn.keras.layers.Add(name=f"{name}_add")([x, shortcut])

    inputs = nn.keras.Input(input_shape)
    x = conv(inputs, 16, 3, padding="same", name="conv")
    for group, filters in enumerate((16 * width, 32 * width, 64 * width), start=1):
        for i in range(1, (depth - 4) // 6 + 1):
            stride = 2 if group > 1 and i == 1 else 1
            x = block(x, filters, stride, f"group_{group}_block_{i}")
    x = nn.batch_norm(x, name="bn")
    x = nn.relu(x, name="relu")
    x = nn.keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = nn.torch_dense(
        x, num_classes, seeds, name="logits", bias_initializer="zeros", dtype=nn.logits_dtype()
    )
    return nn.keras.Model(inputs, logits, name=name)
