"""The rules of `langevin.py` on tf.Variables, in as few passes over memory as TensorFlow allows.

For networks of tens of millions of weights the update is bound by memory bandwidth. Written with
plain operations it takes about thirty passes over the weights; with TensorFlow's fused training
kernels, which read and write the variable in place, about half of that. The equations are in
`langevin.py`, and a test checks that both give the same numbers.

Two things matter for speed and are easy to lose:

* A fused kernel copies its variable first if any tensor read from it is still alive. So every
  tensor computed from an old value is made a control dependency of the kernel that overwrites it.
* The velocity is kept in Keras' sign and scale, -eta' v, because the fused kernel wants it so.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import tensorflow as tf


def fenced(gradient: Any) -> Any:
    """Return the gradient unchanged, and keep later operations on it in its own dtype.

    TensorFlow's bfloat16 rewriter (`training/precision.py`) spreads from a convolution's gradient
    over the operations that follow, norms and comparisons too: clipping would use a norm with eight
    bits. It does not pass this operation, which returns its input and costs nothing.

    Args:
        gradient: tf.Tensor. The gradient; anything else (IndexedSlices, None) comes back as it is.
    """
    options = tf.config.optimizer.get_experimental_options()
    if not options.get("auto_mixed_precision_onednn_bfloat16") or not tf.is_tensor(gradient):
        return gradient
    return tf.raw_ops.PlaceholderWithDefault(input=gradient, shape=gradient.shape)


def with_l2(gradient: Any, variable: tf.Variable, coefficient: float) -> tf.Tensor:
    """Return q = gradient + coefficient x', dense and in the variable's dtype.

    Args:
        gradient: tf.Tensor or tf.IndexedSlices. The minibatch gradient.
        variable: tf.Variable. x'.
        coefficient: float >= 0. The L2 coefficient of this weight.
    """
    gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
    if coefficient > 0:
        gradient += tf.constant(coefficient, variable.dtype) * variable
    return gradient


def subtract_scaled(variable: tf.Variable, scale: tf.Tensor, delta: tf.Tensor) -> None:
    """Compute variable = variable - scale * delta in one pass.

    Args:
        variable: tf.Variable. The variable to change.
        scale: tf.Tensor, a scalar of the variable's dtype. The factor.
        delta: tf.Tensor of the variable's shape and dtype. The tensor to subtract.
    """
    with tf.control_dependencies([delta]):
        tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=scale, delta=delta)


def descend(
    weights: tf.Variable,
    velocity: tf.Variable | None,
    gradient: tf.Tensor,
    *,
    learning_rate: tf.Tensor,
    momentum: tf.Tensor,
    nesterov: bool,
    after: list[tf.Tensor],
) -> None:
    """Compute v = momentum v + q and x' = x' - eta' s, in one pass over both.

    Args:
        weights: tf.Variable. x', changed in place.
        velocity: tf.Variable of the weights' shape, or None for momentum 0. -eta' v, changed in
            place.
        gradient: tf.Tensor of the weights' shape and dtype. q.
        learning_rate: tf.Tensor, a scalar of the weights' dtype. eta'.
        momentum: tf.Tensor, a scalar of the weights' dtype. The momentum of the velocity.
        nesterov: bool. Whether s looks ahead along the velocity.
        after: list of tf.Tensor. Tensors computed from the old x', which must be finished first.
    """
    with tf.control_dependencies([*after, gradient]):
        if velocity is None:
            tf.raw_ops.ResourceApplyGradientDescent(
                var=weights.handle, alpha=learning_rate, delta=gradient
            )
        else:
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=weights.handle,
                accum=velocity.handle,
                lr=learning_rate,
                grad=gradient,
                momentum=momentum,
                use_nesterov=nesterov,
            )


def average(mean: tf.Variable, weights: tf.Variable, averaging: float, rest: tf.Tensor) -> None:
    """Compute mean = averaging mean + (1 - averaging) x'.

    Args:
        mean: tf.Variable. The running average, changed in place.
        weights: tf.Variable of the mean's shape. x' after the step.
        averaging: float in [0, 1). The weight of the old mean.
        rest: tf.Tensor, a scalar of the weights' dtype. 1 - averaging.
    """
    if averaging == 0.0:
        mean.assign(weights)
        return
    difference = tf.subtract(mean, weights)
    subtract_scaled(mean, rest, difference)


def noise_key(seed: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Return the key of the noise at gradient evaluation `step`: uint64 [1].

    Args:
        seed: int64 scalar tensor in [0, 2^31). The optimizer's seed; XLA reads its low 32 bits.
        step: int64 scalar tensor. Gradient evaluations so far.
    """
    numbers = tf.stack([seed, tf.cast(step, tf.int64)])
    return tf.raw_ops.StatelessRandomGetKeyCounter(seed=numbers).key


def standard_normal(
    shape: tf.TensorShape, dtype: tf.DType, key: tf.Tensor, index: int
) -> tf.Tensor:
    """Sample N(0, I) for weight `index`: Box and Muller's method on the bits of Philox.

    A word w of 2h random bits makes two numbers, with u = ((w mod 2^h) + 1/2) / 2^h and the angle
    a = π w / 2^(2h-1):

        sqrt(-2 log u) cos a,    sqrt(-2 log u) sin a

    The sample is a pure function of (key, index): the same on every mirrored replica, and after a
    resume. The index is the high word of the generator's counter, so no two weights share a sample.
    The bits are the same with XLA and without, and so are the numbers, up to rounding.

    TensorFlow's own normal samplers take twice the time on CPUs, where sampling is the largest part
    of an update, and give other numbers with XLA. The price is less randomness: with h = 16, for
    weights of up to 32 bits, the lengths sqrt(-2 log u) take 65,536 values and end at 4.86. For
    float64, h = 32 and they end at 6.76.

    Source: Box and Muller, "A note on the generation of random normal deviates", 1958; Salmon et
    al., "Parallel random numbers: as easy as 1, 2, 3", 2011 (Philox).

    Args:
        shape: tf.TensorShape. The shape of the weight.
        dtype: tf.DType, floating point. The dtype of the weight.
        key: uint64 tensor of shape [1]. What `noise_key` returned for this step.
        index: int. The number of the weight in the optimizer.
    """
    sample = _sampler(tuple(shape), dtype)
    return sample(key, tf.constant([0, index], tf.uint64))


@functools.cache
def _sampler(shape: tuple[int, ...], dtype: tf.DType) -> Any:
    """Return `standard_normal` for one shape, traced once however many weights have it."""
    count = math.prod(shape)
    half_bits = 32 if dtype == tf.float64 else 16
    real, integer = (tf.float64, tf.int64) if half_bits == 32 else (tf.float32, tf.int32)

    @tf.function(autograph=False)
    def sample(key: tf.Tensor, counter: tf.Tensor) -> tf.Tensor:
        words = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=[(count + 1) // 2],
            key=key,
            counter=counter,
            alg=int(tf.random.Algorithm.PHILOX.value),
            dtype=integer,
        )
        low = tf.cast(tf.bitwise.bitwise_and(words, 2**half_bits - 1), real)
        length = tf.sqrt(-2.0 * tf.math.log((low + 0.5) * 0.5**half_bits))
        # The low bits, which make the length, turn the angle by less than one part in 2^h.
        angle = tf.cast(words, real) * (math.pi * 0.5 ** (2 * half_bits - 1))
        pairs = tf.concat([length * tf.cos(angle), length * tf.sin(angle)], axis=0)
        return tf.cast(tf.reshape(pairs if count % 2 == 0 else pairs[:count], shape), dtype)

    return sample
