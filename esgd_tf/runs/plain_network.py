"""A network made of Keras' own layers only, which loads where this library is not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from esgd_tf.data.preprocessing import Preprocessor, as_affine, as_whitening
from esgd_tf.models import BatchNormalization

__all__ = ["plain_network", "with_preprocessing"]

# Added to the variance of an image before the square root. An image that is not constant has a
# variance of 1/n at least, with n values; a constant one's rounding error must not be amplified.
_CONTRAST_EPSILON = 1e-7


def plain_network(model: keras.Model) -> keras.Model:
    """Rebuild a network in float32 from Keras' own layers, with the weights it has now.

    Our fused BatchNormalization becomes Keras', which computes the same at inference.

    Args:
        model: keras.Model. A functional model.

    Returns:
        Another model with the same inputs, outputs and layer names; not compiled.

    Raises:
        ValueError: A layer is neither from Keras nor our BatchNormalization.
    """

    def plain(layer: keras.layers.Layer) -> keras.layers.Layer:
        kind: Any = type(layer)
        config = layer.get_config()
        if isinstance(layer, BatchNormalization):
            kind = keras.layers.BatchNormalization
            del config["fused"]
        elif kind.__module__.split(".")[0] != "keras":
            raise ValueError(
                f"The layer {layer.name} is a {kind.__module__}.{kind.__name__}, which plain Keras "
                "cannot load: only networks of Keras' own layers can be exported."
            )
        config["dtype"] = "float32"  # a mixed policy is for training
        return kind.from_config(config)

    with _float32():
        network = keras.models.clone_model(model, clone_function=plain, recursive=True)
    network.set_weights(model.get_weights())
    return network


def with_preprocessing(
    network: keras.Model, preprocess: Preprocessor | None, *, softmax: bool = False
) -> keras.Model:
    """Put the preprocessing in front of a network, and a softmax behind it.

    Args:
        network: keras.Model. A model from `plain_network`, from preprocessed images to logits.
        preprocess: Preprocessor. The preprocessing, from `esgd_tf.data.preprocessor`; None for
            none.
        softmax: bool. Whether the outputs are probabilities. Defaults to False.

    Returns:
        A model from pixels 0 ... 255 (preprocessed images without `preprocess`), float32
        [batch, h, w, c], to logits or probabilities, [batch, classes].
    """
    shape = network.input_shape[1:]
    with _float32():
        x = inputs = keras.Input(shape, name="images")
        for layer in [] if preprocess is None else _layers(preprocess, shape):
            x = layer(x)
        outputs = network(x)
        if softmax:
            outputs = keras.layers.Softmax(name="probabilities")(outputs)
        return keras.Model(inputs, outputs, name=f"{network.name}_exported")


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    """Make new layers float32, whatever the process' dtype policy is."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _layers(preprocess: Preprocessor, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
    affine = as_affine(preprocess)
    if affine is not None:
        # (x - shift) factor = x factor - shift factor, per channel.
        shift, factor = (np.broadcast_to(a, shape[-1:]).astype(np.float64) for a in affine)
        return [
            keras.layers.Normalization(
                mean=shift.tolist(), variance=(factor**-2.0).tolist(),
                name="preprocessing",
            )
        ]  # fmt: skip
    mean, matrix = as_whitening(preprocess)
    size = len(mean)
    # Keras' LayerNormalization divides by the biased deviation, the contrast normalisation by the
    # unbiased one, with n - 1. The whitening's matrix makes up for it; its bias subtracts the mean.
    contrast = keras.layers.LayerNormalization(
        epsilon=_CONTRAST_EPSILON, center=False, scale=False,
        name="preprocessing_contrast",
    )  # fmt: skip
    whitening = keras.layers.Dense(size, name="preprocessing_whitening")
    whitening.trainable = False
    whitening.build((None, size))
    matrix = matrix.astype(np.float64)
    whitening.set_weights([np.sqrt((size - 1) / size) * matrix, -mean @ matrix])
    return [
        keras.layers.Flatten(name="preprocessing_flatten"),
        contrast,
        whitening,
        keras.layers.Reshape(shape, name="preprocessing_reshape"),
    ]
