"""The optimizer of a model of replicas: the step counter, and one learning rate for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from esgd_tf import _keras
from esgd_tf.optimizers import LocalEntropy, _outer_update
from esgd_tf.replicas._limits import Limits
from esgd_tf.replicas.coupling import Coupling
from esgd_tf.replicas.focusing import CouplingSchedule

__all__ = ["ReplicasOptimizer", "inner_optimizers", "put_at"]

# Optimizer options that act on minibatch gradients or on the weights after a step.
_OUTSIDE = (
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)


class ReplicasOptimizer(keras.optimizers.Optimizer):
    """Represents the optimizers of all replicas, each of which takes its own steps.

    `iterations` counts training steps, each of which is a gradient evaluation in every replica.
    Reading `learning_rate` reads the first optimizer's; setting it sets it in all of them.

    Args:
        optimizers: sequence of LocalEntropy. The optimizers of the replicas.
        coupling: Coupling. The rule by which replicas are attracted to their center.
        center: sequence of keras.Variable. State that is saved with the optimizer: the center of
            the training graph. Defaults to ().
    """

    def __init__(
        self,
        optimizers: Sequence[LocalEntropy],
        coupling: Coupling,
        center: Sequence[keras.Variable] = (),
    ) -> None:
        super().__init__(learning_rate=_rate_of_the_replicas, name="replicas")
        for variable in center:
            _keras.track(self, variable)
        self.replicas = list(optimizers)
        self._coupling = coupling
        self._limits = Limits(coupling, self.replicas[0].outer_optimizer)
        self._gamma_zero = self.add_variable(
            shape=(), initializer="zeros", dtype="float32", name="gamma_zero"
        )
        # The step for which the center is up to date. It is saved, so that a center that was saved
        # with its BatchNorm statistics is not made anew when there are no data for that.
        self._center_step = self.add_variable(
            shape=(),
            initializer=keras.initializers.Constant(-1),
            dtype="int64",
            name="center_step",
        )
        self.built = True

    @property
    def learning_rate(self) -> Any:
        """The (outer) learning rate of the replicas."""
        return self.replicas[0].learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        for optimizer in self.replicas:
            optimizer.learning_rate = learning_rate

    @property
    def skipped(self) -> int:
        """The number of minibatches skipped so far, over all replicas."""
        return sum(optimizer.skipped for optimizer in self.replicas)

    @property
    def gamma(self) -> tf.Tensor:
        """Strength of the coupling (gamma, alpha or rho) at the next step, a float64 scalar."""
        return self._limits.acting(self._planned_at(self.iterations.value), self.learning_rate)

    @property
    def last_gamma(self) -> float:
        """Strength of the coupling at the last step that was taken."""
        planned = self._planned_at(tf.maximum(self.iterations.value - 1, 0))
        return float(self._limits.acting(planned, self._last_rate))

    def warning_of_strength(self, *, of_next: bool) -> str | None:
        """Return a warning about the strength of the next or the last step, or None.

        Args:
            of_next: bool. Whether to check the strength of the next step instead of the last.
        """
        back = 0 if of_next else 1
        step = tf.maximum(self.iterations.value - back, 0)
        rate = self.learning_rate if of_next else self._last_rate
        return self._limits.warning(self._planned_at(step), rate)

    def _planned_at(self, step: Any) -> tf.Tensor:
        strength = self._coupling.strength
        if isinstance(strength, CouplingSchedule):
            return strength(step, self._gamma_zero.value)
        return tf.constant(strength, tf.float64)

    @property
    def _last_rate(self) -> Any:
        """The learning rate of the last step, which a schedule may have changed since."""
        optimizer = self.replicas[0]
        schedule = _keras.given_learning_rate(optimizer.outer_optimizer)
        if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            return optimizer.learning_rate
        updated = int(self.iterations.numpy()) % max(optimizer.langevin_steps, 1) == 0
        return schedule(max(int(optimizer.outer_iterations.numpy()) - int(updated), 0))

    @property
    def gamma_zero(self) -> float:
        """The measured gamma_0; 0 before it is measured, and if it was given."""
        return float(self._gamma_zero.numpy())

    @gamma_zero.setter
    def gamma_zero(self, gamma_zero: float) -> None:
        self._gamma_zero.assign(gamma_zero)

    @property
    def center_is_current(self) -> bool:
        """Return whether the model that holds the center is up to date."""
        return int(self._center_step.numpy()) == int(self.iterations.numpy())

    @center_is_current.setter
    def center_is_current(self, current: bool) -> None:
        self._center_step.assign(self.iterations if current else -1)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Do nothing, since the optimizers of the replicas are built with their models."""

    def apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Refuse the call, since each replica has its own optimizer.

        Raises:
            ValueError: Always.
        """
        raise ValueError("Replicas step by their own optimizers: use `fit` or `train_on_batch`.")

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Replace weights by their averages in replicas whose optimizer keeps them (`use_ema`)."""
        del var_list
        for optimizer in self.replicas:
            if optimizer.use_ema:
                variables = _keras.trained_by(optimizer)
                keras.optimizers.Optimizer.finalize_variable_values(optimizer, variables)
                self.center_is_current = False

    def get_config(self) -> dict[str, Any]:
        """Return an empty config, since `Replicas` makes this optimizer in `compile`."""
        return {"name": self.name}


