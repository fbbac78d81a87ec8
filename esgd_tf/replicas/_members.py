"""Makes the networks of a model of replicas, and compares them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from esgd_tf.replicas._building import copy_state, numbered

__all__ = [
    "copied_metrics",
    "devices_of",
    "make_members",
    "mean_statistics",
    "random_states",
    "root_mean_square",
    "square",
    "state_of",
    "statistics_of",
]


def make_members(
    build_model: Callable[..., keras.Model],
    devices: Sequence[str | None],
    *,
    same: bool,
) -> list[keras.Model]:
    """Make the replicas' networks.

    Args:
        build_model: callable. Returns a new, built model; see `Replicas`.
        devices: sequence of str. One device per replica; None leaves it to TensorFlow.
        same: bool. Whether all start with the weights of the first replica.

    Raises:
        ValueError: The models are not built, differ in their shapes, or are equal although they
            should not be.
    """
    build = numbered(build_model)
    members = []
    for a, device in enumerate(devices):
        with tf.device(device):
            members.append(build(a))
    for a, member in enumerate(members):
        if not isinstance(member, keras.Model) or not member.built:
            raise ValueError(
                "`build_model` must return a built Keras model: give it an Input, or call it "
                f"on data once; replica {a} is {member!r}."
            )
        if any(member is other for other in members[:a]):
            raise ValueError("`build_model` must return a new model at every call.")
    _refuse_shared_weights(members)
    shapes = [[tuple(v.shape) for v in member.variables] for member in members]
    for a, own in enumerate(shapes):
        if own != shapes[0]:
            raise ValueError(
                f"Replicas must be copies of one network, but replica {a} has other shapes "
                f"than replica 0: {_difference(own, shapes[0])}."
            )
    if same:
        for member in members[1:]:
            copy_state(members[0], member)
    else:
        _refuse_equal(members)
    return members


def _refuse_shared_weights(members: Sequence[keras.Model]) -> None:
    owners: dict[int, int] = {}
    for a, member in enumerate(members):
        for variable in member.variables:
            owner = owners.setdefault(id(variable), a)
            if owner != a:
                raise ValueError(
                    f"Replicas {owner} and {a} share the weight {variable.path!r}: `build_model` "
                    "must make all layers anew at every call."
                )


def _refuse_equal(members: Sequence[keras.Model]) -> None:
    starts = [[v.numpy() for v in member.trainable_variables] for member in members]
    for a, b in itertools.combinations(range(len(members)), 2):
        if all(np.array_equal(v, w) for v, w in zip(starts[a], starts[b], strict=True)):
            raise ValueError(
                f"`build_model` gave replicas {a} and {b} the same weights, though they are to "
                "start independently: let it take the replica's number, as an argument without a "
                "default, and seed its initializers by it, or ask for initialization='same'."
            )


def devices_of(
    strategy: tf.distribute.Strategy | None, replicas: int
) -> tuple[list[str | None], int]:
    """Return the devices of this process' replicas, and the number of the first of them."""
    if strategy is None:
        return [None] * replicas, 0
    if not isinstance(
        strategy, tf.distribute.MirroredStrategy | tf.distribute.MultiWorkerMirroredStrategy
    ):
        raise ValueError(
            "`strategy` must be a MirroredStrategy or MultiWorkerMirroredStrategy; got "
            f"{type(strategy).__name__}."
        )
    devices = list(strategy.extended.worker_devices)
    count = strategy.num_replicas_in_sync
    if count != replicas:
        what = "fewer devices than replicas" if count < replicas else "more devices than replicas"
        raise ValueError(
            f"There are {what}: the strategy has {count}, and {replicas} replicas were asked for. "
            "Give a strategy with one device a replica, or none to train them all on one device."
        )
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return devices, strategy.cluster_resolver.task_id * len(devices)
    return devices, 0


def copied_metrics(metrics: Any) -> Any:
    """Return new metrics of the same kinds, since two models must not share one."""
    return keras.tree.map_structure(
        lambda m: type(m).from_config(m.get_config()) if isinstance(m, keras.metrics.Metric) else m,
        metrics,
    )


def state_of(member: keras.Model) -> list[Any]:
    """Return the complete state of a replica: weights, random states, optimizer."""
    variables = [*member.variables, *member.optimizer.variables]
    return list({id(v): v for v in variables}.values())


def statistics_of(model: keras.Model) -> list[Any]:
    """Return the weights that are not trained: frozen ones, moving statistics, counts."""
    trainable = {id(v) for v in model.trainable_variables}
    return [v for v in model.weights if id(v) not in trainable]


def mean_statistics(of_replicas: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Return the means over replicas of the arrays that `statistics_of` returned for each.

    Arrays that are equal in all replicas, such as a frozen backbone, are kept bit for bit; integers
    come from the first replica.
    """
    means = []
    for values in zip(*of_replicas, strict=True):
        first = values[0]
        if not keras.backend.is_float_dtype(first.dtype.name) or all(
            np.array_equal(first, other) for other in values[1:]
        ):
            means.append(first)
        else:
            means.append(np.mean(np.asarray(values, np.float64), axis=0).astype(first.dtype))
    return means


def random_states(members: Sequence[keras.Model]) -> list[Any]:
    """Return the states of the random generators of all replicas' layers, as of dropout."""
    weights = {id(v) for member in members for v in member.weights}
    states = [v for member in members for v in member.variables if id(v) not in weights]
    return list({id(v): v for v in states}.values())


def square(weights: Sequence[np.ndarray], others: Sequence[np.ndarray] | None = None) -> float:
    """Return |w|^2, or |w - other|^2, over lists of arrays."""
    total = 0.0
    for i, w in enumerate(weights):
        difference = w.astype(np.float64) - (0.0 if others is None else others[i])
        total += float(np.sum(difference**2))
    return total


def root_mean_square(
    weights: Sequence[np.ndarray], others: Sequence[np.ndarray] | None = None
) -> float:
    """Return sqrt(|w|^2 / N), or sqrt(|w - other|^2 / N), N being the number of weights."""
    return float(np.sqrt(square(weights, others) / sum(w.size for w in weights)))


def _difference(shapes: Sequence[Any], others: Sequence[Any]) -> str:
    if len(shapes) != len(others):
        return f"{len(shapes)} variables against {len(others)}"
    k = next(i for i, (s, o) in enumerate(zip(shapes, others, strict=True)) if s != o)
    return f"variable {k} is {shapes[k]} against {others[k]}"
