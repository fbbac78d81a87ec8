"""What an `Experiment` of config.py is made of when it runs: its optimizer and its pipelines."""

from __future__ import annotations

import functools
from typing import Any

import keras
import tensorflow as tf

from esgd_tf import data
from esgd_tf.optimizers import EntropyAdam, EntropySGD, LocalEntropy

__all__ = ["Batches", "learning_rate", "make_optimizer"]


class Batches:
    """The pipelines of a run.

    Args:
        images: The data set.
        experiment: An `Experiment` of config.py.
        seed: Of the order and the augmentation.
        limit: Batches that evaluation and BatchNorm re-estimation may take at most, or None.
    """

    def __init__(
        self, images: data.ImageData, experiment: Any, seed: int, limit: int | None
    ) -> None:
        self._training = functools.partial(
            data.training_batches,
            images.train_images,
            images.train_labels,
            batch_size=experiment.batch_size,
            preprocess=data.preprocessor(experiment.preprocessing, images),
            augmentation=experiment.augmentation,
        )
        self._seed = seed
        self.steps_per_epoch = data.steps_per_epoch(len(images.train_labels), experiment.batch_size)
        self.test = data.evaluation_batches(
            images.test_images,
            images.test_labels,
            batch_size=experiment.batch_size,
            preprocess=self._training.keywords["preprocess"],
        )
        self.test_images = len(images.test_labels)
        reestimation_batches = experiment.bn_reestimate
        if limit is not None:
            self.test = self.test.take(limit)
            self.test_images = min(self.test_images, limit * experiment.batch_size)
            reestimation_batches = min(reestimation_batches, limit)
        # The same training batches at every evaluation, in another order than those of training.
        self.reestimation = (
            self._training(seed=seed + 1, epochs=1).take(reestimation_batches)
            if reestimation_batches
            else None
        )

    def training(self, done: int) -> tf.data.Dataset:
        """Return the training batches from number `done` on."""
        epoch, batch = divmod(done, self.steps_per_epoch)
        return self._training(seed=self._seed, first_epoch=epoch, first_batch=batch)


def make_optimizer(experiment: Any, steps_per_epoch: int, seed: int) -> LocalEntropy:
    """Return the optimizer of an experiment.

    The baselines are Keras' own optimizers inside a `LocalEntropy` without inner loop, which adds
    nothing but the L2 term in the gradient (Keras' own weight decay is another thing).

    Args:
        experiment: An `Experiment` of config.py.
        steps_per_epoch: Minibatches of one pass over the data.
        seed: Of the Langevin noise.
    """
    e = experiment
    rate = learning_rate(e, steps_per_epoch)
    if e.optimizer.startswith("entropy-"):
        inner = {
            "learning_rate": rate,
            "langevin_steps": e.langevin_steps,
            "langevin_learning_rate": e.langevin_lr,
            "gamma": e.gamma,
            "scoping": e.scoping,
            "noise": e.noise,
            "averaging": e.averaging,
            "momentum": e.momentum,
            "weight_decay": e.l2,
            "seed": seed,
            "statistics": e.langevin_steps > 0,
            "skip_nonfinite": True,
        }
        if e.optimizer == "entropy-adam":
            return EntropyAdam(**inner)
        return EntropySGD(
            **inner, outer_momentum=e.outer_momentum, outer_nesterov=e.outer_momentum > 0
        )
    outer = {
        "sgd": lambda: keras.optimizers.SGD(rate),
        "momentum": lambda: keras.optimizers.SGD(rate, momentum=e.momentum, nesterov=True),
        "adam": lambda: keras.optimizers.Adam(rate),
    }[e.optimizer]()
    return LocalEntropy(
        outer, langevin_steps=0, weight_decay=e.l2, skip_nonfinite=True, name=e.optimizer
    )


def learning_rate(experiment: Any, steps_per_epoch: int) -> Any:
    """Return the outer step size: a float, or a Keras schedule over outer updates.

    Args:
        experiment: An `Experiment` of config.py, whose drops are in effective epochs.
        steps_per_epoch: Minibatches of one pass over the data.
    """
    if not experiment.lr_drops:
        return float(experiment.lr)
    updates_per_epoch = steps_per_epoch / max(experiment.langevin_steps, 1)
    # Keras' schedule still has the old value AT a boundary, which counts from 0.
    boundaries = [max(round(d * updates_per_epoch) - 1, 0) for d in experiment.lr_drops]
    values = [experiment.lr * experiment.lr_factor**k for k in range(len(boundaries) + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
