"""Small replicas that every test file trains, and what they are compared by."""

import functools

import keras
import numpy as np
import tensorflow as tf

from esgd_tf import EntropySGD, Replicas
from esgd_tf.replicas import ElasticAveraging, Focusing, OwnMinibatches, Parle, ReplicatedSGD
from tests.optimizers.helpers import BATCH, STEPS_PER_EPOCH, data

SEED = 5


def nesterov(learning_rate=0.2, **options):
    return keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True, **options)


def entropy(**options):
    options = {"langevin_steps": 3, "langevin_learning_rate": 0.1, "noise": 0.05} | options
    return EntropySGD(learning_rate=0.8, gamma=0.1, seed=3, **options)


# An epoch has five steps: at its end, each of these is amid an inner loop or between couplings,
# but for the walkers, who couple at every step.
CASES = {
    "rsgd": lambda: (ReplicatedSGD(0.3, every=2), nesterov()),
    "focused": lambda: (
        ReplicatedSGD(Focusing(steps=2 * STEPS_PER_EPOCH, growth=20.0, interval=5, maximum=1.2)),
        entropy(),
    ),
    "easgd": lambda: (ElasticAveraging(0.2, every=2), keras.optimizers.Adam(0.05)),
    "walkers": lambda: (
        ElasticAveraging(0.3, center="norm_mean"),
        keras.optimizers.SGD(0.2, momentum=0.5),
    ),
    "parle": lambda: (Parle(langevin_steps=2, scoping=0.2), keras.optimizers.SGD(0.5)),
}


def network(a):
    """Return a built network that starts in its own place for every a."""
    kernel = keras.initializers.GlorotUniform(a + 1)
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, "tanh", kernel_initializer=kernel)]
    )


def replicas(coupling, optimizer="sgd", count=2, build=network, **options):
    """Return compiled replicas; options are those of `Replicas` and of `compile`."""
    own = {name: options.pop(name) for name in ("initialization", "strategy") if name in options}
    model = Replicas(build, count, coupling, seed=SEED, **own)
    model.compile(optimizer, **{"loss": "mse"} | options)
    return model


def case(name, **options):
    coupling, optimizer = CASES[name]()
    return replicas(coupling, optimizer, **options)


def fit(model, epochs=1, **options):
    x, y = data()
    return model.fit(x, y, BATCH, epochs, verbose=0, **options)


def own_minibatches(a, steps=STEPS_PER_EPOCH, dtype="float32"):
    """Minibatches that differ from one replica to the next."""
    x, y = data(dtype)
    order = np.random.default_rng(a).permutation(len(x))
    return tf.data.Dataset.from_tensor_slices((x[order], y[order])).batch(BATCH).take(steps)


OWN = OwnMinibatches(own_minibatches)


def weights(model):
    """What the replicas' networks hold, which within an inner loop is not their anchors."""
    return [w for member in model.members for w in member.get_weights()]


def anchors(model):
    return [w for a in range(model.replicas) for w in model.replica(a).get_weights()]


def state(model):
    """All that training goes on from, but for the center."""
    held = [v for member in model.members for v in [*member.variables, *member.optimizer.variables]]
    held += [model.optimizer.iterations, model.optimizer._gamma_zero]
    # A seed that was not given is drawn anew, and is of no use where there is no noise.
    return [v.numpy() for v in held if v.name != "seed"]


class Record(keras.callbacks.Callback):
    """Keep something of the model after each batch."""

    def __init__(self, read=weights):
        super().__init__()
        self.read, self.kept = read, []

    def on_train_batch_end(self, batch, logs=None):
        self.kept.append(self.read(self.model))


@functools.cache
def uninterrupted(name):
    """Train a case for two epochs on one device, once for all tests.

    Returns:
        The replicas' weights after each step, the state and the center at the end, the history.
    """
    record = Record()
    model = case(name)
    history = fit(model, epochs=2, callbacks=[record]).history
    return record.kept, state(model), model.center().get_weights(), history
