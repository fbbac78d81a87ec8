"""SAM and ASAM: the step that the worst loss nearby asks for.

With g(w) the minibatch's gradient, and both gradients of a step from the same minibatch,

    SAM     e = rho g(w) / ‖g(w)‖
    ASAM    e = rho T² g(w) / ‖T g(w)‖,    T = diag(|w_i| + eta) for kernels, 1 for other weights
    both    w ← the inner optimizer's step at w with the gradient g(w + e)

The norm is taken over all weights together. ASAM's e stretches with the weights, so that networks
that compute the same function with other scales of their layers take the same steps.

Sources: Foret et al., "Sharpness-aware minimization for efficiently improving generalization", ICLR
2021, Algorithm 1; Kwon et al., "ASAM: adaptive sharpness-aware minimization for scale-invariant
learning of deep neural networks", ICML 2021, Algorithm 1, and its released code (which treats as
kernels all that PyTorch calls `weight`: the scales of BatchNorm too).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import keras
import tensorflow as tf

from esgd_tf import _checks
from esgd_tf.baselines._gradients import Gradients, Minibatch, sum_over_devices
from esgd_tf.baselines._minibatch_optimizer import MinibatchOptimizer
from esgd_tf.optimizers._options import KerasOptions

__all__ = ["ASAM", "SAM", "SharpnessAware", "adaptive_perturbation", "perturbation"]


def perturbation(gradients: Sequence[Any], rho: float) -> Gradients:
    """Return SAM's e = rho g / ‖g‖ for each weight.

    Args:
        gradients: sequence of tensors. g(w), None where there is no gradient.
        rho: float >= 0. The radius.

    Returns:
        A list of tensors; None where there is no gradient. All are 0 where ‖g‖ is 0.
    """
    return adaptive_perturbation(gradients, [None] * len(gradients), rho)


def adaptive_perturbation(
    gradients: Sequence[Any], scales: Sequence[tf.Tensor | None], rho: float
) -> Gradients:
    """Return ASAM's e = rho T² g / ‖T g‖ for each weight.

    Args:
        gradients: sequence of tensors. g(w), None where there is no gradient.
        scales: sequence of tensors of the same shapes. The diagonal of T; None for 1.
        rho: float >= 0. The radius.

    Returns:
        A list of tensors; None where there is no gradient. All are 0 where ‖T g‖ is 0.
    """
    dense = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
    scaled = [
        g if g is None or scale is None else scale * g
        for g, scale in zip(dense, scales, strict=True)
    ]
    # Half precision would overflow in the squares.
    squares = [
        tf.cast(2.0, wide.dtype) * tf.nn.l2_loss(wide)
        for wide in (
            tf.cast(t, tf.float32) if t.dtype.size < 4 else t for t in scaled if t is not None
        )
    ]
    norm = tf.sqrt(tf.add_n([tf.cast(square, tf.float64) for square in squares]))
    factor = tf.math.divide_no_nan(tf.constant(rho, tf.float64), norm)
    return [
        t if t is None else tf.cast(factor, t.dtype) * (t if scale is None else scale * t)
        for t, scale in zip(scaled, scales, strict=True)
    ]


class SharpnessAware(MinibatchOptimizer):
    """An inner optimizer with the gradient at w + e, where e follows the gradient at w.

    Subclasses say what e is, and end their constructor with `_complete_without_walk`.

    Args:
        inner_optimizer: keras.optimizers.Optimizer that is not built yet, or str. What takes the
            step, or its name.
        rho: float >= 0. The radius of the perturbation.
        synchronized: bool. Whether all devices share e.
        **kwargs: Arguments of every rival.

    Raises:
        ValueError: An argument is out of range, or the inner optimizer cannot be wrapped.
    """

    gradient_evaluations_per_step = 2
    _fixed: ClassVar[set[str]] = MinibatchOptimizer._fixed | {"rho", "synchronized"}

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        *,
        rho: float,
        synchronized: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(inner_optimizer, **kwargs)
        self.rho = _checks.real("rho", rho, at_least=0)
        self.synchronized = _checks.boolean("synchronized", synchronized)

    def minibatch_gradient(self, minibatch: Minibatch) -> Gradients:
        """Return g(w + e); see the class."""
        first = minibatch.gradient()
        if self.synchronized:
            first = _summed(first)
        moved = [
            w if e is None else w + tf.cast(e, w.dtype)
            for w, e in zip(
                minibatch.weights, self.perturbation(minibatch.weights, first), strict=True
            )
        ]
        return self._combined(first, minibatch.gradient_at(moved))

    def perturbation(self, weights: Sequence[tf.Tensor], gradients: Sequence[Any]) -> Gradients:
        """Return e for each weight.

        Args:
            weights: sequence of tensors. w.
            gradients: sequence of tensors of the same shapes. g(w), None where there is none.
        """
        raise NotImplementedError

    def _combined(self, first: Gradients, second: Gradients) -> Gradients:
        """Return the gradient of the step from g(w) and g(w + e)."""
        del first
        return second

    def _arguments(self) -> dict[str, Any]:
        return {"rho": self.rho, "synchronized": self.synchronized}


@keras.saving.register_keras_serializable(package="esgd_tf")
class SAM(SharpnessAware):
    """SAM: any Keras optimizer, with the gradient at the worst point within a distance rho.

        e = rho g(w) / ‖g(w)‖,    and the inner optimizer's step at w with g(w + e)

    both gradients from the same minibatch: a step costs two gradient evaluations.

    Source: Foret et al., "Sharpness-aware minimization for efficiently improving generalization",
    ICLR 2021, Algorithm 1.

    Examples:
        >>> optimizer = esgd_tf.SAM(keras.optimizers.SGD(0.1, momentum=0.9), rho=0.05)
        >>> model.compile(optimizer=optimizer, loss=loss)
        >>> esgd_tf.enable_minibatch_gradients(model).fit(x, y)

    Note:
        * Keras' training step takes one gradient: `enable_minibatch_gradients(model)` after
          `compile` gives the model one that takes two. Without it the first step raises an error.
        * The weights never stand at w + e: evaluate and save at any time. Moving statistics of
          BatchNormalization, metrics and the loss that is shown are those at w; dropout has the
          same mask in both gradients.
        * Under tf.distribute every device takes e from the gradient of its own part of the
          minibatch, as the authors' code does (m-sharpness, m being the examples on a device).
          `synchronized=True` takes it from the whole minibatch.
        * `weight_decay` is in the gradient of the step and not in e. (The authors' code has it in
          both: put it into the loss for that, as `kernel_regularizer`.)
        * With rho = 0 it is the inner optimizer, bit for bit.

    Args:
        inner_optimizer: keras.optimizers.Optimizer that is not built yet, or str. What takes the
            step, or its name. Its own clipping and decoupled weight decay act on it.
        rho: float >= 0. The radius of the perturbation. Defaults to 0.05, the paper's for CIFAR-10.
        synchronized: bool. Whether all devices share e. Defaults to False.
        weight_decay: float >= 0. L2 coefficient, added to the gradient of the step (not Keras'
            decoupled decay). None means 0. Defaults to 0.0.
        skip_nonfinite: bool. Whether a minibatch whose gradient is not finite is left out. Defaults
            to False.
        learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on the step
            size of the weights in whose paths the expressions are found. Defaults to None, which
            means 1 everywhere.
        name: str. Name of the optimizer. Defaults to "sam".
        **kwargs: Arguments of every Keras optimizer: `clipnorm`, `clipvalue`, `global_clipnorm` (of
            g(w + e)), `use_ema`, `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`,
            `gradient_accumulation_steps`.

    Raises:
        ValueError: An argument is out of range, or the inner optimizer has an option that must be
            set on this optimizer instead, or does more than its `update_step`.
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        rho: float = 0.05,
        synchronized: bool = False,
        weight_decay: float | None = 0.0,
        skip_nonfinite: bool = False,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        name: str = "sam",
        **kwargs: Unpack[KerasOptions],
    ) -> None:
        super().__init__(
            inner_optimizer,
            rho=rho,
            synchronized=synchronized,
            weight_decay=weight_decay,
            skip_nonfinite=skip_nonfinite,
            learning_rate_multipliers=learning_rate_multipliers,
            name=name,
            **kwargs,
        )
        self._complete_without_walk()

    def perturbation(self, weights: Sequence[tf.Tensor], gradients: Sequence[Any]) -> Gradients:
        """Return e for each weight.

        Args:
            weights: sequence of tensors. w.
            gradients: sequence of tensors of the same shapes. g(w), None where there is none.
        """
        del weights
        return perturbation(gradients, self.rho)


