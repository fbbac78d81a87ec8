"""SWA: the average of the weights that training with a high learning rate visits.

From step `start` on, after every `every` steps,

    average ← average + (w - average) / (n + 1),    n = weights averaged so far

while the inner optimizer trains w as if there were no average. The learning rate of the paper is
constant for half of the time to `start`, falls linearly to that of the averaging phase at 0.9 of
that time, and stays there (`SWASchedule`). The statistics of BatchNormalization belong to no
average: they must be estimated anew from training data.

Source: Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI
2018, Algorithm 1, and its released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import keras
import tensorflow as tf

from esgd_tf import _checks, _keras
from esgd_tf.baselines._rival import Rival
from esgd_tf.optimizers._options import KerasOptions
from esgd_tf.optimizers._variables import as_tf, scalar
from esgd_tf.optimizers._walk import Walk
from esgd_tf.optimizers._wrapping import on_devices

__all__ = ["SWA", "SWASchedule", "updated_average"]


def updated_average(average: tf.Tensor, weights: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Return the average of one more weight; of the first it is the weight itself, to the bit.

    Args:
        average: tf.Tensor. The average of `count` weights; anything where that is 0.
        weights: tf.Tensor of the same shape. The weight that comes next.
        count: int64 scalar tensor. How many have been averaged.
    """
    share = tf.cast(1.0 / tf.cast(count + 1, tf.float64), weights.dtype)
    return tf.where(count > 0, average + share * (weights - average), weights)


class _Averaged(Walk):
    """The weights that are averaged, with their averages as anchors.

    Attributes:
        counts: keras.Variable, int64 of shape [number of weights]. How many weights each average is
            made of.
    """

    counts: keras.Variable

    def _make_slots(self) -> None:
        self.anchors = self._owner.add_optimizer_variables(self.weights, "average")
        self.means = self.anchors
        self.counts = self._owner.add_variable(
            shape=(len(self.weights),),
            initializer="zeros",
            dtype="int64",
            aggregation="only_first_replica",
            name="counts",
        )


