"""Makes the optimizer and the data pipelines of an `Experiment`."""

from __future__ import annotations

import functools
import math
from typing import Any

import keras
import tensorflow as tf

from esgd_tf import data
from esgd_tf.baselines import ASAM, EMA, LPFSGD, SAM, SWA, Lookahead, SWASchedule
from esgd_tf.optimizers import EntropyAdam, EntropySGD, LocalEntropy
from esgd_tf.replicas import (
    Coupling,
    ElasticAveraging,
    Focusing,
    OwnMinibatches,
    Parle,
    ReplicatedSGD,
)
from esgd_tf.runs.experiment import REPLICATED, Experiment
from esgd_tf.runs.settings import epoch_steps

__all__ = [
    "Batches",
    "learning_rate",
    "make_coupling",
    "make_optimizer",
    "replica_seed",
]


class Batches:
    """The pipelines of a run.

    Args:
        images: ImageData. The data set.
        experiment: Experiment. The numbers in force.
        seed: int >= 0. The seed of the order and the augmentation.
        limit: int >= 1. The largest number of batches for evaluation and for BatchNorm
            re-estimation; None for no limit.
    """

    def __init__(
        self, images: data.ImageData, experiment: Experiment, seed: int, limit: int | None
    ) -> None:
        self._images = images
        self._training = functools.partial(
            data.training_batches,
            images.train_images,
            images.train_labels,
            batch_size=experiment.batch_size,
            preprocess=data.preprocessor(experiment.preprocessing, images),
            augmentation=experiment.augmentation,
            corrupt=data.input_corruption(
                data.parse_corruptions(experiment.corrupt), seed=experiment.corruption_seed
            ),
        )
        self._seed = seed
        self._one_pass = data.steps_per_epoch(len(images.train_labels), experiment.batch_size)
        self._replicated = experiment.optimizer in REPLICATED
        self.steps_per_epoch = epoch_steps(
            self._one_pass, experiment.gradients_per_step, experiment.budget
        )
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
        # The same training batches at every evaluation, in another order than in training.
        self.reestimation = (
            self._training(seed=seed + 1, epochs=1).take(reestimation_batches)
            if reestimation_batches
            else None
        )

    def training(self, done: int) -> tf.data.Dataset | OwnMinibatches:
        """Return the training batches from number `done` on; each replica has its own order."""
        epoch, batch = divmod(done, self._one_pass)
        make = functools.partial(self._training, first_epoch=epoch, first_batch=batch)
        if not self._replicated:
            return make(seed=self._seed)
        return OwnMinibatches(lambda a: make(seed=replica_seed(self._seed, a)))

    def monitored(self, count: int) -> dict[str, tf.data.Dataset]:
        """Return so many training and test images in batches, as evaluation sees them.

        Args:
            count: int >= 0. The number of images of each set; 0 for none.
        """
        images, batch_size = self._images, self._training.keywords["batch_size"]
        if not count:
            return {}
        pairs = {
            "train": (images.train_images, images.train_labels),
            "test": (images.test_images, images.test_labels),
        }
        batches = {
            name: data.evaluation_batches(
                x[:count],
                y[:count],
                batch_size=batch_size,
                preprocess=self._training.keywords["preprocess"],
            )
            for name, (x, y) in pairs.items()
        }
        corrupt = self._training.keywords["corrupt"]
        if corrupt is not None:
            batches["train"] = data.corrupt_in_order(batches["train"], corrupt)
        return batches


def replica_seed(seed: int, a: int) -> int:
    """Return the seed of replica a; the first replica has the run's own seed.

    Args:
        seed: int >= 0. The seed of the run.
        a: int >= 0. The number of the replica.
    """
    return (seed + 1_000_003 * a) % 2**31


def make_coupling(experiment: Experiment, steps_per_epoch: int) -> Coupling:
    """Return the rule by which the replicas of an experiment are attracted to their center.

    Args:
        experiment: Experiment. The numbers in force; its optimizer trains replicas.
        steps_per_epoch: int >= 1. Training steps of an epoch.
    """
    e = experiment
    if e.optimizer == "rsgd":
        strength: float | Focusing | None = e.coupling_gamma
        if e.focusing != "none" or strength is None:
            strength = Focusing(
                steps=e.epochs * steps_per_epoch,
                gamma=e.coupling_gamma,
                growth=1.0 if e.focusing == "none" else e.focusing_growth,
                kind="exponential" if e.focusing == "none" else e.focusing,
                interval=steps_per_epoch,
                maximum=e.coupling_max,
            )
        return ReplicatedSGD(strength, every=e.coupling_every)
    if e.optimizer == "easgd":
        alpha = 0.9 / e.replicas if e.coupling_gamma is None else e.coupling_gamma
        return ElasticAveraging(alpha, every=e.coupling_every)
    return Parle(
        e.langevin_steps,
        gamma=e.gamma,
        rho=e.coupling_gamma,
        scoping=e.scoping,
        rho_max=10.0 if e.coupling_max is None else e.coupling_max,
        langevin_learning_rate=e.langevin_learning_rate,
        momentum=e.momentum,
        averaging=e.averaging,
        weight_decay=e.weight_decay,
        every=e.coupling_every,
        skip_nonfinite=True,
    )


