"""LPF-SGD: the loss smoothed by noise that is as large as each filter.

The minibatch is cut into M parts, and part i is evaluated at weights of its own:

    n_i ~ N(0, (gamma(t) ‖w_filter‖)² I)     for each filter; ‖w‖ for weights of one dimension
    w ← the inner optimizer's step at w with the gradient 1/M Σ_i g_i(w + n_i)

so that a step costs one minibatch's gradient. The noise may grow along a cosine,

    gamma(t) = gamma_0 (1 + (growth - 1) (1 - cos(π t / T)) / 2),    t = steps so far, at most T

Source: Bisla, Wang and Choromanska, "Low-pass filtering SGD for recovering flat optima in the deep
learning optimization landscape", AISTATS 2022, Algorithm 1, and its released code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import keras
import tensorflow as tf

from esgd_tf import _checks, _keras
from esgd_tf.baselines._gradients import Gradients, Minibatch
from esgd_tf.baselines._minibatch_optimizer import MinibatchOptimizer
from esgd_tf.optimizers import _kernels
from esgd_tf.optimizers._options import KerasOptions
from esgd_tf.optimizers._variables import scalar

__all__ = ["LPFSGD", "filter_norms"]


def filter_norms(weights: tf.Tensor) -> tf.Tensor:
    """Return the norm of each filter, of a shape that broadcasts to the weight's.

    A filter is what makes one output channel: all but the last axis of a kernel of a dense or a
    convolution layer. For weights of one dimension it is the whole weight.

    Args:
        weights: tf.Tensor. A weight.
    """
    axes = list(range(weights.shape.rank - 1)) if weights.shape.rank > 1 else None
    return tf.sqrt(tf.reduce_sum(weights**2, axis=axes, keepdims=True))


@keras.saving.register_keras_serializable(package="esgd_tf")
class LPFSGD(MinibatchOptimizer):
    """LPF-SGD: any Keras optimizer, with the gradient of the loss smoothed by noise.

        the inner optimizer's step at w with 1/M Σ_i g_i(w + n_i),
        n_i ~ N(0, (gamma(t) ‖w_filter‖)² I)

    where g_i is the gradient of part i of the minibatch.

    Source: Bisla, Wang and Choromanska, "Low-pass filtering SGD for recovering flat optima in the
    deep learning optimization landscape", AISTATS 2022, Algorithm 1, and its released code.

    Examples:
        >>> optimizer = esgd_tf.LPFSGD(keras.optimizers.SGD(0.1, momentum=0.9), samples=8)
        >>> model.compile(optimizer=optimizer, loss=loss)
        >>> esgd_tf.enable_minibatch_gradients(model).fit(x, y)

    Note:
        * Keras' training step takes one gradient at w: `enable_minibatch_gradients(model)` after
          `compile` gives the model one that takes others. Without it the first step is an error.
        * The weights never stand at w + n: evaluate and save at any time. Metrics, the loss that is
          shown and the moving statistics of BatchNormalization are those of the noisy parts.
        * BatchNormalization normalises each part by itself. The loss is taken to be a mean over
          examples, as Keras' losses are: one that sums would come out 1/M as large.
        * Under tf.distribute each device has noise of its own.
        * With gamma = 0 and samples = 1 it is the inner optimizer, bit for bit.

    Args:
        inner_optimizer: keras.optimizers.Optimizer that is not built yet, or str. What takes the
            step, or its name. Its own clipping and decoupled weight decay act on it.
        gamma: float >= 0. gamma_0, the noise relative to the filters, at the start. Defaults to
            5e-4, the paper's for wide ResNets.
        samples: int >= 1. M, parts of the minibatch. Defaults to 8, the paper's for wide ResNets.
        growth: float >= 1. gamma at the end over gamma at the start. Defaults to 1.0.
        steps: int >= 1. T, the steps over which it grows; needed where `growth` is not 1. Defaults
            to None.
        seed: int in [0, 2^31). Seed of the noise. Defaults to None, which takes one from Keras'
            global seed.
        weight_decay: float >= 0. L2 coefficient, added to the gradient of the step. None means 0.
            Defaults to 0.0.
        skip_nonfinite: bool. Whether a minibatch whose gradient is not finite is left out. Defaults
            to False.
        learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on the step
            size of the weights in whose paths the expressions are found. Defaults to None, which
            means 1 everywhere.
        name: str. Name of the optimizer. Defaults to "lpf_sgd".
        **kwargs: Arguments of every Keras optimizer; see `SAM`.

    Raises:
        ValueError: An argument is out of range, or the inner optimizer cannot be wrapped.
    """

    _fixed: ClassVar[set[str]] = MinibatchOptimizer._fixed | {
        "gamma", "growth", "samples", "seed", "steps",
    }  # fmt: skip

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        gamma: float = 5e-4,
        samples: int = 8,
        growth: float = 1.0,
        steps: int | None = None,
        seed: int | None = None,
        weight_decay: float | None = 0.0,
        skip_nonfinite: bool = False,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        name: str = "lpf_sgd",
        **kwargs: Unpack[KerasOptions],
    ) -> None:
        super().__init__(
            inner_optimizer,
            weight_decay=weight_decay,
            skip_nonfinite=skip_nonfinite,
            learning_rate_multipliers=learning_rate_multipliers,
            name=name,
            **kwargs,
        )
        self.gamma = _checks.real("gamma", gamma, at_least=0)
        self.samples = _checks.integer("samples", samples, at_least=1)
        self.growth = _checks.real("growth", growth, at_least=1)
        if steps is None and growth != 1:
            raise ValueError("`growth` needs `steps`, the steps over which the noise grows.")
        self.steps = None if steps is None else _checks.integer("steps", steps, at_least=1)
        self.seed = None if seed is None else _checks.integer("seed", seed, at_least=0, below=2**31)
        self._seed = scalar(
            self, "seed", "int64", _keras.new_seed() if self.seed is None else self.seed
        )
        self._complete_without_walk()

    @property
    def acting_gamma(self) -> tf.Tensor:
        """gamma(t) of the step that comes next, a float64 scalar."""
        gamma = tf.constant(self.gamma, tf.float64)
        if self.steps is None:
            return gamma
        t = tf.cast(tf.convert_to_tensor(self.iterations), tf.float64)
        risen = (1 - tf.cos(math.pi * tf.minimum(t / self.steps, 1.0))) / 2
        return gamma * (1 + (self.growth - 1) * risen)

    def minibatch_gradient(self, minibatch: Minibatch) -> Gradients:
        """Return the mean of the parts' gradients, each at weights of its own; see the class."""
        if self.gamma == 0 and self.samples == 1:
            return minibatch.gradient()
        return minibatch.gradient_of_parts(
            [self._noisy(minibatch.weights, part) for part in range(self.samples)]
        )

    def _noisy(self, weights: list[tf.Tensor], part: int) -> list[tf.Tensor]:
        """Return w + n for one part of the minibatch."""
        if self.gamma == 0:
            return weights
        device = tf.distribute.get_replica_context().replica_id_in_sync_group
        devices = tf.distribute.get_strategy().num_replicas_in_sync
        # Its own number for each step, part and device.
        step = tf.cast(tf.convert_to_tensor(self.iterations), tf.int64)
        number = (step * self.samples + part) * devices + tf.cast(device, tf.int64)
        key = _kernels.noise_key(tf.convert_to_tensor(self._seed.value), number)
        gamma = self.acting_gamma
        return [
            w
            + tf.cast(gamma, w.dtype)
            * filter_norms(w)
            * _kernels.standard_normal(w.shape, w.dtype, key, i)
            for i, w in enumerate(weights)
        ]

    def _arguments(self) -> dict[str, Any]:
        return {
            "gamma": self.gamma,
            "samples": self.samples,
            "growth": self.growth,
            "steps": self.steps,
            "seed": self.seed,
        }
