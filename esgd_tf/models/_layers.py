"""Layers and initialisations that several architectures share. Importing this loads TensorFlow."""

from __future__ import annotations

import math
import random
from typing import Any

import keras

from esgd_tf.models.batch_norm import BatchNormalization
from esgd_tf.models.registry import InputShape

# The released models drop inputs at 0.2 where they drop hidden units at 0.5; one argument scales
# both, so that dropout=0 gives a deterministic network.
_INPUT_DROPOUT_PER_DROPOUT = 0.4


class Seeds:
    """An endless sequence of seeds from one, so that equal layers do not get equal weights.

    Args:
        seed: int. The seed that all others are made from. With None every seed is None, which
            leaves the choice to Keras.
    """

    def __init__(self, seed: int | None) -> None:
        self._random = None if seed is None else random.Random(int(seed))

    def next(self) -> int | None:
        """Return the next seed, a number below 2**31."""
        return None if self._random is None else self._random.getrandbits(31)


def torch_init(fan_in: int, seeds: Seeds) -> dict[str, Any]:
    """Return the arguments that give a Keras layer Torch's default initialisation.

    Weights and biases alike are uniform on +-1/sqrt(fan_in): the default of Torch7's Linear and
    SpatialConvolution, and of PyTorch's (``kaiming_uniform_`` with a = sqrt(5)).
    """
    limit = 1.0 / math.sqrt(fan_in)
    return {
        # The limit of VarianceScaling is sqrt(3 scale / fan_in).
        "kernel_initializer": keras.initializers.VarianceScaling(
            scale=1.0 / 3.0, mode="fan_in", distribution="uniform", seed=seeds.next()
        ),
        "bias_initializer": keras.initializers.RandomUniform(-limit, limit, seed=seeds.next()),
    }


def torch_conv(
    x: keras.KerasTensor, filters: int, size: int, seeds: Seeds, *, name: str, **options: Any
) -> keras.KerasTensor:
    """Apply a convolution with bias to ``[batch, h, w, c]``, initialised as in Torch."""
    init = torch_init(size * size * x.shape[-1], seeds)
    return keras.layers.Conv2D(filters, size, name=name, **{**init, **options})(x)


def torch_dense(
    x: keras.KerasTensor, units: int, seeds: Seeds, *, name: str, **options: Any
) -> keras.KerasTensor:
    """Apply a dense layer with bias to ``[batch, n]``, initialised as in Torch."""
    init = torch_init(x.shape[-1], seeds)
    return keras.layers.Dense(units, name=name, **{**init, **options})(x)


def logits_dtype() -> str:
    """Return the dtype of the last layer, which is that of the weights.

    Under a mixed policy this is float32, so that the softmax of the loss is not rounded.
    """
    return keras.config.dtype_policy().variable_dtype


def drop(x: keras.KerasTensor, rate: float, seeds: Seeds, *, name: str) -> keras.KerasTensor:
    """Apply dropout. For rate 0 no layer is made, so that there is no random state to save."""
    seed = seeds.next()  # taken for rate 0 too: the rate must not change the initial weights
    if rate == 0.0:
        return x
    return keras.layers.Dropout(rate, seed=seed, name=name)(x)


def drop_input(x: keras.KerasTensor, dropout: float, seeds: Seeds) -> keras.KerasTensor:
    """Apply dropout to the input, at 0.4 times the rate of the hidden layers."""
    return drop(x, _INPUT_DROPOUT_PER_DROPOUT * dropout, seeds, name="drop_input")


def batch_norm(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """Apply batch normalisation with Torch's epsilon 1e-5 and (as Keras counts it) momentum 0.9.

    The scale starts at 1, as in PyTorch since 1.2. Torch7 and older PyTorch, on which the
    released codes ran, sampled it from U(0, 1); the papers do not mention it.
    """
    return BatchNormalization(name=name)(x)


def relu(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """Apply max(x, 0)."""
    return keras.layers.ReLU(name=name)(x)


def pad(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """Add one row of zeros on each side.

    "same" padding of a strided convolution would put the odd row on the far side only, which
    shifts the sampling grid by one pixel against the originals.
    """
    return keras.layers.ZeroPadding2D(1, name=name)(x)


def require_size(architecture: str, input_shape: InputShape, smallest: int) -> None:
    """Check height and width.

    Args:
        architecture: str. Its name, for the message.
        input_shape: tuple of three ints. Height, width, channels.
        smallest: int >= 1. The smallest height and width that it works for.

    Raises:
        ValueError: If height or width is below ``smallest``.
    """
    if min(input_shape[:2]) < smallest:
        height, width = input_shape[:2]
        raise ValueError(
            f"{architecture} needs images of at least {smallest}x{smallest} pixels, "
            f"but they are {height}x{width}."
        )
