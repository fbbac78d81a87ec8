"""Keras' `fit`, `evaluate` and `predict` under MultiWorkerMirroredStrategy.

Keras 3 fails there (keras-team/keras issue 20585, open since 2024), in two places of its TensorFlow
trainer, checked on Keras 3.15:

* `_maybe_symbolic_build` averages a whole batch over the workers, which fails for a tuple, only to
  learn the shapes. One worker's own part of the batch has the same shapes.
* `reduce_per_replica` averages what a step returns over its axis 0, which the scalar values of
  metrics do not have. Values of shape [1] have one.

Both are mended on one model, without a change to Keras or to the model's class, so that what is
saved stays a plain Keras model. Where Keras needs it no longer, the mending does no harm: the test
`tests/distribute/test_multi_worker.py` says which versions fail without it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from esgd_tf import _keras

__all__ = ["enable_multi_worker", "is_multi_worker"]

Step = Callable[[Any], dict[str, Any]]


def is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    """Return whether a strategy joins several processes by collective operations.

    Args:
        strategy: tf.distribute.Strategy. The strategy in question.
    """
    multi = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, multi) and _keras.is_in_multi_worker_mode(strategy)


def enable_multi_worker(model: keras.Model) -> keras.Model:
    """Let a model be trained, evaluated and used under MultiWorkerMirroredStrategy.

    Build and compile the model, and build its optimizer, inside the strategy's scope first. The
    data sets should shard by `tf.data.experimental.AutoShardPolicy.DATA`, as those of
    `esgd_tf.data` do; batch sizes are global.

    Examples:
        >>> from esgd_tf import training
        >>> strategy = tf.distribute.MultiWorkerMirroredStrategy()
        >>> with strategy.scope():
        ...     model = make_model()
        ...     model.compile(optimizer=esgd_tf.EntropySGD(), loss="mse")
        ...     model.optimizer.build(model.trainable_variables)
        >>> training.enable_multi_worker(model).fit(dataset)

    Args:
        model: keras.Model. A compiled model, changed in place. Under another strategy nothing is
            changed.

    Returns:
        The model.
    """
    strategy = model.distribute_strategy
    if not is_multi_worker(strategy) or getattr(model, "_esgd_tf_multi_worker", False):
        return model

    def symbolic_build(iterator: Any = None, data_batch: Any = None) -> None:
        if iterator is not None:
            for _, _, batches in iterator:
                data_batch = keras.tree.map_structure(
                    lambda part: strategy.experimental_local_results(part)[0], next(batches)
                )
                break
        with strategy.scope():
            _keras.symbolic_build(model, data_batch)

    def with_an_axis(step: Step) -> Step:
        @functools.wraps(step)
        def wrapped(data: Any) -> dict[str, Any]:
            return keras.tree.map_structure(lambda value: tf.reshape(value, [1]), step(data))

        return wrapped

    _keras.replace_symbolic_build(model, symbolic_build)
    model.train_step = with_an_axis(model.train_step)
    model.test_step = with_an_axis(model.test_step)
    # Whatever was traced before is of the old steps.
    model.train_function = model.test_function = None
    model._esgd_tf_multi_worker = True
    return model
