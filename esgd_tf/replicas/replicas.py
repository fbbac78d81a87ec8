"""Replicas: several interacting copies of a network, trained as one Keras model.

Every replica is a Keras model of its own, with its own optimizer and its own minibatches, and steps
as it would alone; the coupling adds the attraction to the center. One training step is one
gradient evaluation in every replica. The center is evaluated, saved for use and exported.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from esgd_tf import _checks, _keras
from esgd_tf._warn import warn
from esgd_tf.replicas._arrival import Batches
from esgd_tf.replicas._building import copy_of
from esgd_tf.replicas._exchange import Exchange, StrategyExchange
from esgd_tf.replicas._gamma import GAMMA_BATCHES, measured_gamma
from esgd_tf.replicas._group import Group
from esgd_tf.replicas._members import copied_metrics, devices_of, make_members
from esgd_tf.replicas._optimizer import ReplicasOptimizer, inner_optimizers
from esgd_tf.replicas._reading import ReadableReplicas
from esgd_tf.replicas.coupling import Coupling
from esgd_tf.replicas.minibatches import checked_steps, make_minibatches

__all__ = ["Replicas"]

INITIALIZATIONS = ("independent", "same")
# The number of minibatches from which the center's BatchNorm statistics are estimated.
_BATCH_NORM_BATCHES = 50
# With more replicas in one graph, tracing takes minutes.
_MANY = 32


@keras.saving.register_keras_serializable(package="esgd_tf")
class Replicas(ReadableReplicas):
    """y interacting replicas of a network.

    Examples:
        >>> from esgd_tf import replicas
        >>> coupling = replicas.ReplicatedSGD(replicas.Focusing(steps=30 * 391))
        >>> model = replicas.Replicas(build_model, 3, coupling)
        >>> model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
        >>> model.fit(x, y, epochs=30, batch_size=128, validation_data=(x_test, y_test))
        >>> network = model.center()                      # a plain Keras model

    Note:
        * One Keras step evaluates y gradients. With arrays, every replica passes over all the data
          in an epoch, in its own order: an epoch costs y epochs of one network. The minibatches of
          one `tf.data.Dataset` are distributed instead: all replicas share one pass in an epoch.
        * `loss` and metrics in the logs of training are means over the replicas. `evaluate`,
          `predict`, calling the model, and validation are at the center.
        * With an `EntropySGD` inside, replicas couple at their outer updates, by their anchors, and
          `every` counts those; `Focusing` counts training steps in any case.
        * Gradient clipping of the optimizer by norm or value acts on the gradient with the
          coupling's part; `global_clipnorm` acts on the minibatch gradient alone.

    Args:
        build_model: callable. Returns a new, built Keras model. If it has an argument without a
            default, it is called with the number of the replica, as a seed for its weights.
        replicas: int >= 1. y, the number of replicas.
        coupling: Coupling. The rule by which replicas are attracted to their center, from
            `esgd_tf.replicas`.
        initialization: "independent" or "same". With "independent" every replica starts as
            `build_model` made it, with "same" all start with the weights of the first. Defaults to
            'independent'.
        strategy: tf.distribute.MirroredStrategy or MultiWorkerMirroredStrategy. With it there is
            one replica per device; the model must not be made inside its scope. Defaults to None,
            which trains all replicas on one device.
        seed: int >= 0. The seed of the orders of arrays given to `fit`. Defaults to None, which
            takes one from Keras' global seed.
        name: str. Name of the model. Defaults to 'replicas'.

    Raises:
        ValueError: An argument is out of range, there are fewer devices than replicas, the models
            differ in their shapes, or are not built, or share weights, or are equal though they
            should not be.
    """

    def __init__(
        self,
        build_model: Callable[..., keras.Model],
        replicas: int,
        coupling: Coupling,
        initialization: str = "independent",
        strategy: tf.distribute.Strategy | None = None,
        seed: int | None = None,
        name: str = "replicas",
    ) -> None:
        count = _checks.integer("replicas", replicas, at_least=1)
        if not isinstance(coupling, Coupling):
            raise ValueError(
                "`coupling` must be one of esgd_tf.replicas, such as ReplicatedSGD(gamma=0.01); "
                f"got {coupling!r}."
            )
        _checks.choice("initialization", initialization, INITIALIZATIONS)
        if tf.distribute.has_strategy():
            raise ValueError(
                "Make Replicas outside of `strategy.scope()` and give it the strategy: replicas "
                "have weights of their own, which the scope would tie together."
            )
        seed = _checks.integer("seed", _keras.new_seed() if seed is None else seed, at_least=0)
        coupling = coupling.for_replicas(count)
        devices, first = devices_of(strategy, count)
        # Replicas of other processes are copies in this one's main memory.
        places: list[str | None] = ["CPU:0" if strategy else None] * count
        places[first : first + len(devices)] = devices
        members = make_members(build_model, places, same=initialization == "same")
        center = copy_of(members[0], build_model)
        exchange = Exchange(coupling, center)
        if strategy is not None:
            exchange = StrategyExchange(coupling, center, strategy, devices)
        local = list(range(first, first + len(devices)))
        group = Group(build_model, count, coupling, members, local, devices, center, exchange)
        super().__init__(group, name)
        self.seed = seed
        self.initialization = initialization
        self._strategy = strategy
        self._places = places

    # ---- training ---------------------------------------------------------------------------

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer | str = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: str | bool = "auto",
        auto_scale_loss: bool = True,
    ) -> None:
        """Compile all replicas: as `keras.Model.compile`, with a copy of the optimizer for each.

        Raises:
            ValueError: The optimizer is built already or does not fit the coupling, or
                `steps_per_execution` is above 1, or `jit_compile` True, with a strategy; or some
                replicas have frozen layers that are not frozen in others.
        """
        self._check_trainable()
        if len(self.local) > _MANY:
            warn(
                f"{len(self.local)} replicas in one process are traced one by one before the first "
                "step, which takes seconds for each: try few first, or `run_eagerly=True`."
            )
        if self._strategy is not None and jit_compile is True:
            raise ValueError(
                "`jit_compile` must be False or 'auto' with a strategy: XLA is for one device."
            )
        if self._strategy is not None and steps_per_execution != 1:
            raise ValueError(
                "`steps_per_execution` must be 1 with a strategy: between two steps the replicas "
                "may have to meet."
            )
        self._compile_arguments = {
            "optimizer": keras.optimizers.get(optimizer),
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
            "jit_compile": jit_compile,
            "auto_scale_loss": auto_scale_loss,
        }
        optimizers = inner_optimizers(optimizer, self.coupling, self.replicas)
        for member, inner, place in zip(
            [*self.members, self._center], [*optimizers, None], [*self._places, None], strict=True
        ):
            member.compile(
                optimizer=inner,
                loss=loss,
                loss_weights=loss_weights,
                metrics=copied_metrics(metrics),
                weighted_metrics=copied_metrics(weighted_metrics),
                run_eagerly=run_eagerly,
                jit_compile=False,  # the step of all replicas is compiled instead
                auto_scale_loss=auto_scale_loss and inner is not None,
            )
            if inner is not None:
                # Slots must be on the device of their weights.
                with tf.device(place):
                    member.optimizer.build(member.trainable_variables)
        group = self._group
        stands_for_all = ReplicasOptimizer(
            optimizers,
            self.coupling,
            [] if self.coupling.keeps_center else group.exchange.state,
        )
        super().compile(
            optimizer=stands_for_all,
            loss=loss,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            # XLA compiles for one device.
            jit_compile=False if self._strategy is not None else jit_compile,
            auto_scale_loss=False,
        )
        group.optimizer = stands_for_all
        group.exchange.use([optimizers[a] for a in self.local])
        # The center starts as the mean, even if it has a state of its own.
        self._middle.assign(group.exchange.mean())
        group.exchange.begin()

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        *,
        sample_weight: Any = None,
        shuffle: bool = True,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        batch_norm_data: Iterable[Any] | bool | None = None,
        **options: Any,
    ) -> Any:
        """Train all replicas: as `keras.Model.fit`.

        Args:
            x: nested structure of arrays, tf.data.Dataset, or OwnMinibatches. Every replica sees
                all examples of arrays, in its own order; the minibatches of a data set are
                distributed; `OwnMinibatches` has one data set per replica. Defaults to None, which
                is refused.
            y: nested structure of arrays. The targets, with arrays. Defaults to None, which means
                that there are none.
            batch_size: int >= 1. Examples of a minibatch of ONE replica, with arrays. Defaults to
                None, which means 32.
            epochs: int >= 1. The number of the last epoch. Defaults to 1.
            sample_weight: nested structure of arrays. The weights of the examples, with arrays.
                Defaults to None, which means 1 for each.
            shuffle: bool. Whether to shuffle arrays. Defaults to True.
            initial_epoch: int >= 0. The number of epochs done before. Defaults to 0.
            steps_per_epoch: int >= 1. Training steps of an epoch. Defaults to None, which means one
                pass.
            batch_norm_data: iterable of batches, or bool. TRAINING data for the BatchNormalization
                statistics of center and replicas; False averages the replicas' own statistics.
                Defaults to None, which takes the first minibatches of the first replica (of arrays,
                in their order of the first epoch; of a data set, as they pass by, at most 256 MB of
                them).
            **options: Arguments of `keras.Model.fit`.

        Returns:
            The history.

        Raises:
            ValueError: The data are of another kind, or gamma_0 cannot be measured.
        """
        _keras.require_compiled(self, "fit")
        _refuse_class_weight(options)
        if options.get("validation_split"):
            raise ValueError("`validation_split` is not taken: give `validation_data` instead.")
        steps_per_epoch = checked_steps(steps_per_epoch)
        make = functools.partial(
            make_minibatches,
            x,
            y,
            sample_weight,
            batch_size,
            replicas=self.replicas,
            seed=self.seed,
            steps_per_epoch=steps_per_epoch,
            shuffle=shuffle,
        )
        # `BackupAndRestore` sets the first epoch when Keras' `fit` is under way.
        batches, steps = make(
            local=self.local, first_epoch=lambda: _keras.initial_epoch(self) or initial_epoch
        )
        execution = self.steps_per_execution
        if steps and steps % execution:
            raise ValueError(
                f"`steps_per_execution` = {execution} does not go into the {steps} steps of an "
                "epoch: the last execution would run over."
            )
        is_array = steps is not None
        records = batch_norm_data is None and not is_array and self._middle.has_batch_norm
        needs_gamma = self._stepping.needs_gamma
        pulled = Batches(
            records,
            look=self._measure_gamma if needs_gamma else None,
            ahead=GAMMA_BATCHES if needs_gamma else 0,
        )
        if batch_norm_data is None and is_array and self._middle.has_batch_norm:
            # These are the first epoch's batches, wherever a run goes on, so that results agree.
            first, _ = make(local=self.local[:1], first_epoch=lambda: 0)
            batch_norm_data = first.map(lambda parts: parts).take(_BATCH_NORM_BATCHES)
        if isinstance(batch_norm_data, bool):
            if batch_norm_data:
                raise ValueError(
                    "`batch_norm_data` must be batches of training data, None or False, not True."
                )
            batch_norm_data = None
            records = False
        self._middle.batch_norm_data = batch_norm_data
        if records:
            self._middle.batch_norm_data = pulled
        self._stepping.begin(pulled)
        if not needs_gamma:
            self._stepping.warn_of_strength(of_next=True)
        try:
            history = super().fit(
                batches,
                epochs=epochs,
                initial_epoch=initial_epoch,
                steps_per_epoch=steps if steps_per_epoch is None else steps_per_epoch,
                shuffle=False,
                **options,
            )
        finally:
            # From here on the state on the devices is the current one.
            self._group.exchange.store()
        # This is for graphs that read the center's variables directly.
        self._middle.update()
        return history

    def _measure_gamma(self, batches: list[Any]) -> None:
        if not self._stepping.needs_gamma:  # `BackupAndRestore` has restored it
            return
        group = self._group
        self.optimizer.gamma_zero = measured_gamma(group.own, group.center, group.exchange, batches)
        self._stepping.warn_of_strength(of_next=True)

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, **options: Any
    ) -> Any:
        """Train on one minibatch per replica.

        Args:
            x: nested structure of arrays of shape [replicas * batch, ...]. The minibatches of the
                replicas, one after the other.
            y: nested structure of arrays. The targets, in the same order. Defaults to None, for no
                targets.
            sample_weight: nested structure of arrays. The examples' weights, in the same order.
                Defaults to None, which means 1 for each.
            **options: Arguments of `keras.Model.train_on_batch`.

        Raises:
            ValueError: The examples cannot be split evenly, or gamma_0 has not been given.
        """
        _keras.require_compiled(self, "train_on_batch")
        _refuse_class_weight(options)
        arrays = tuple(part for part in (x, y, sample_weight) if part is not None)
        length = len(keras.tree.flatten(x)[0])
        if length % self.replicas:
            raise ValueError(
                f"{length} examples cannot be split evenly over {self.replicas} replicas."
            )
        size = length // self.replicas
        hands = [
            keras.tree.map_structure(lambda t, a=a: t[a * size : (a + 1) * size], arrays)
            for a in self.local
        ]
        if self._stepping.needs_gamma:
            raise ValueError(
                "gamma_0 is measured by `fit`: give Focusing a `gamma` to train by batches."
            )
        self._stepping.begin()
        self._stepping.warn_of_strength(of_next=True)
        data = keras.tree.map_structure(tf.convert_to_tensor, tuple(hands))
        self.make_train_function()
        try:
            logs = self.train_function(iter([data]))
        finally:
            self._group.exchange.store()
        if self._is_traced:
            self._middle.update()
        logs = {name: float(value) for name, value in logs.items()}
        return logs if options.get("return_dict") else list(logs.values())

    # ---- files --------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return the config from which a model without a strategy is rebuilt."""
        return {
            "member": keras.saving.serialize_keras_object(self.members[0]),
            "replicas": self.replicas,
            "coupling": keras.saving.serialize_keras_object(self.coupling),
            "initialization": self.initialization,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Rebuild the model from `get_config`, on one device."""
        config = dict(config)
        member = config.pop("member")
        member = {key: value for key, value in member.items() if key != "compile_config"}
        initialization = config.pop("initialization")

        def build_model() -> keras.Model:
            # A copy is used, since Keras empties the config of a functional model that it rebuilds.
            return keras.saving.deserialize_keras_object(
                copy.deepcopy(member), custom_objects=custom_objects
            )

        config["coupling"] = keras.saving.deserialize_keras_object(
            config["coupling"], custom_objects=custom_objects
        )
        model = cls(build_model, initialization="same", **config)
        model.initialization = initialization
        return model

    def _check_trainable(self) -> None:
        """Refuse layers that are frozen in some replicas, or in all since they were made."""
        wanted = len(self._group.exchange.state)
        for a, member in enumerate(self.members):
            count = len(member.trainable_variables)
            if count != wanted:
                raise ValueError(
                    f"replica {a} has {count} trainable weights and the center {wanted}: freeze "
                    "layers in `build_model`, so that they are frozen in all."
                )


def _refuse_class_weight(options: dict[str, Any]) -> None:
    if options.get("class_weight") is not None:
        raise ValueError("`class_weight` is not taken: give `sample_weight` instead.")
