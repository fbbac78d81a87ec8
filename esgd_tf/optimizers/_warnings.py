"""Warnings, given once: x' is evaluated, saved or held at the anchor, or has no scope."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import keras

from esgd_tf._warn import warn
from esgd_tf.optimizers import _finding

if TYPE_CHECKING:
    from esgd_tf.optimizers._wrapping import WrappingOptimizer
    from esgd_tf.optimizers.local_entropy import LocalEntropy

__all__ = ["LocalEntropyWarnings", "Warnings", "watch_evaluation"]

_REMEDY = (
    "Put esgd_tf.AnchorCallback() into the `callbacks` of `fit`, or do it inside "
    "`with esgd_tf.evaluate_at(model):`."
)


class Warnings:
    """The warnings of one optimizer, each given once.

    Args:
        optimizer: WrappingOptimizer. The optimizer that the warnings are about.
    """

    def __init__(self, optimizer: WrappingOptimizer) -> None:
        self._optimizer = optimizer
        self._given: set[str] = set()
        #: Set while someone has asked for the weights that the model holds.
        self.place_is_chosen = False

    def evaluating(self) -> None:
        """Warn if the model is evaluated at the Langevin weights by mistake."""
        self._langevin("evaluated", _REMEDY)

    def saving(self) -> None:
        """Warn if the model is saved at the Langevin weights by mistake."""
        self._langevin(
            "saved",
            f"{_REMEDY} (Training can go on from such a file; to use the network, load it and go "
            "to the anchor by the same `with`. `AnchorCallback(save_freq=N)` goes to the anchor "
            "for a `ModelCheckpoint(save_freq=N)`.)",
        )

    def loaded(self) -> None:
        """Warn if a file that was saved at the Langevin weights has been loaded."""
        if not self.place_is_chosen and self._optimizer.held == "langevin":
            self._once(
                "loaded",
                f"This file was saved {self._when_loaded()}. Training goes on exactly; to use the "
                "network, go to the anchor: `with esgd_tf.evaluate_at(model):`, or load by "
                "esgd_tf.load_model.",
            )

    def ending(self) -> None:
        """Warn of what is only known at the end of `fit`."""

    def scoping(self) -> None:
        """Warn of what the scope does."""

    def _langevin(self, what: str, remedy: str) -> None:
        if not self.place_is_chosen and self._optimizer.held == "langevin":
            self._once(what, f"The model is {what} at {self._where()} {remedy}")

    def _where(self) -> str:
        kind = type(self._optimizer).__name__
        return (
            f"the weights that {kind} trains, not at the anchor: {self._optimizer._anchor_words}, "
            "which is what training returns."
        )

    def _when_loaded(self) -> str:
        kind = type(self._optimizer).__name__
        return f"at the weights that {kind} trains, which the model now holds"

    def _once(self, what: str, message: str) -> None:
        if what not in self._given:
            self._given.add(what)
            warn(message)


class LocalEntropyWarnings(Warnings):
    """The warnings of one `LocalEntropy`.

    Args:
        optimizer: LocalEntropy. The optimizer that the warnings are about.
    """

    _optimizer: LocalEntropy

    def ending(self) -> None:
        """Warn if a `fit` is over before the anchor has moved at all."""
        optimizer = self._optimizer
        if optimizer.langevin_steps == 0 or int(optimizer.outer_iterations.numpy()) > 0:
            return
        phase = int(optimizer.langevin_phase)
        if phase > 0:
            self._once(
                "unmoved",
                f"Training has ended after {phase} of the {optimizer.langevin_steps} steps of its "
                "first inner loop, so the model is where it started: train for longer, with "
                "smaller minibatches, or with fewer `langevin_steps`. (The next `fit` goes on from "
                "here.)",
            )

    def scoping(self) -> None:
        """Warn if x' is held at the anchor, or if the scope was never measured."""
        optimizer = self._optimizer
        if optimizer.langevin_steps == 0:
            return
        pull = optimizer._scope.pull()
        if pull >= 1.0:
            self._once(
                "held",
                f"The pull toward the anchor, gamma(t) times the inner step size, is {pull:.3g}: "
                "from 1 on it acts as 1, and every Langevin step starts at the anchor, as if there "
                "were no local entropy. Use a smaller `gamma`, less `scoping`, a `maximum`, or a "
                "smaller `langevin_learning_rate`.",
            )
        if optimizer._scope.is_unmeasured():
            self._once(
                "unmeasured",
                "AutoScope has not been able to measure gamma_0, which stays 0: it needs a loss "
                "above 0, and the last minibatch's was not. Give `gamma` a number or another "
                "schedule.",
            )

    def _where(self) -> str:
        optimizer = self._optimizer
        return (
            f"its Langevin weights x', after {int(optimizer.langevin_phase)} of "
            f"{optimizer.langevin_steps} steps of an inner loop: they jump about the anchor, which "
            "is what training returns."
        )

    def _when_loaded(self) -> str:
        return "in the middle of an inner loop, and the model now holds the Langevin weights x'"


def watch_evaluation() -> None:
    """Let `keras.Model.evaluate`, which asks nothing of the optimizer, warn of x'.

    Validation during `fit` without an `AnchorCallback` is the mistake that costs most: its numbers
    look like those of a bad optimizer. There is no other place in Keras from which to see it.
    """
    plain = keras.Model.evaluate
    if getattr(plain, "warns_of_langevin_weights", False):
        return

    @functools.wraps(plain)
    def evaluate(self: keras.Model, *arguments: Any, **options: Any) -> Any:
        given = options.get("callbacks")
        callbacks = getattr(given, "callbacks", given) or []
        callbacks = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
        if not any(getattr(callback, "goes_to_anchor", False) for callback in callbacks):
            for optimizer in _finding.of_model(self):
                optimizer._warnings.evaluating()
        return plain(self, *arguments, **options)

    evaluate.warns_of_langevin_weights = True  # type: ignore[attr-defined]
    keras.Model.evaluate = evaluate
