"""The workers: n coupled stochastic ones as one Keras model, and worker 0.

Worker 0 is the center of the others while they are coupled; with the coupling "elastic" and
alpha = 0 it is a separate network (`worker_zero.py`). When alpha is set to 0 during the run, it
continues from the center.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf import models
from esgd_tf.optimizers import EntropyAdam, EntropySGD, LocalEntropy
from esgd_tf.replicas import OwnMinibatches, Replicas
from esgd_tf.replicas._members import state_of
from esgd_tf.replicas.minibatches import shuffled
from esgd_tf.walkers import worker_zero
from esgd_tf.walkers.coupling import Adjustable, make_coupling
from esgd_tf.walkers.problem import Problem, cross_entropy
from esgd_tf.walkers.settings import Settings

__all__ = ["Workers"]

Array = NDArray[Any]
# Keras' SGD keeps no velocity at momentum 0, so a momentum that is set later would have none to
# start from. This momentum makes the old velocity vanish in rounding, so no bit of a step differs.
_NO_MOMENTUM = 1e-30
# Neighbouring seeds must not give the same orders to different workers.
_STRIDE = 1_000_003
_BATCH_NORM_BATCHES = 50


class Workers:
    """All networks of an experiment, with their training.

    Args:
        settings: Settings. The experiment.
        problem: Problem. The data.
        build: callable. Returns a new network for a seed. Defaults to None, which builds the
            network that the settings name.
        loss: callable. A function of (y, outputs) that gives each example's loss. Defaults to
            cross_entropy.
    """

    def __init__(
        self,
        settings: Settings,
        problem: Problem,
        build: Callable[[int], keras.Model] | None = None,
        loss: Callable[[Any, Any], Any] = cross_entropy,
    ) -> None:
        self._settings, self._problem = settings, problem
        self._build = build or functools.partial(_network, settings.network, problem)
        self.count = settings.n_workers
        self.momentum, self._lr = settings.momentum, settings.lr
        self.coupling: Adjustable | None = None
        self.model: Replicas | None = None
        if self.count:
            self.model = self._make_replicas(loss)
            coupling = self.model.coupling
            assert isinstance(coupling, Adjustable)  # `_make_replicas` made it
            self.coupling = coupling
        self._alone = self._start(0)
        x, y = problem.train
        self._descent: worker_zero.Descent | None = None
        if settings.method == "LBFGS":
            self.zero: worker_zero.WorkerZero = worker_zero.QuasiNewton(self._alone, loss, x, y)
        else:
            batches = (
                worker_zero.whole_batch(x, y)
                if settings.method == "GD"
                else worker_zero.minibatches(x, y, settings.batch_size, self._seed(0))
            )
            self._descent = worker_zero.Descent(self._alone, loss, _sgd(settings), batches)
            self.zero = self._descent
        self._steps = 0
        self._set_momentum(settings.momentum)

    # ---- the workers -------------------------------------------------------------------------

    @property
    def ids(self) -> range:
        """The numbers of the workers, 0 ... n."""
        return range(self.count + 1)

    @property
    def zero_is_center(self) -> bool:
        """Return whether worker 0 is the center of the others."""
        if self.coupling is None:
            return False
        return self._settings.coupling != "elastic" or self.coupling.value > 0

    @property
    def steps(self) -> int:
        """The number of minibatch steps so far."""
        return self._steps

    def new_network(self) -> keras.Model:
        """Return a new network of the same architecture."""
        return self._build(self._settings.seed)

    def copy_to(self, k: int, network: keras.Model) -> None:
        """Copy the weights of worker k to a network; with Entropy-SGD, its anchor.

        Args:
            k: int in [0, n]. The number of the worker.
            network: keras.Model. A network from `new_network`.
        """
        if k == 0 and not self.zero_is_center:
            network.set_weights(self._alone.get_weights())
        elif k == 0:
            assert self.model is not None
            self.model.update_center()
            network.set_weights(self.model._center.get_weights())
        else:
            assert self.model is not None
            self.model.copy_replica(k - 1, network)

    def move(self, k: int, start: Sequence[Array], end: Sequence[Array]) -> bool:
        """Move worker k as its random walk did, together with Entropy-SGD's inner loop.

        Args:
            k: int in [0, n]. The number of the worker.
            start: sequence of arrays. All weights of its network before.
            end: sequence of arrays. All weights of its network after.

        Returns:
            Whether it moved; a center that is the mean of its workers cannot.
        """
        if k == 0 and self.zero_is_center:
            return False
        network = self._alone if k == 0 else self._member(k)
        ids = {id(v): n for n, v in enumerate(network.weights)}
        shifts = [
            np.asarray(end[n]) - np.asarray(start[n])
            for n in (ids[id(v)] for v in network.trainable_variables)
        ]
        moving = [network.trainable_variables]
        # The annotation lets a type checker check the calls below.
        optimizer: LocalEntropy | None = network.optimizer if k > 0 else None
        if optimizer is not None:
            moving += [slots for slots in (optimizer._loop.anchors, optimizer._loop.means) if slots]
        for variables in moving:
            for variable, shift in zip(variables, shifts, strict=True):
                if variable is not None:
                    variable.assign_add(shift)
        if optimizer is not None and optimizer.langevin_steps:
            # The inner loop moves too; otherwise its weights would look as if a user had set them.
            optimizer._loop.probes.remember(tf.distribute.get_strategy())
        if self.model is not None and k > 0:
            self.model.optimizer.center_is_current = False  # the center must be computed again
        elif isinstance(self.zero, worker_zero.QuasiNewton):
            self.zero.restart()  # its estimate of the curvature belongs to another point
        return True

    # ---- training -----------------------------------------------------------------------------

    def minibatches(self) -> OwnMinibatches:
        """Return the minibatches of the stochastic workers, beginning with the next step."""
        return OwnMinibatches(self._shuffled)

    @property
    def batch_norm_data(self) -> Any:
        """The inputs from which BatchNormalization statistics are estimated; always the same."""
        first = self._shuffled(0, first_step=0)
        return first.map(lambda x, y: x).take(_BATCH_NORM_BATCHES)

    def _shuffled(self, a: int, first_step: int | None = None) -> Any:
        dataset, _ = shuffled(
            self._problem.train,
            batch_size=self._settings.batch_size,
            seed=self._seed(a + 1),
            first_step=self._steps if first_step is None else first_step,
            shuffle=True,
        )
        return dataset

    def advance(self) -> None:
        """Count a step of the stochastic workers, and take a step of worker 0."""
        if not self.zero_is_center:
            self.zero.step(self._steps)
        self._steps += 1

    @property
    def lr(self) -> float:
        """The current learning rate; may be set."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._lr = lr
        if self.model is not None:
            self.model.optimizer.learning_rate = lr
        if self._descent is not None:
            self._descent.optimizer.learning_rate = lr

    @property
    def takes_momentum(self) -> bool:
        """Return whether any of the optimizers has a momentum."""
        return self._has_momentum or self._descent is not None

    @property
    def _has_momentum(self) -> bool:
        return self._settings.optimizer != "adam" or self._settings.coupling == "parle"

    def set_momentum(self, momentum: float) -> None:
        """Set the momentum, a constant of the traced step, which is therefore traced again."""
        if momentum != self.momentum:
            self._set_momentum(momentum)
            if self.model is not None and self.model.train_function is not None:
                self.model.make_train_function(force=True)

    @property
    def alpha(self) -> float:
        """The current strength of the coupling; may be set."""
        return self._settings.alpha if self.coupling is None else self.coupling.value

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        if self.coupling is None:
            return
        was_center = self.zero_is_center
        if was_center:
            self.copy_to(0, self._alone)  # the current center, in case it is needed
        self.coupling.value = alpha
        if was_center and not self.zero_is_center:
            self.zero.restart()

    # ---- state --------------------------------------------------------------------------------

    def state(self) -> list[Array]:
        """Return the complete state of training as arrays."""
        arrays = [np.array(self._steps), np.array(self.momentum), np.array(self.lr)]
        arrays += [v.numpy() for v in self._variables()]
        return arrays + list(self.zero.state())

    def set_state(self, state: Sequence[Array]) -> None:
        """Set a state that `state` returned, for workers with the same settings.

        Raises:
            ValueError: The state belongs to workers with other settings.
        """
        steps, momentum, lr, *rest = state
        variables = self._variables()
        if len(rest) < len(variables):
            raise ValueError("The state is that of other workers.")
        for variable, value in zip(variables, rest, strict=False):
            if tuple(variable.shape) != value.shape:
                raise ValueError("The state is that of other workers.")
            variable.assign(value)
        self._steps, self.lr = int(steps), float(lr)
        self.zero.set_state(list(rest[len(variables) :]))
        self._set_momentum(float(momentum))

    def _variables(self) -> list[Any]:
        variables = list(self._alone.variables)
        if self.model is not None and self.coupling is not None:
            for member in self.model.members:
                variables += state_of(member)
            variables += [*self.model._center.variables, *self.model.optimizer.variables]
            variables.append(self.coupling.strength.variable)  # type: ignore[attr-defined]
        return variables

    # ---- parts --------------------------------------------------------------------------------

    def _member(self, k: int) -> keras.Model:
        assert self.model is not None
        return self.model.members[k - 1]

    def _seed(self, k: int) -> int:
        return (self._settings.seed + k * _STRIDE) % 2**31

    def _start(self, k: int) -> keras.Model:
        """Return the network that worker k starts with."""
        network = self._build(self._settings.seed)
        std = self._settings.weight_init_std
        if std > 0:
            rng = np.random.default_rng([self._settings.seed, 2, k])
            for variable in network.trainable_variables:
                variable.assign(std * rng.standard_normal(variable.shape))
        return network

    def _make_replicas(self, loss: Any) -> Replicas:
        settings = self._settings
        separate = settings.weight_init_std > 0
        model = Replicas(
            lambda a: self._start(a + 1),
            self.count,
            make_coupling(settings),
            initialization="independent" if separate else "same",
            seed=settings.seed,
        )
        # XLA is off, because compiling takes longer than most experiments.
        model.compile(_optimizer(settings), loss=loss, jit_compile=False)
        model._batch_norm_data = self.batch_norm_data  # for measurements before `fit` too
        return model

    def _set_momentum(self, momentum: float) -> None:
        self.momentum = momentum
        if self._descent is not None:
            # The graph of worker 0 holds the gradient only, so its step reads the current momentum.
            self._descent.optimizer.momentum = momentum or _NO_MOMENTUM
        if self.model is None or not self._has_momentum:
            return
        for optimizer in self.model.optimizer.replicas:
            stepping = optimizer if optimizer.langevin_steps else optimizer.outer_optimizer
            stepping.momentum = momentum or _NO_MOMENTUM


def _network(name: str, problem: Problem, seed: int) -> keras.Model:
    shape = problem.train[0].shape[1:]
    return models.build(name, shape, problem.num_classes, seed=seed)


def _sgd(settings: Settings) -> keras.optimizers.SGD:
    return keras.optimizers.SGD(settings.lr, momentum=float(settings.momentum or _NO_MOMENTUM))


def _optimizer(settings: Settings) -> keras.optimizers.Optimizer:
    if settings.optimizer == "sgd":
        outer = settings.coupling == "parle"  # here the inner loop has the momentum
        return keras.optimizers.SGD(settings.lr) if outer else _sgd(settings)
    if settings.optimizer == "adam":
        return keras.optimizers.Adam(settings.lr)
    kind = EntropySGD if settings.optimizer == "entropy-sgd" else EntropyAdam
    return kind(
        settings.lr,
        langevin_steps=settings.langevin_steps,
        langevin_learning_rate=settings.langevin_lr,
        momentum=settings.momentum or _NO_MOMENTUM,
        seed=settings.seed,
    )
