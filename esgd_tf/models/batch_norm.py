"""Batch normalisation on TensorFlow's fused kernel.

Keras 3 computes batch normalisation as mean, variance, scale and shift, which are some ten passes
over the activations in a training step. TensorFlow has one kernel for the forward pass and one for
the backward pass. This layer calls them and leaves everything else to Keras' layer.

Source of the algorithm: Ioffe and Szegedy, arXiv 1502.03167.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="esgd_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """``keras.layers.BatchNormalization``, computed by TensorFlow's fused kernel in training.

    Outputs, gradients and moving statistics are those of Keras' layer up to float rounding;
    both average the *biased* variance of the batch. (PyTorch averages the unbiased one.)

    The kernel is used for training steps on channels-last inputs of rank 2 and 4 in float32,
    bfloat16 and float16; statistics are always float32. Everything else (inference, float64, other
    ranks and axes, masks, ``renorm``, ``synchronized``, ``fused=False``) is computed by Keras'
    code.

    Note:
        The fused kernel can be differentiated once. For second derivatives, such as
        Hessian-vector products, run the model with ``training=False``, or set
        ``layer.fused = False``.

    Args:
        momentum: float in [0, 1]. The weight of the OLD moving statistics. It is read at each call
            (at each trace, in a ``tf.function``), so it may be changed between calls. 0.9 here is
            0.1 in Torch, which gives the weight of the new statistics. Defaults to 0.9.
        epsilon: float > 0. Added to the variance, with the default of Torch. Defaults to 1e-05.
        fused: bool. Whether to use the fused kernel where it applies. It is read at each call too.
            Defaults to True.
        **kwargs: Passed to ``keras.layers.BatchNormalization``.
    """

    def __init__(
        self, *, momentum: float = 0.9, epsilon: float = 1e-5, fused: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)
        self.fused = fused

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Normalise ``[batch, ..., channels]`` and, in training, update the moving statistics."""
        if training and self.trainable and mask is None and self._uses_kernel(inputs):
            return self._fused_training_call(inputs)
        return super().call(inputs, training=training, mask=mask)

    def get_config(self) -> dict[str, Any]:
        """Return Keras' configuration of the layer, with ``fused``."""
        return {**super().get_config(), "fused": self.fused}

    def _uses_kernel(self, inputs: tf.Tensor) -> bool:
        rank = inputs.shape.rank
        return (
            self.fused
            and not getattr(self, "renorm", False)  # not in older releases of Keras
            and not self.synchronized
            and rank in (2, 4)
            and self.axis in (-1, rank - 1)
            and inputs.dtype in (tf.float32, tf.bfloat16, tf.float16)
        )

    def _fused_training_call(self, inputs: tf.Tensor) -> tf.Tensor:
        channels = inputs.shape[-1]
        images = inputs if inputs.shape.rank == 4 else tf.reshape(inputs, [-1, 1, 1, channels])
        gamma = tf.ones([channels]) if self.gamma is None else tf.cast(self.gamma, tf.float32)
        beta = tf.zeros([channels]) if self.beta is None else tf.cast(self.beta, tf.float32)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images,
            scale=gamma,
            offset=beta,
            mean=tf.constant([]),
            variance=tf.constant([]),
            epsilon=self.epsilon,
            is_training=True,
        )
        # The kernel returns the unbiased variance; Keras averages the biased one.
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
        self._update(self.moving_mean, mean)
        self._update(self.moving_variance, variance * ((count - 1.0) / count))
        if inputs.shape.rank == 2:
            outputs = tf.reshape(outputs, [-1, channels])
        return tf.cast(outputs, self.compute_dtype)

    def _update(self, statistic: keras.Variable, batch: tf.Tensor) -> None:
        old = tf.cast(statistic, tf.float32)
        new = old * self.momentum + batch * (1.0 - self.momentum)
        statistic.assign(tf.cast(new, statistic.dtype))
