"""Which of Keras' layers are linear in a kernel, and which pass a positive factor on."""

from __future__ import annotations

from typing import Any

import keras

from esgd_tf.landscape._calls import Call, FlatCopy

__all__ = ["HAS_KERNEL", "is_linear", "kernel_of", "next_with_kernel", "passes_inference"]

_layers = keras.layers

#: Layers that multiply with a kernel and add a bias.
HAS_KERNEL = (
    _layers.Dense,
    _layers.EinsumDense,
    _layers.Conv1D, _layers.Conv2D, _layers.Conv3D,
    _layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose,
    _layers.DepthwiseConv1D, _layers.DepthwiseConv2D,
    _layers.SeparableConv1D, _layers.SeparableConv2D,
)  # fmt: skip
# At inference these are the identity.
_IDENTITY = (
    _layers.Identity,
    _layers.Dropout,
    _layers.SpatialDropout1D, _layers.SpatialDropout2D, _layers.SpatialDropout3D,
)  # fmt: skip
# h(c x) = c h(x) for c > 0.
_HOMOGENEOUS = (
    *_IDENTITY,
    _layers.LeakyReLU, _layers.PReLU,
    _layers.MaxPooling1D, _layers.MaxPooling2D, _layers.MaxPooling3D,
    _layers.AveragePooling1D, _layers.AveragePooling2D, _layers.AveragePooling3D,
    _layers.GlobalMaxPooling1D, _layers.GlobalMaxPooling2D, _layers.GlobalMaxPooling3D,
    _layers.GlobalAveragePooling1D, _layers.GlobalAveragePooling2D,
    _layers.GlobalAveragePooling3D,
    _layers.Flatten, _layers.Reshape, _layers.Permute, _layers.RepeatVector,
    _layers.ZeroPadding1D, _layers.ZeroPadding2D, _layers.ZeroPadding3D,
    _layers.Cropping1D, _layers.Cropping2D, _layers.Cropping3D,
    _layers.UpSampling1D, _layers.UpSampling2D, _layers.UpSampling3D,
)  # fmt: skip
_LINEAR = (keras.activations.linear,)
_POSITIVELY = (*_LINEAR, keras.activations.relu, keras.activations.leaky_relu)


def kernel_of(layer: Any) -> keras.Variable:
    """Return the kernel that gives a layer's output; of a separable layer the pointwise one."""
    pointwise = getattr(layer, "pointwise_kernel", None)
    return layer.kernel if pointwise is None else pointwise


def passes_inference(call: Call) -> bool:
    """Return whether a call is the identity, at inference."""
    layer = call.layer
    if type(layer) is _layers.Activation:
        return layer.activation in _LINEAR
    return type(layer) in _IDENTITY


def is_linear(call: Call) -> bool:
    """Return whether a call multiplies with a kernel, adds a bias and does nothing more."""
    return type(call.layer) in HAS_KERNEL and call.layer.activation in _LINEAR


def next_with_kernel(copy: FlatCopy, number: int) -> Call | str:
    """Return the call that a factor on a layer's output reaches unchanged, and that has a kernel.

    Args:
        copy: FlatCopy. The network.
        number: int >= 0. The number of the call of the layer with the factor, which has a kernel.

    Returns:
        The call; or, where there is none, the reason, which continues "layer 'a' cannot be
        rescaled: ".
    """
    call = copy.calls[number]
    if len(copy.calls_of(call.layer)) > 1:
        return "it is called several times"
    if call.layer.activation not in _POSITIVELY:
        return f"its activation {_name(call.layer.activation)} does not pass a factor on"
    while not call.is_output and len(call.consumers) == 1:
        call = copy.calls[call.consumers[0]]
        several = len(copy.calls_of(call.layer)) > 1
        if type(call.layer) in HAS_KERNEL and not several:
            return call
        if several or len(call.sources) != 1 or not _is_homogeneous(call.layer):
            why = "is called several times" if several else "does not pass a factor on"
            return f"{call.layer.name!r} after it {why}"
    if call.is_output:
        return "its factor would reach the output of the network"
    return f"the output of {call.layer.name!r} goes to several layers"


def _is_homogeneous(layer: Any) -> bool:
    if type(layer) is _layers.Activation:
        return layer.activation in _POSITIVELY
    if type(layer) is _layers.ReLU:
        return layer.max_value is None and not layer.threshold
    return type(layer) in _HOMOGENEOUS


def _name(activation: Any) -> str:
    return repr(getattr(activation, "__name__", type(activation).__name__))