@keras.saving.register_keras_serializable(package="esgd_tf")
class SWA(Rival):
    """SWA: any Keras optimizer, and the average of the weights that it visits.

        average ← average + (w - average) / (n + 1)    every `every` steps, from step `start` on

    Source: Izmailov et al., "Averaging weights leads to wider optima and better generalization",
    UAI 2018, Algorithm 1.

    Examples:
        >>> rate = esgd_tf.SWASchedule(0.1, 0.05, start=3000)
        >>> sgd = keras.optimizers.SGD(rate, momentum=0.9)
        >>> model.compile(optimizer=esgd_tf.SWA(sgd, start=3000, every=390), loss=loss)
        >>> batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(128)
        >>> model.fit(batches, callbacks=[esgd_tf.AnchorCallback(batch_norm_data=batches)])

    Note:
        * The model's variables hold the weights that are being trained; what training returns is
          their average. Use `esgd_tf.evaluate_at` or `esgd_tf.AnchorCallback`, for which it is the
          anchor. At the end of `fit` the model is left at it. Before the first average both are w.
        * BatchNormalization needs statistics of its own at the average: give `AnchorCallback`
          training data, or call `esgd_tf.training.reestimate_batch_norm`.
        * A weight that someone else has replaced while the model stood at the average starts a new
          average.
        * An average of one is w, bit for bit.

    Args:
        inner_optimizer: keras.optimizers.Optimizer that is not built yet, or str. What trains, or
            its name.
        start: int >= 0. The step after which the first weights are averaged (with 0, that is step
            `every`). The paper's is three quarters of training, or a little more.
        every: int >= 1. Steps from one average to the next. The paper's is an epoch.
        weight_decay: float >= 0. L2 coefficient, added to the gradient. None means 0. Defaults to
            0.0.
        skip_nonfinite: bool. Whether a minibatch whose gradient is not finite is left out. Defaults
            to False.
        learning_rate_multipliers: dict of floats >= 0 by regular expression. Factors on the step
            size of the weights in whose paths the expressions are found. Defaults to None, which
            means 1 everywhere.
        name: str. Name of the optimizer. Defaults to "swa".
        **kwargs: Arguments of every Keras optimizer; see `SAM`. `use_ema` is another average, and
            is refused.

    Raises:
        ValueError: An argument is out of range, or the inner optimizer cannot be wrapped.
    """

    _fixed: ClassVar[set[str]] = Rival._fixed | {"every", "start"}
    _anchor_words: ClassVar[str] = "their average"
    _walk: _Averaged

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        start: int,
        every: int,
        weight_decay: float | None = 0.0,
        skip_nonfinite: bool = False,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        name: str = "swa",
        **kwargs: Unpack[KerasOptions],
    ) -> None:
        if kwargs.get("use_ema"):
            raise ValueError("`use_ema` is another average than SWA's: leave it out.")
        super().__init__(
            inner_optimizer,
            weight_decay=weight_decay,
            skip_nonfinite=skip_nonfinite,
            learning_rate_multipliers=learning_rate_multipliers,
            name=name,
            **kwargs,
        )
        self.start = _checks.integer("start", start, at_least=0)
        self.every = _checks.integer("every", every, at_least=1)
        self._complete(_Averaged(self, scalar(self, "phase", "int64")))

    def _step(
        self,
        distribution: tf.distribute.Strategy,
        grads_and_vars: Sequence[tuple[Any, tf.Variable]],
        learning_rate: tf.Tensor,
    ) -> None:
        walk = self._walk
        gradients = {_keras.number_of(self, v): (g, v) for g, v in grads_and_vars}
        self._swap.back_to_langevin(distribution)
        walk.release_frozen(distribution)
        t = tf.cast(tf.convert_to_tensor(self.outer_iterations), tf.int64) + 1
        self._step_of_wrapped(distribution, gradients, learning_rate)

        def average(i: int, variable: tf.Variable, count: tf.Tensor) -> None:
            anchor = walk.anchors[i].value
            anchor.assign(updated_average(anchor, tf.convert_to_tensor(variable), count))

        def average_all() -> tf.Tensor:
            # A weight that has left the walk begins anew.
            members = tf.cast(walk.members.value, tf.int64)
            counts = tf.convert_to_tensor(walk.counts.value) * members
            for i, weight in enumerate(walk.weights):
                if walk.anchors[i] is not None:
                    on_devices(distribution, as_tf(weight), average, i, counts[i])()
            distribution.extended.update(
                walk.counts.value, lambda v, new: v.assign(new), args=(counts + 1,), group=False
            )
            walk.set_members(distribution, walk.trainable_mask())
            return self._set_phase(distribution, tf.ones([], tf.int64))

        due = (t >= self.start) & tf.equal((t - self.start) % self.every, 0)
        tf.cond(due, average_all, lambda: tf.constant(0))

    @property
    def averaged(self) -> int:
        """How many weights the average is made of."""
        return int(self._walk.counts.numpy().max()) if self.built else 0

    def _arguments(self) -> dict[str, Any]:
        return {"start": self.start, "every": self.every}


@keras.saving.register_keras_serializable(package="esgd_tf")
class SWASchedule(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of SWA: constant, then linear, then constant.

    With t = step / start: `initial` to t = 0.5, linear to `final` at t = 0.9, and `final` from
    there on.

    Source: Izmailov et al., UAI 2018, and its released code.

    Args:
        initial: float >= 0. The learning rate of the first half.
        final: float >= 0. The learning rate of the averaging phase.
        start: int >= 1. The step at which averaging starts.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, initial: float, final: float, start: int) -> None:
        self.initial = _checks.real("initial", initial, at_least=0)
        self.final = _checks.real("final", final, at_least=0)
        self.start = _checks.integer("start", start, at_least=1)

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the learning rate of a step.

        Args:
            step: int scalar tensor. Steps so far.
        """
        t = tf.cast(step, tf.float32) / float(self.start)
        fallen = tf.clip_by_value((t - 0.5) / 0.4, 0.0, 1.0)
        return self.initial + (self.final - self.initial) * fallen

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"initial": self.initial, "final": self.final, "start": self.start}
