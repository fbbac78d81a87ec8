"""One small training, for comparison between one device, several, and several processes.

As a script it is one worker of a job: `job.py FOLDER SCENARIO...` leaves what it computed in
FOLDER/INDEX.npz.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import esgd_tf
from esgd_tf.models.batch_norm import BatchNormalization
from esgd_tf.training import enable_multi_worker, make_strategy, skip_nonfinite
from esgd_tf.training.strategies import Processes
from tests.tracing import build_before_fit

BATCH, STEPS, LANGEVIN_STEPS = 8, 9, 3  # three outer updates
# Neither a multiple of the batch, nor of the number of devices.
TEST_EXAMPLES = 33


def images():
    generator = np.random.default_rng(5)
    x = generator.normal(size=(BATCH * STEPS + TEST_EXAMPLES, 6)).astype("float32")
    y = (x[:, 0] + 0.3 * generator.normal(size=len(x)) > 0).astype("int32")
    return x[: BATCH * STEPS], y[: BATCH * STEPS], x[BATCH * STEPS :], y[BATCH * STEPS :]


def batches(*arrays):
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH).with_options(options)


def network(batch_norm):
    keras.utils.set_random_seed(11)
    layers = [keras.Input((6,)), keras.layers.Dense(16, activation="tanh")]
    if batch_norm != "none":
        layers.append(BatchNormalization(synchronized=batch_norm == "synchronized"))
    return keras.Sequential([*layers, keras.layers.Dense(2)])


def train(strategy, batch_norm, poisoned=()):
    """Train, evaluate and predict; `poisoned` minibatches get a NaN in their last example."""
    x, y, x_test, y_test = images()
    for step in poisoned:
        x[(step + 1) * BATCH - 1] = np.nan
    with strategy.scope():
        model = network(batch_norm)
        model.compile(
            optimizer=esgd_tf.EntropySGD(
                learning_rate=0.8,
                langevin_steps=LANGEVIN_STEPS,
                langevin_learning_rate=0.05,
                gamma=0.1,
                noise=1e-2,
                weight_decay=1e-3,
                seed=3,
                statistics=True,
                skip_nonfinite=True,
            ),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=False,
        )
        model.optimizer.build(model.trainable_variables)
    enable_multi_worker(skip_nonfinite(model))
    build_before_fit(model, x, y)
    history = model.fit(
        batches(x, y),
        epochs=1,
        shuffle=False,
        verbose=0,
        validation_data=batches(x_test, y_test),
        callbacks=[esgd_tf.AnchorCallback()],
    ).history
    results = {f"history/{name}": np.array(values) for name, values in history.items()}
    results["evaluate"] = np.array(model.evaluate(batches(x_test, y_test), verbose=0))
    results["predict"] = model.predict(batches(x_test), verbose=0)
    results["called"] = keras.ops.convert_to_numpy(model(x_test, training=False))
    for i, variable in enumerate(model.weights):
        results[f"weight/{i}"] = variable.numpy()
    for i, variable in enumerate(model.optimizer.variables):
        # Sums over bits, which the smallest rounding changes, are no numbers to compare.
        if variable.name != "fingerprints":
            results[f"optimizer/{i}"] = variable.numpy()
    results["updates"] = model.optimizer.outer_iterations.numpy()
    results["skipped"] = np.array(model.optimizer.skipped)
    return results


SCENARIOS = {
    "plain": {"batch_norm": "none"},
    "synchronized": {"batch_norm": "synchronized"},
    "per_replica": {"batch_norm": "per_replica"},
    "poisoned": {"batch_norm": "per_replica", "poisoned": (0, 4, 5)},
}


def main(folder, *scenarios):
    strategy = make_strategy("multi_worker")
    processes = Processes(strategy)
    everything = {
        f"{scenario}:{name}": value
        for scenario in scenarios
        for name, value in train(strategy, **SCENARIOS[scenario]).items()
    }
    everything["gathered"] = np.array(processes.gather(10 + processes.index))
    everything["agree"] = np.array([processes.agree(7), processes.agree(processes.index)])
    np.savez(Path(folder) / f"{processes.index}.npz", **everything)


if __name__ == "__main__":
    main(*sys.argv[1:])
