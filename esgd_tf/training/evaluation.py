"""Evaluating, saving and exporting at the right weights.

Between two outer updates the model's variables hold the Langevin weights x', which jump about the
anchor x. The anchor is the algorithm's result: evaluate, save and export there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from esgd_tf import _checks, _keras
from esgd_tf._warn import warn
from esgd_tf.optimizers import LocalEntropy, _finding
from esgd_tf.optimizers._swap import PLACES, Where, uninterrupted
from esgd_tf.optimizers._wrapping import WrappingOptimizer
from esgd_tf.training.batch_norm import BatchNormAveraging, BatchNormReestimation

__all__ = [
    "AnchorCallback",
    "evaluate_at",
    "local_entropy_optimizer",
    "local_entropy_optimizers",
]

# One Keras optimizer, several of them, or None; Keras has no types.
Optimizers: TypeAlias = Any


def local_entropy_optimizer(model: keras.Model) -> LocalEntropy | None:
    """Return the model's `LocalEntropy` optimizer, or None if it has none.

    Keras' loss scaling for mixed_float16 wraps the optimizer; this looks through it, so that
    `local_entropy_optimizer(model).scope` works whatever the precision.

    Args:
        model: keras.Model. A model, compiled or not. Of several such optimizers, the first is
            returned.
    """
    found = local_entropy_optimizers(model)
    return found[0] if found else None


def local_entropy_optimizers(model: keras.Model) -> list[LocalEntropy]:
    """Return all `LocalEntropy` optimizers of a model, `model.optimizer` first.

    Models with a `train_step` of their own keep several optimizers as attributes, or lists or dicts
    of them (GANs); `MultiOptimizer` and `LossScaleOptimizer` wrap them. All of these are found.

    Args:
        model: keras.Model. A model, compiled or not.
    """
    return [one for one in _finding.of_model(model) if isinstance(one, LocalEntropy)]


def _wanted(model: keras.Model, optimizer: Optimizers) -> list[WrappingOptimizer]:
    """Return the optimizers to look after: those given, or those of the model.

    Raises:
        ValueError: None of those given is a `LocalEntropy`.
    """
    return _finding.of_model(model) if optimizer is None else _in_these(optimizer)


def _in_these(optimizer: Any) -> list[WrappingOptimizer]:
    found = [
        inner
        for one in (optimizer if isinstance(optimizer, list | tuple) else [optimizer])
        for inner in _finding.of_optimizer(one)
    ]
    if not found:
        raise ValueError(
            f"`optimizer` must be a LocalEntropy, such as EntropySGD, or wrap one; got "
            f"{optimizer!r}."
        )
    return found


def _nothing_to_move(model: keras.Model) -> str:
    kind = type(getattr(model, "optimizer", None)).__name__
    has = "no optimizer" if kind == "NoneType" else f"the optimizer {kind}"
    return (
        f"The model {model.name!r} has {has} and no LocalEntropy among its attributes, so it stays "
        "at the weights it has. If it is trained by one that is kept elsewhere, name it by "
        "`optimizer=...`."
    )


@contextlib.contextmanager
def evaluate_at(
    model: keras.Model, where: Where = "anchor", *, optimizer: Optimizers = None
) -> Iterator[keras.Model]:
    """Let the model hold other weights for a while, and put its own back bit for bit.

    Inside the block the model's variables are the anchor x, the running mean of x', or x' itself.
    At the end, also by an exception, they are what they were, whatever was done to them inside.
    A model saved inside the block holds the weights asked for, and its optimizer's state can
    still be resumed exactly. If training goes on inside the block, its weights stay; a layer that
    is frozen inside stays at its anchor. Ctrl-C waits while the weights move, so that they are
    never some of both.

    Examples:
        >>> model.compile(optimizer=esgd_tf.EntropySGD(), loss=loss)
        >>> model.fit(x, y)
        >>> with esgd_tf.evaluate_at(model, "anchor"):
        ...     model.evaluate(x_test, y_test)

    Args:
        model: keras.Model. The model. Right after an outer update the three places coincide.
        where: "anchor", "mean" or "langevin". The weights that the model holds in the block.
            Defaults to "anchor".
        optimizer: LocalEntropy, or a list of them. The optimizers that train the model, where it
            does not have them itself. Defaults to None, which finds those of the model and its
            attributes. A model without one stays as it is, with a warning.

    Yields:
        The model.

    Raises:
        ValueError: `where` is none of the three, or `optimizer` is no `LocalEntropy`.
    """
    _checks.choice("where", where, PLACES)
    optimizers = _wanted(model, optimizer)
    if not optimizers and not _finding.has_replicas(model):
        warn(_nothing_to_move(model))
    clock = functools.partial(_clock, model, optimizers)
    started = clock()
    before = [one._swap.holds() for one in optimizers]
    chosen = [one._warnings.place_is_chosen for one in optimizers]
    try:
        for one in optimizers:
            one._swap.place(where)
            one._warnings.place_is_chosen = True
        with _restored(model, optimizers, clock):
            yield model
    finally:
        trained = clock() != started
        for one, was, had_chosen in zip(optimizers, before, chosen, strict=True):
            one._warnings.place_is_chosen = had_chosen
            # If the three coincided and the block has trained the model, its new weights stay.
            if was is not None or not trained:
                one._swap.place(was or "langevin")


@contextlib.contextmanager
def _restored(
    model: keras.Model, optimizers: Sequence[WrappingOptimizer], clock: Callable[[], Any]
) -> Iterator[None]:
    """Put the trainable weights back at the end, unless the clock moved: training went on."""
    started = clock()
    weights = [*model.trainable_variables]
    for optimizer in optimizers:  # which may train more than this model
        weights += _keras.trained_by(optimizer)
    weights = list({id(v): v for v in weights}.values())
    # A tensor shares the variable's buffer until one of the two changes: this costs no memory.
    snapshot = [tf.identity(tf.convert_to_tensor(v)) for v in weights]
    try:
        yield
    finally:
        if clock() == started:
            with uninterrupted():
                for variable, value in zip(weights, snapshot, strict=True):
                    variable.assign(value)


def _clock(model: keras.Model, optimizers: Sequence[WrappingOptimizer]) -> tuple[int, ...]:
    """Return what moves when the model is trained."""
    own = getattr(model, "optimizer", None)
    own = getattr(own, "inner_optimizer", own)
    counted = [*optimizers, *([] if own is None else [own])]
    # These count minibatches; `iterations` would leave out any that are still accumulated.
    return tuple(int(_keras.counter_of(one).numpy()) for one in counted)


class AnchorCallback(keras.callbacks.Callback):
    """Validation, checkpoints and everything else at the end of an epoch happen at the anchor.

    After the last minibatch of an epoch the model is put to the anchor and stays there, through
    validation and all other callbacks, until training goes on. Put it FIRST in the list of
    callbacks, so that those after it find the anchor where Keras does not know how many minibatches
    an epoch has; what training computes is the same in any order.

    It also takes a model back to its Langevin weights when training begins: `fit` leaves it at the
    anchor. With this callback, two calls of `fit` are one long one, bit for bit; without it, the
    first gradient of the second call is taken at the anchor. Given to `evaluate` or `predict` alone
    it goes to the anchor and back.

    With `batch_norm_data` the moving statistics of the model's BatchNormalization layers are also
    estimated anew there, because statistics gathered in training belong to the Langevin weights.
    Without it, the statistics of several replicas are averaged.

    Examples:
        >>> model.compile(optimizer=esgd_tf.EntropySGD(), loss=loss)
        >>> model.fit(
        ...     x, y, validation_data=(x_val, y_val),
        ...     callbacks=[esgd_tf.AnchorCallback(), keras.callbacks.ModelCheckpoint("best.keras")],
        ... )

    Args:
        save_freq: int >= 1. Go to the anchor after every so many minibatches too, counted over the
            epochs as Keras does, for a `ModelCheckpoint(save_freq=...)` of the same frequency.
            Defaults to None, which goes there at the end of epochs only.
        batch_norm_data: iterable of batches. TRAINING data, (inputs, ...) tuples or inputs, which
            can be iterated anew at each epoch. Defaults to None, which leaves the moving statistics
            alone.
        optimizer: LocalEntropy, or a list of them. The optimizers that train the model, where it
            does not have them itself. Defaults to None, which finds those of the model and its
            attributes.

    Raises:
        ValueError: `save_freq` is not a positive integer, or `optimizer` is no `LocalEntropy`.
    """

    #: Callbacks with this attribute keep Keras' `evaluate` from warning about the Langevin weights.
    goes_to_anchor = True

    def __init__(
        self,
        save_freq: int | None = None,
        batch_norm_data: Any = None,
        *,
        optimizer: Optimizers = None,
    ) -> None:
        super().__init__()
        if save_freq is not None:
            save_freq = _checks.integer("save_freq", save_freq, at_least=1)
        self.save_freq = save_freq
        self._batch_norm_data = batch_norm_data
        self._given = None if optimizer is None else _in_these(optimizer)
        self._update_statistics: Callable[[], Any] = lambda: None
        self._of: keras.Model | None = None  # whose statistics that updates
        self._batches, self._last_batch = 0, 0  # since the last of `save_freq`, as Keras counts
        self._is_ready = False  # at the anchor, with its statistics, for this epoch
        self._is_training = False
        self._to_undo = contextlib.ExitStack()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Take the Langevin weights back, where the last `fit` or a file left the anchor."""
        self._is_training, self._is_ready = True, False
        if not self._optimizers() and not _finding.has_replicas(self.model):
            warn(_nothing_to_move(self.model))
        self._go_to("langevin")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave the model at the anchor, also after no epoch at all."""
        self._is_training = False
        self._go_to("anchor")

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Take the Langevin weights back: training goes on."""
        self._is_ready = False
        for optimizer in self._optimizers():
            if optimizer._swap.may_be_elsewhere:
                optimizer._swap.place("langevin")

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Go to the anchor after the last minibatch of an epoch, where Keras knows which it is."""
        due = self._is_due(batch)
        steps = (self.params or {}).get("steps")
        if steps is not None and batch + 1 >= steps:
            self._get_ready()
        elif due:
            self._go_to("anchor")

    def _is_due(self, batch: int) -> bool:
        """Count as Keras' ModelCheckpoint does: over the epochs, several steps at a time."""
        if self.save_freq is None:
            return False
        new_epoch = batch <= self._last_batch
        self._batches += batch + 1 if new_epoch else batch - self._last_batch
        self._last_batch = batch
        if self._batches < self.save_freq:
            return False
        self._batches = 0
        return True

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Go to the anchor before validation and `evaluate`."""
        self._go_for_a_look()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Outside of training, put back what `evaluate` found."""
        self._to_undo.close()

    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Go to the anchor before `predict`."""
        self._go_for_a_look()

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        """Outside of training, put back what `predict` found."""
        self._to_undo.close()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Go to the anchor, unless the last minibatch or validation has done so already."""
        self._last_batch = 0
        self._get_ready()
        for optimizer in self._optimizers():
            optimizer._warnings.scoping()

    def _go_for_a_look(self) -> None:
        if self._is_training:
            self._get_ready()
            return
        self._to_undo.close()
        statistics = list(self.model.non_trainable_variables)
        values = [tf.identity(tf.convert_to_tensor(v)) for v in statistics]

        def put_back() -> None:
            for variable, value in zip(statistics, values, strict=True):
                variable.assign(value)

        self._to_undo.callback(put_back)
        self._to_undo.enter_context(evaluate_at(self.model, "anchor", optimizer=self._given))
        self._is_ready = False
        self._get_ready()

    def _get_ready(self) -> None:
        self._go_to("anchor")
        if not self._is_ready:
            if self._of is not self.model:
                self._of = self.model
                if self._batch_norm_data is None:
                    self._update_statistics = BatchNormAveraging(self.model)
                else:
                    estimate = BatchNormReestimation(self.model)
                    self._update_statistics = functools.partial(estimate, self._batch_norm_data)
            self._update_statistics()
        self._is_ready = True

    def _optimizers(self) -> list[WrappingOptimizer]:
        return _finding.of_model(self.model) if self._given is None else self._given

    def _go_to(self, where: Where) -> None:
        for optimizer in self._optimizers():
            optimizer._swap.place(where)