@keras.saving.register_keras_serializable(package="esgd_tf")
class ASAM(SharpnessAware):
    """ASAM: SAM in which every weight is perturbed in proportion to its size.

        e = rho T² g(w) / ‖T g(w)‖,    and the inner optimizer's step at w with g(w + e)

    with T = diag(|w_i| + eta) for kernels (weights with two dimensions or more) and, unless
    `adaptive_vectors`, 1 for biases and the weights of normalisation layers.

    Source: Kwon et al., "ASAM: adaptive sharpness-aware minimization for scale-invariant learning
    of deep neural networks", ICML 2021, Algorithm 1, and its released code.

    Note:
        See `SAM` for what holds for both. With eta = 0 the step does not depend on how a network's
        layers are scaled against each other, as long as it computes the same function.

    Args:
        inner_optimizer: keras.optimizers.Optimizer that is not built yet, or str. What takes the
            step, or its name.
        rho: float >= 0. The radius of the perturbation, in units of the weights. Defaults to 0.5,
            the released code's for CIFAR-10.
        eta: float >= 0. What is added to |w_i|. Defaults to 0.01.
        adaptive_vectors: bool. Whether weights of one dimension are scaled too. (The released code
            scales those that PyTorch calls `weight`, which are the scales of normalisation layers.)
            Defaults to False.
        synchronized: bool. Whether all devices share e. Defaults to False.
        weight_decay: float >= 0. L2 coefficient, added to the gradient of the step. None means 0.
            Defaults to 0.0.
        skip_nonfinite: bool. Whether a minibatch whose gradient is not finite is left out. Defaults
            to False.
        learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on the step
            size of the weights in whose paths the expressions are found. Defaults to None, which
            means 1 everywhere.
        name: str. Name of the optimizer. Defaults to "asam".
        **kwargs: Arguments of every Keras optimizer; see `SAM`.

    Raises:
        ValueError: An argument is out of range, or the inner optimizer cannot be wrapped.
    """

    _fixed: ClassVar[set[str]] = SharpnessAware._fixed | {"adaptive_vectors", "eta"}

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        rho: float = 0.5,
        eta: float = 0.01,
        adaptive_vectors: bool = False,
        synchronized: bool = False,
        weight_decay: float | None = 0.0,
        skip_nonfinite: bool = False,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        name: str = "asam",
        **kwargs: Unpack[KerasOptions],
    ) -> None:
        super().__init__(
            inner_optimizer,
            rho=rho,
            synchronized=synchronized,
            weight_decay=weight_decay,
            skip_nonfinite=skip_nonfinite,
            learning_rate_multipliers=learning_rate_multipliers,
            name=name,
            **kwargs,
        )
        self.eta = _checks.real("eta", eta, at_least=0)
        self.adaptive_vectors = _checks.boolean("adaptive_vectors", adaptive_vectors)
        self._complete_without_walk()

    def perturbation(self, weights: Sequence[tf.Tensor], gradients: Sequence[Any]) -> Gradients:
        """Return e for each weight.

        Args:
            weights: sequence of tensors. w.
            gradients: sequence of tensors of the same shapes. g(w), None where there is none.
        """
        scales = [
            tf.abs(w) + tf.constant(self.eta, w.dtype)
            if self.adaptive_vectors or w.shape.rank > 1
            else None
            for w in weights
        ]
        return adaptive_perturbation(gradients, scales, self.rho)

    def _arguments(self) -> dict[str, Any]:
        return {
            **super()._arguments(), "eta": self.eta, "adaptive_vectors": self.adaptive_vectors
        }  # fmt: skip


def _summed(gradients: Gradients) -> Gradients:
    """Return gradients summed over the devices; called in a replica."""
    numbers = [i for i, g in enumerate(gradients) if g is not None]
    total = list(gradients)
    for i, g in zip(numbers, sum_over_devices([gradients[i] for i in numbers]), strict=True):
        total[i] = g
    return total
