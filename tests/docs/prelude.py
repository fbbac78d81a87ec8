"""The names that the documents' blocks of Python take for granted: a small network and its data."""

import keras
import numpy as np
import tensorflow as tf

import esgd_tf  # noqa: F401

keras.utils.set_random_seed(1)
_generator = np.random.default_rng(1)
x = _generator.normal(size=(96, 6)).astype("float32")
y = (x[:, 0] > 0).astype("int32")
x, y, x_val, y_val = x[:64], y[:64], x[64:], y[64:]
x_test, y_test = x_val, y_val
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build_model():
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(2)]
    )


def make_model():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])


# Made only where they are used: a strategy of several workers must come before any tensor.
def __getattr__(name):
    if name == "model":
        return build_model()
    if name == "dataset":
        options = tf.data.Options()
        policy = tf.data.experimental.AutoShardPolicy.DATA
        options.experimental_distribute.auto_shard_policy = policy
        pairs = tf.data.Dataset.from_tensor_slices((x, y[:, None].astype("float32")))
        return pairs.batch(8).with_options(options)
    raise AttributeError(name)