def inner_optimizers(
    optimizer: keras.optimizers.Optimizer | str, coupling: Coupling, replicas: int
) -> list[LocalEntropy]:
    """Return an optimizer for each replica, made from the one given to `compile`.

    All are `LocalEntropy` optimizers. Without an inner loop, each takes the same steps as the
    optimizer inside it, bit for bit, and has a place where the coupling acts.

    Args:
        optimizer: keras.optimizers.Optimizer that is not built yet, or str. The optimizer of every
            replica, or its name.
        coupling: Coupling. The rule, which may make an inner loop around the optimizer.
        replicas: int >= 1. y, the number of replicas.

    Raises:
        ValueError: The optimizer is built already, wraps another one, or does not fit.
    """
    optimizer = keras.optimizers.get(optimizer)
    if optimizer.built:
        raise ValueError("The optimizer is built already, on other weights: give a new one.")
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            "Replicas do not take `gradient_accumulation_steps`: couplings count steps, each of "
            "which must move the weights. Use larger minibatches, or a coupling with `every`."
        )
    optimizer = coupling.inner_optimizer(optimizer, replicas)
    if not isinstance(optimizer, LocalEntropy):
        optimizer = _without_inner_loop(optimizer)
    if optimizer.use_ema and optimizer.langevin_steps:
        raise ValueError(
            "Replicas with an inner loop do not take `use_ema`: their center is an average already."
        )
    configs = [optimizer.get_config() for _ in range(replicas)]
    outer = optimizer.outer_optimizer
    for config in configs:
        if "outer_optimizer" in config:
            # Keras' serialisation is not used: while it loads a file, it returns one object twice.
            config["outer_optimizer"] = type(outer).from_config(outer.get_config())
    if optimizer.seed is not None:
        for a, config in enumerate(configs):
            # Their noise must differ; the stride keeps neighbouring seeds' replicas apart.
            config["seed"] = (optimizer.seed + a * 1_000_003) % 2**31
    # The class itself is used, not its name, since custom optimizers need not be registered.
    return [type(optimizer).from_config(config) for config in configs]


def put_at(optimizer: LocalEntropy, weights: Sequence[Any]) -> None:
    """Set the anchor of a replica and start its inner loop again.

    Args:
        optimizer: LocalEntropy. The replica's optimizer, which is built.
        weights: sequence of arrays. The anchor, one array for each of its weights.
    """
    for variable, weight in zip(_keras.trained_by(optimizer), weights, strict=True):
        variable.assign(weight)
    if optimizer.langevin_steps:
        optimizer._swap.leave_inner_loop()


def _without_inner_loop(optimizer: keras.optimizers.Optimizer) -> LocalEntropy:
    options = {name: getattr(optimizer, name) for name in _OUTSIDE if hasattr(optimizer, name)}
    config = optimizer.get_config()
    for name in options:
        config.pop(name, None)
    plain = type(optimizer).from_config(config)
    _outer_update.checked(plain, (keras.optimizers.LossScaleOptimizer,))
    return LocalEntropy(plain, langevin_steps=0, name=optimizer.name, **options)


def _rate_of_the_replicas() -> float:
    """Stand in for a learning rate: `ReplicasOptimizer.learning_rate` asks the replicas."""
    raise AssertionError("ReplicasOptimizer has no learning rate of its own")