def make_optimizer(
    experiment: Experiment, steps_per_epoch: int, seed: int
) -> keras.optimizers.Optimizer:
    """Return the optimizer of an experiment.

    The baselines are Keras' own optimizers inside a `LocalEntropy` without inner loop, which adds
    nothing but the L2 term in the gradient (Keras' own weight decay does something else).

    Args:
        experiment: Experiment. The numbers in force.
        steps_per_epoch: int >= 1. Minibatches of one pass over the data.
        seed: int >= 0. The seed of the Langevin noise.
    """
    e = experiment
    rate = learning_rate(e, steps_per_epoch)
    if e.optimizer == "parle":
        return keras.optimizers.SGD(rate)  # for the outer update; the coupling makes the inner loop
    if e.optimizer.startswith("entropy-") or e.langevin_steps:
        inner = {
            "learning_rate": rate,
            "langevin_steps": e.langevin_steps,
            "langevin_learning_rate": e.langevin_learning_rate,
            "gamma": e.gamma,
            "scoping": e.scoping,
            "noise": e.noise,
            "averaging": e.averaging,
            "momentum": e.momentum,
            "weight_decay": e.weight_decay,
            "seed": seed,
            "statistics": e.langevin_steps > 0,
            "skip_nonfinite": True,
        }
        if e.optimizer == "entropy-adam":
            return EntropyAdam(**inner)
        return EntropySGD(
            **inner, outer_momentum=e.outer_momentum, outer_nesterov=e.outer_momentum > 0
        )
    if e.optimizer in _RIVALS:
        return _rival(
            e, keras.optimizers.SGD(rate, e.momentum, nesterov=True), steps_per_epoch, seed
        )
    outer = {
        "sgd": lambda: keras.optimizers.SGD(rate),
        "rsgd": lambda: keras.optimizers.SGD(rate, momentum=e.momentum, nesterov=True),
        "easgd": lambda: keras.optimizers.SGD(rate, momentum=e.momentum, nesterov=True),
        "momentum": lambda: keras.optimizers.SGD(rate, momentum=e.momentum, nesterov=True),
        "adam": lambda: keras.optimizers.Adam(rate),
    }[e.optimizer]()
    return LocalEntropy(
        outer, langevin_steps=0, weight_decay=e.weight_decay, skip_nonfinite=True, name=e.optimizer
    )


_RIVALS = ("sam", "asam", "lpf-sgd", "swa", "ema", "lookahead")


def _rival(
    e: Experiment, inner: keras.optimizers.Optimizer, steps_per_epoch: int, seed: int
) -> keras.optimizers.Optimizer:
    """Return a rival of local entropy around an inner optimizer."""
    options: dict[str, Any] = {"weight_decay": e.weight_decay, "skip_nonfinite": True}
    if e.optimizer == "sam":
        return SAM(inner, e.rho, **options)
    if e.optimizer == "asam":
        return ASAM(inner, e.rho, e.asam_eta, **options)
    if e.optimizer == "lpf-sgd":
        return LPFSGD(
            inner,
            e.lpf_gamma,
            e.lpf_samples,
            e.lpf_growth,
            steps=e.epochs * steps_per_epoch,
            seed=seed,
            **options,
        )
    if e.optimizer == "swa":
        return SWA(inner, swa_start(e, steps_per_epoch), steps_per_epoch, **options)
    if e.optimizer == "ema":
        return EMA(inner, e.ema, **options)
    return Lookahead(inner, e.lookahead_steps, e.lookahead_alpha, **options)


def swa_start(experiment: Experiment, steps_per_epoch: int) -> int:
    """Return the step after which SWA averages for the first time, the last of an epoch.

    Args:
        experiment: Experiment. The numbers in force.
        steps_per_epoch: int >= 1. Steps of an effective epoch.
    """
    return max(round(experiment.swa_start * experiment.epochs), 1) * steps_per_epoch


def learning_rate(experiment: Experiment, steps_per_epoch: int) -> Any:
    """Return the outer step size: a float, or a Keras schedule over outer updates.

    Args:
        experiment: Experiment. The numbers in force, whose drops are in effective epochs.
        steps_per_epoch: int >= 1. Minibatches of one pass over the data.
    """
    if experiment.optimizer == "swa" and experiment.swa_lr is not None:
        start = swa_start(experiment, steps_per_epoch)
        return SWASchedule(experiment.learning_rate, experiment.swa_lr, start)
    updates_per_epoch = steps_per_epoch / max(experiment.langevin_steps, 1)
    if experiment.lr_schedule == "cosine":
        # Rounded up: the last update still has a step above 0.
        updates = max(math.ceil(experiment.epochs * updates_per_epoch), 1)
        return keras.optimizers.schedules.CosineDecay(experiment.learning_rate, updates)
    if not experiment.lr_drops:
        return float(experiment.learning_rate)
    # Keras' schedule still has the old value AT a boundary, which counts from 0.
    boundaries = [max(round(d * updates_per_epoch) - 1, 0) for d in experiment.lr_drops]
    values = [
        experiment.learning_rate * experiment.lr_factor**k for k in range(len(boundaries) + 1)
    ]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
