"""Replicas: several interacting copies of a network, trained as one Keras model.

Every replica is a Keras model of its own, with its own optimizer and its own minibatches, and steps
as it would alone; what is added is what draws it to the center. One training step is one gradient
evaluation in every replica. What is evaluated, saved for use and exported is the center.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from esgd_tf.optimizers import _checks
from esgd_tf.replicas._drawing import Drawing
from esgd_tf.replicas._exchange import Exchange, StrategyExchange
from esgd_tf.replicas._gamma import measured_gamma
from esgd_tf.replicas._members import (
    copied_metrics,
    copy_of,
    devices_of,
    make_members,
)
from esgd_tf.replicas._optimizer import ReplicasOptimizer, inner_optimizers
from esgd_tf.replicas._reading import Reading
from esgd_tf.replicas._stepping import Stepping
from esgd_tf.replicas.coupling import Coupling
from esgd_tf.replicas.minibatches import make_minibatches

__all__ = ["Replicas"]

INITIALIZATIONS = ("independent", "same")
# Minibatches from which the center's BatchNorm statistics are estimated.
_BATCH_NORM_BATCHES = 50


@keras.saving.register_keras_serializable(package="esgd_tf")
class Replicas(Stepping, Reading, keras.Model):
    """y interacting replicas of a network.

    Example:
        >>> model = Replicas(build_model, 3, ReplicatedSGD(Focusing(steps=30 * 391)))
        >>> model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
        >>> model.fit(x, y, epochs=30, batch_size=128, validation_data=(x_test, y_test))
        >>> network = model.center()                      # a plain Keras model

    Note:
        * One Keras step evaluates y gradients. With arrays, every replica passes over all the data
          in an epoch, in its own order: an epoch costs y epochs of one network. The minibatches of
          one `tf.data.Dataset` are dealt out instead: an epoch is one pass, shared.
        * `loss` and metrics in the logs of training are means over the replicas. `evaluate`,
          `predict`, calling the model, and validation are at the center.
        * With an `EntropySGD` inside, replicas couple at their outer updates, by their anchors, and
          `every` counts those; `Focusing` counts training steps in any case.
        * Gradient clipping of the optimizer by norm or value acts on the gradient with the
          coupling's part; `global_clipnorm` on the minibatch gradient alone.

    Args:
        build_model: Returns a new, built Keras model. If it takes an argument, it is called with
            the number of the replica, to seed its weights by.
        replicas: y >= 1.
        coupling: What draws the replicas together, from `esgd_tf.replicas`.
        initialization: "independent": every replica starts as `build_model` made it. "same": all
            start with the weights of the first.
        strategy: A `tf.distribute.MirroredStrategy` or `MultiWorkerMirroredStrategy` for one
            replica a device; None for all of them on one. Not to be used inside its scope.
        seed: Of the orders of arrays given to `fit`; None draws one from Keras' global seed.
        name: Name of the model.

    Raises:
        ValueError: An argument is out of range, there are fewer devices than replicas, the models
            differ in their shapes, or are not built, or are equal though they should not be.
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
        super().__init__(name=name)
        count = _checks.integer("replicas", replicas, at_least=1)
        if not isinstance(coupling, Coupling):
            raise ValueError(
                "`coupling` must be one of esgd_tf.replicas, such as ReplicatedSGD(gamma=0.01); "
                f"got {coupling!r}."
            )
        if initialization not in INITIALIZATIONS:
            raise ValueError(
                f"`initialization` must be independent or same; got {initialization!r}."
            )
        if tf.distribute.has_strategy():
            raise ValueError(
                "Make Replicas outside of `strategy.scope()` and give it the strategy: replicas "
                "have weights of their own, which the scope would tie together."
            )
        if seed is None:
            seed = keras.src.random.seed_generator.make_default_seed()
        self.seed = _checks.integer("seed", seed, at_least=0)
        self.replicas = count
        self.coupling = coupling.for_replicas(count)
        self.initialization = initialization
        self._strategy = strategy
        self.devices, first = devices_of(strategy, count)
        #: Numbers of the replicas that this process trains; the others are kept as copies.
        self.local = list(range(first, first + len(self.devices)))
        self.build_model = build_model
        # What other processes train is kept in this one's main memory.
        self._places: list[str | None] = ["CPU:0" if strategy else None] * count
        self._places[first : first + len(self.devices)] = self.devices
        self.members = make_members(build_model, self._places, same=initialization == "same")
        self._center = copy_of(self.members[0], build_model)
        if strategy is None:
            self._exchange: Exchange = Exchange(self.coupling, self._center)
        else:
            self._exchange = StrategyExchange(self.coupling, self._center, strategy, self.devices)
        self._drawings: list[Drawing] = []
        self._compile_arguments: dict[str, Any] = {}
        self._batch_norm_data: Any = None
        self._step = 0
        self.train_function: Any = None
        self.built = True

    # ---- what users call ----------------------------------------------------------------------

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
                `steps_per_execution` is above 1, or `jit_compile` True, with a strategy.
        """
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
                jit_compile=False,  # what is compiled is the step of all
                auto_scale_loss=auto_scale_loss and inner is not None,
            )
            if inner is not None:
                # Where the weights are, there the slots must be.
                with tf.device(place):
                    member.optimizer.build(member.trainable_variables)
        super().compile(
            optimizer=ReplicasOptimizer(
                optimizers,
                self.coupling,
                [] if self.coupling.keeps_center else self._exchange.state,
            ),
            loss=loss,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            # XLA compiles for one device.
            jit_compile=False if self._strategy is not None else jit_compile,
            auto_scale_loss=False,
        )
        own = [optimizers[a] for a in self.local]
        self._exchange.use(own)
        self._drawings = []
        for a, inner in enumerate(own):
            inner.coupling = Drawing(self.coupling, inner, self._exchange.center_of(a))
            self._drawings.append(inner.coupling)
        # The center starts as the mean, also one with a state of its own.
        self._assign_center(self._exchange.mean())
        self._exchange.begin()

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
            x: Arrays, of which every replica sees all in an order of its own; a `tf.data.Dataset`
                of minibatches, which are dealt out; or `OwnMinibatches`, one data set a replica.
            y: Targets, with arrays.
            batch_size: Examples of a minibatch of ONE replica, with arrays; 32 by default.
            epochs: Number of the last epoch.
            sample_weight: With arrays.
            shuffle: Whether to shuffle arrays.
            initial_epoch: Number of epochs done before.
            steps_per_epoch: Training steps of an epoch; None for one pass.
            batch_norm_data: Batches of TRAINING data for the center's BatchNormalization
                statistics; None takes the first minibatches of the first replica (of arrays, in
                their order of the first epoch), False averages the replicas' own statistics.
            **options: Of `keras.Model.fit`.

        Returns:
            The history.

        Raises:
            ValueError: The data are of another kind, or gamma_0 cannot be measured.
        """
        self._assert_compile_called("fit")
        _refuse_class_weight(options)
        if options.get("validation_split"):
            raise ValueError("`validation_split` is not taken: give `validation_data` instead.")
        make = functools.partial(
            make_minibatches,
            x,
            y,
            sample_weight,
            batch_size,
            local=self.local,
            replicas=self.replicas,
            seed=self.seed,
            steps_per_epoch=steps_per_epoch,
            shuffle=shuffle,
        )
        batches, steps = make(first_epoch=initial_epoch)
        execution = self.steps_per_execution
        if steps and steps % execution:
            raise ValueError(
                f"`steps_per_execution` = {execution} does not go into the {steps} steps of an "
                "epoch: the last execution would run over."
            )
        if batch_norm_data is None:
            # Of arrays always those of the first epoch, so that it does not matter where a run
            # goes on; a data set begins where it begins.
            first = make(first_epoch=0)[0] if initial_epoch else batches
            batch_norm_data = first.map(lambda *parts: parts[0]).take(_BATCH_NORM_BATCHES)
        self._batch_norm_data = None if batch_norm_data is False else batch_norm_data
        if self._needs_gamma():
            own = [self.members[a] for a in self.local]
            center = self._center.get_weights()
            gamma = measured_gamma(own, self._center, self._exchange, batches)
            self._center.set_weights(center)
            self.optimizer.gamma_zero = gamma
        self._begin()
        return super().fit(
            batches,
            epochs=epochs,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps if steps_per_epoch is None else steps_per_epoch,
            shuffle=False,
            **options,
        )

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, **options: Any
    ) -> Any:
        """Train on one minibatch a replica.

        Args:
            x: [replicas * batch, ...]: the minibatches of the replicas, one after the other.
            y: Targets, likewise.
            sample_weight: Likewise.
            **options: Of `keras.Model.train_on_batch`.

        Raises:
            ValueError: The minibatches do not go round.
        """
        self._assert_compile_called("train_on_batch")
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
        if self._needs_gamma():
            raise ValueError(
                "gamma_0 is measured by `fit`: give Focusing a `gamma` to train by batches."
            )
        self._begin()
        data = tf.data.Dataset.from_tensors(tuple(hands))
        self.make_train_function()
        logs = self.train_function(iter(data))
        logs = {name: float(value) for name, value in logs.items()}
        return logs if options.get("return_dict") else list(logs.values())

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """Evaluate the center: as `keras.Model.evaluate`."""
        self.settle()
        return super().evaluate(*arguments, **options)

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """Predict by the center: as `keras.Model.predict`."""
        self.settle()
        return super().predict(*arguments, **options)

    def save(self, *arguments: Any, **options: Any) -> None:
        """Save replicas, optimizers and center: as `keras.Model.save`. See also `center`."""
        self.settle()
        super().save(*arguments, **options)

    @property
    def _loss_given(self) -> Any:
        return self._compile_arguments.get("loss")

    @property
    def compiled_metrics(self) -> Any:
        """The metrics given to `compile`."""
        return self._compile_arguments.get("metrics")

    # ---- saving and loading ----------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return what a model without strategy is rebuilt from."""
        return {
            "member": keras.saving.serialize_keras_object(self.members[0]),
            "replicas": self.replicas,
            "coupling": keras.saving.serialize_keras_object(self.coupling),
            "initialization": self.initialization,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Replicas:
        """Rebuild the model from `get_config`, on one device."""
        config = dict(config)
        member = config.pop("member")
        member = {key: value for key, value in member.items() if key != "compile_config"}
        initialization = config.pop("initialization")

        def build_model() -> keras.Model:
            # A copy: Keras empties the config of a functional model that it rebuilds.
            return keras.saving.deserialize_keras_object(
                copy.deepcopy(member), custom_objects=custom_objects
            )

        config["coupling"] = keras.saving.deserialize_keras_object(
            config["coupling"], custom_objects=custom_objects
        )
        model = cls(build_model, initialization="same", **config)
        model.initialization = initialization
        return model

    def get_compile_config(self) -> dict[str, Any]:
        """Return the arguments of `compile`, serialised."""
        return {
            name: keras.saving.serialize_keras_object(value)
            for name, value in self._compile_arguments.items()
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile with what `get_compile_config` returned."""
        self.compile(
            **{name: keras.saving.deserialize_keras_object(v) for name, v in config.items()}
        )


def _refuse_class_weight(options: dict[str, Any]) -> None:
    if options.get("class_weight") is not None:
        raise ValueError("`class_weight` is not taken: give `sample_weight` instead.")
