"""Evaluating, saving and exporting at the right weights.

Between two outer updates the model's variables hold the Langevin weights x', which jump about the
anchor x. What the algorithm returns is the anchor: evaluate, save and export there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from esgd_tf.optimizers import LocalEntropy
from esgd_tf.optimizers._swap import PLACES, Where
from esgd_tf.training.batch_norm import BatchNormAveraging, BatchNormReestimation

__all__ = ["AnchorCallback", "evaluate_at", "local_entropy_optimizer"]


def local_entropy_optimizer(model: keras.Model) -> LocalEntropy | None:
    """Return the model's `LocalEntropy` optimizer, or None if it has another one.

    Keras' loss scaling for mixed_float16 wraps the optimizer; this looks through it.

    Args:
        model: A Keras model, compiled or not.
    """
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer if isinstance(optimizer, LocalEntropy) else None


@contextlib.contextmanager
def evaluate_at(model: keras.Model, where: Where = "anchor") -> Iterator[keras.Model]:
    """Let the model hold other weights for a while, and put its own back bit for bit.

    Inside the block the model's variables are the anchor x, the running mean of x', or x' itself.
    At the end, also by an exception, they are what they were, whatever was done to them inside.
    A model saved inside the block holds the weights asked for, and its optimizer's state can
    still be resumed exactly. If training goes on inside the block, its weights stay.

    Example:
        >>> with evaluate_at(model, "anchor"):
        ...     model.evaluate(x_test, y_test)

    Args:
        model: A compiled Keras model. With an optimizer that is not a `LocalEntropy`, and between
            two outer updates, the three places coincide.
        where: "anchor", "mean" or "langevin".

    Yields:
        The model.

    Raises:
        ValueError: `where` is none of the three.
    """
    if where not in PLACES:
        raise ValueError(f"`where` must be one of {', '.join(PLACES)}; got {where!r}.")
    optimizer = local_entropy_optimizer(model)
    if optimizer is None:
        with _restored(model, lambda: _iterations(model)):
            yield model
        return
    before = optimizer._swap.place(where)
    try:
        with _restored(model, lambda: _iterations(model)):
            yield model
    finally:
        optimizer._swap.place(before)


@contextlib.contextmanager
def _restored(model: keras.Model, clock: Any) -> Iterator[None]:
    """Put the trainable weights back at the end, unless the clock moved: training went on."""
    # A tensor shares the variable's buffer until one of the two changes: this costs no memory.
    started = clock()
    snapshot = [tf.identity(tf.convert_to_tensor(v.value)) for v in model.trainable_variables]
    try:
        yield
    finally:
        if clock() == started:
            for variable, value in zip(model.trainable_variables, snapshot, strict=True):
                variable.assign(value)


def _iterations(model: keras.Model) -> int:
    optimizer = getattr(model, "optimizer", None)
    return -1 if optimizer is None else int(keras.ops.convert_to_numpy(optimizer.iterations))


class AnchorCallback(keras.callbacks.Callback):
    """Validation, checkpoints and everything else at the end of an epoch happen at the anchor.

    After the last minibatch of an epoch the model is put to the anchor and stays there, through
    validation and all other callbacks, until training goes on. Put it FIRST in the list of
    callbacks.

    It also takes a model back to its Langevin weights when training begins: `fit` leaves it at the
    anchor. With this callback, two calls of `fit` are one long one, bit for bit; without it, the
    first gradient of the second call is taken at the anchor.

    With `batch_norm_data` the moving statistics of the model's BatchNormalization layers are also
    estimated anew there: those gathered during training belong to the Langevin weights. Without,
    those of several replicas are averaged.

    Example:
        >>> model.fit(
        ...     x, y, validation_data=(x_val, y_val),
        ...     callbacks=[AnchorCallback(), keras.callbacks.ModelCheckpoint("best.keras")],
        ... )

    Args:
        save_freq: Go to the anchor after every so many minibatches too, for a
            `ModelCheckpoint(save_freq=...)` of the same frequency.
        batch_norm_data: Batches of TRAINING data, (inputs, ...) tuples or inputs, iterable anew at
            each epoch; None leaves the moving statistics alone.

    Raises:
        ValueError: `save_freq` is not a positive integer.
    """

    def __init__(self, save_freq: int | None = None, batch_norm_data: Any = None) -> None:
        super().__init__()
        if save_freq is not None and (not isinstance(save_freq, int) or save_freq < 1):
            raise ValueError(f"`save_freq` must be a positive integer or None; got {save_freq!r}.")
        self.save_freq = save_freq
        self._batch_norm_data = batch_norm_data
        self._settle_batch_norm: Callable[[], Any] = lambda: None
        self._of: keras.Model | None = None  # whose statistics that settles
        self._batches = 0
        self._settled = False  # the end of this epoch has been dealt with

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Take the Langevin weights back, where the last `fit` or a file left the anchor."""
        self._go_to("langevin")

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Take the Langevin weights back: training goes on."""
        self._settled = False
        optimizer = local_entropy_optimizer(self.model)
        if optimizer is not None and optimizer._swap.may_be_elsewhere:
            optimizer._swap.place("langevin")

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Go to the anchor after the last minibatch of an epoch, where Keras knows which it is."""
        steps = (self.params or {}).get("steps")
        # With steps_per_execution > 1, `batch` is the last of several.
        self._batches, before = batch + 1, 0 if batch < self._batches else self._batches
        if steps is not None and batch + 1 >= steps:
            self._settle()
        elif self.save_freq and self._batches // self.save_freq > before // self.save_freq:
            self._go_to("anchor")

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Go to the anchor before validation and `evaluate`."""
        self._settle()

    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Go to the anchor before `predict`."""
        self._settle()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Go to the anchor, unless the last minibatch or validation has done so already."""
        self._settle()

    def _settle(self) -> None:
        self._go_to("anchor")
        if not self._settled:
            if self._of is not self.model:
                self._of = self.model
                if self._batch_norm_data is None:
                    self._settle_batch_norm = BatchNormAveraging(self.model)
                else:
                    estimate = BatchNormReestimation(self.model)
                    self._settle_batch_norm = functools.partial(estimate, self._batch_norm_data)
            self._settle_batch_norm()
        self._settled = True

    def _go_to(self, where: Where) -> None:
        optimizer = local_entropy_optimizer(self.model)
        if optimizer is not None:
            optimizer._swap.place(where)
