"""The network of a run, or its replicas, compiled for the devices that train it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from esgd_tf import data, models
from esgd_tf.baselines import enable_minibatch_gradients
from esgd_tf.replicas import Replicas
from esgd_tf.runs.components import Batches, make_coupling, make_optimizer, replica_seed
from esgd_tf.runs.experiment import REPLICATED, Experiment
from esgd_tf.runs.settings import Settings
from esgd_tf.training import enable_multi_worker, skip_nonfinite
from esgd_tf.training.strategies import StrategyError

__all__ = ["make_model"]


def make_model(
    settings: Settings, images: data.ImageData, batches: Batches, strategy: tf.distribute.Strategy
) -> keras.Model:
    """Make and compile the network, or its replicas.

    Args:
        settings: Settings. The numbers in force.
        images: ImageData. The data set.
        batches: Batches. The pipelines of the data set.
        strategy: tf.distribute.Strategy. The strategy, which tells the devices to train on.

    Raises:
        StrategyError: There are several devices, but not one for each replica.
    """
    experiment, run = settings.experiment, settings.run
    seed = run.seed
    build_network = functools.partial(
        models.build,
        experiment.model,
        images.train_images.shape[1:],
        images.num_classes,
        dropout=experiment.dropout,
        sync_bn=run.sync_bn,
    )
    if experiment.optimizer in REPLICATED:
        model = _replicas(build_network, experiment, batches, seed, strategy)
        model.compile(**_compile_arguments(settings, batches))
        for member in model.members:
            skip_nonfinite(member)
    else:
        with strategy.scope():
            model = build_network(seed=seed)
            model.compile(**_compile_arguments(settings, batches))
            # If the first step made the slots, it would be traced twice.
            model.optimizer.build(model.trainable_variables)
        enable_minibatch_gradients(model)
        skip_nonfinite(model)
        enable_multi_worker(model)
    return model


def _compile_arguments(settings: Settings, batches: Batches) -> dict[str, Any]:
    """Return the arguments of `compile`. Call this in the scope of the strategy.

    The optimizer and the metrics have variables. If these are made outside of the scope, they
    belong to one device, and the counts of the other devices are lost.
    """
    experiment, run = settings.experiment, settings.run
    return {
        "optimizer": make_optimizer(experiment, batches.steps_per_epoch, run.seed),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # This is an object, not a name: for a name Keras would make the variables in the first
        # trace of the step, and TensorFlow would then trace it a second time.
        "metrics": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        "jit_compile": {"auto": "auto", "true": True, "false": False}[run.jit_compile],
    }


def _replicas(
    build_network: Callable[..., keras.Model],
    experiment: Experiment,
    batches: Batches,
    seed: int,
    strategy: tf.distribute.Strategy,
) -> Replicas:
    """Make the replicas, one per device if there are several devices.

    Raises:
        StrategyError: There are several devices, but not one for each replica.
    """
    count = experiment.replicas
    several = strategy.num_replicas_in_sync > 1
    if several and strategy.num_replicas_in_sync != count:
        raise StrategyError(
            f"--replicas={count} and {strategy.num_replicas_in_sync} devices: give as many devices "
            "as replicas, or train all of them on one by --strategy none."
        )
    return Replicas(
        lambda a: build_network(seed=replica_seed(seed, a)),
        count,
        make_coupling(experiment, batches.steps_per_epoch),
        initialization=experiment.initialization,
        strategy=strategy if several else None,
        seed=seed,
    )
