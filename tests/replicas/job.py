"""One worker of two, each of which trains a replica: `job.py FOLDER CASE...`.

It leaves what it computed in FOLDER/INDEX.npz, and the chief a file FOLDER/CASE.keras after the
first of two epochs.
"""

import sys
from pathlib import Path

import keras
import numpy as np

from esgd_tf.replicas import OwnMinibatches, ReplicatedSGD
from esgd_tf.training import make_strategy
from esgd_tf.training.strategies import Processes
from tests.optimizers.helpers import data
from tests.replicas import helpers


def train(name, strategy, path=None):
    """Train a case for two epochs and return what can be asked of it.

    Args:
        name: Of the case.
        strategy: One replica a device, or None.
        path: Where this process saves the model after the first epoch, if at all.
    """
    model = helpers.case(name, strategy=strategy)
    first = helpers.fit(model, validation_data=data()).history
    model.gather()
    if path is not None:
        model.save(path)
    second = helpers.fit(model, epochs=2, initial_epoch=1).history
    results = {"loss": np.array(first["loss"] + second["loss"])}
    results["val_loss"] = np.array(first["val_loss"])
    results |= named("center", model.center().get_weights())
    results |= named("replica", model.replica(1).get_weights())
    results |= named("members", helpers.weights(model))
    results["distances"], results["norms"] = model.distances(), model.norms()
    results["center_norm"] = np.array(model.center_norm)
    results["evaluate"] = np.array(model.evaluate(*data(), verbose=0))
    return results


def train_batch_norm(strategy):
    """Return the center with statistics averaged over the replicas, and with some of the data."""
    model = helpers.replicas(
        ReplicatedSGD(0.3), helpers.nesterov(), build=with_batch_norm, strategy=strategy
    )
    model.train_on_batch(*(part[:16] for part in data()))
    averaged = named("averaged", model.center().get_weights())
    # Of 16 examples a replica, other ones for each.
    model.fit(OwnMinibatches(lambda a: helpers.own_minibatches(a, steps=2)), verbose=0)
    return averaged | named("estimated", model.center().get_weights())


def with_batch_norm(a):
    norm = keras.layers.BatchNormalization()
    return keras.Sequential([keras.Input((4,)), norm, *helpers.network(a).layers])


def named(name, arrays):
    return {f"{name}/{i}": array for i, array in enumerate(arrays)}


def main(folder, *names):
    strategy = make_strategy("multi_worker")
    index = Processes(strategy).index
    everything = {}
    for name in names:
        if name == "batch_norm":
            results = train_batch_norm(strategy)
        else:
            path = Path(folder) / f"{name}.keras" if index == 0 else None
            results = train(name, strategy, path)
        everything |= {f"{name}:{key}": value for key, value in results.items()}
    np.savez(Path(folder) / f"{index}.npz", **everything)


if __name__ == "__main__":
    main(*sys.argv[1:])
