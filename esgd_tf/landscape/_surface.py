"""The metrics of a network at any weights: what lines and planes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from esgd_tf.landscape import _place
from esgd_tf.landscape._layout import value_of
from esgd_tf.landscape._metrics import measured, named_metrics, splits_of

__all__ = ["Array", "Reestimate", "Surface", "Values", "between", "pick"]

Array = NDArray[np.float64]
Values = dict[str, dict[str, Array]]
# Sets the BatchNormalization statistics of a copy of the model that holds a point's weights.
Reestimate = Callable[[keras.Model], Any]


def between(a: ArrayLike, b: ArrayLike, t: ArrayLike) -> Array:
    """Return (1 - t) a + t b; exactly a at 0, b at 1, and anywhere where they are equal."""
    a, b, t = np.asarray(a, np.float64), np.asarray(b, np.float64), np.asarray(t)
    return np.where(t < 0.5, a + t * (b - a), b - (1 - t) * (b - a))


def pick(values: Values, split: str | None, metric: str | None) -> tuple[str, Array]:
    """Return the name and values of a metric on a split, by default the first of each."""
    for asked, names in ((split, values), (metric, next(iter(values.values())))):
        if asked is not None and asked not in names:
            raise ValueError(f"{asked!r} was not measured; there is {', '.join(names)}.")
    split = next(iter(values)) if split is None else split
    metric = next(iter(values[split])) if metric is None else metric
    return metric, values[split][metric]


class Surface:
    """The metrics of a model at any weights and BatchNormalization statistics."""

    def __init__(
        self,
        model: Any,
        loss: Any,
        data: Any,
        metric: Any,
        batch_size: int | None,
        reestimate: Reestimate | None,
        gradient: bool = False,
    ) -> None:
        if metric is None:
            metric = ["loss", "error"] if isinstance(model, keras.Model) else "loss"
        self.names = named_metrics(metric)
        self.takes_gradient = gradient
        # A gradient is that of the loss, whether or not its value is asked for.
        needed = {"loss": "loss", **self.names} if gradient else self.names
        self.splits = {
            split: measured(model, loss, part, needed, batch_size=batch_size)[0]
            for split, part in splits_of(data).items()
        }
        self.first = next(iter(self.splits.values()))
        self._reestimate, self._copy = reestimate, None
        if reestimate is not None:
            model = self.first.model if isinstance(model, keras.Model) else model
            self._copy = _copy_of(model)
            twins = {id(v): c for v, c in zip(model.variables, self._copy.variables, strict=True)}
            self._twins = tuple(
                [twins[id(v)] for v in variables]
                for variables in (model.trainable_variables, model.non_trainable_variables)
            )

    def empty(self, count: int) -> Values:
        return {split: {name: np.empty(count) for name in self.names} for split in self.splits}

    def parts(self, weights: Any) -> tuple[Array, list[Array], str]:
        """Return the trainable weights as a vector, the other variables as a list, and the place.

        The place is what `measured_at` says: of a network that is being trained by local entropy,
        its anchor is taken, and of replicas their center.

        Raises:
            ValueError: The weights do not fit, or are not finite.
        """
        objective, name = self.first, "weights"
        model, others = objective.model, [np.asarray(t) for t in objective.held[1]]
        if isinstance(weights, keras.Model):
            place = _place.find(weights)
            name = place.name
            # By their order: which are frozen there, and which seeds it has, does not matter.
            weights = [
                np.asarray(place.values.get(id(v), value_of(v))) for v in place.model.weights
            ]
            if model is not None and len(weights) != len(model.weights):
                raise ValueError(
                    f"The other network has {len(weights)} weights, and the model "
                    f"{len(model.weights)}: they must have the same architecture."
                )
        if (
            model is not None
            and isinstance(weights, list | tuple)
            and len(weights) == len(model.weights)
        ):
            for variable, weight in zip(model.weights, weights, strict=True):
                if np.shape(weight) != tuple(variable.shape):
                    raise ValueError(
                        f"{variable.path} has shape {tuple(variable.shape)}, and the weights given "
                        f"for it {np.shape(weight)}."
                    )
            given = {id(v): w for v, w in zip(model.weights, weights, strict=True)}
            weights = [given[id(v)] for v in model.trainable_variables]
            # Seeds of dropout are variables, but no weights: they stay those of the model.
            others = [
                np.asarray(given.get(id(v), own))
                for v, own in zip(model.non_trainable_variables, others, strict=True)
            ]
        flat = objective.flatten(objective.weights(weights))
        if not np.all(np.isfinite(flat)):
            raise ValueError("The weights of a network hold NaN or infinity: nothing to measure.")
        return flat, others, name

    def measure(
        self,
        point: Array,
        others: list[Array],
        values: Values,
        k: int,
        slopes: dict[str, Array] | None = None,
    ) -> None:
        """Write the metrics at a point, and the gradient's norms, to position k."""
        weights = self.first.unflatten(point)
        if self._reestimate is not None:
            for variables, settings in zip(self._twins, (weights, others), strict=True):
                for variable, setting in zip(variables, settings, strict=True):
                    variable.assign(setting)
            self._reestimate(self._copy)
            others = [np.asarray(v) for v in self._twins[1]]
        for split, objective in self.splits.items():
            fixed, like = objective.held
            cast = [tf.cast(o, t.dtype) for o, t in zip(others, like, strict=True)]
            objective.held = (fixed, cast)
            found = objective.evaluate(weights)
            for name in self.names:
                values[split][name][k] = found[name]
            if slopes:
                slopes[split][k] = np.linalg.norm(objective.value_and_gradient(weights)[1])


def _copy_of(model: Any) -> keras.Model:
    if not isinstance(model, keras.Model):
        raise ValueError("`reestimate` is for Keras models: a list of weights has no layers.")
    try:
        copy = keras.models.clone_model(model)
        if not copy.built:
            copy.build_from_config(model.get_build_config())
    except (NotImplementedError, TypeError) as reason:
        raise ValueError(
            "`reestimate` works on a copy of the model, and Keras cannot make one: give its class "
            "a `get_config` and `from_config`."
        ) from reason
    return copy
