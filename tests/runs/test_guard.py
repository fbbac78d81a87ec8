"""Signals that come before there is a step to wait for."""

import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.runs.guard import Guard, Interrupted
from tests.optimizers import helpers


class SignalInTrace(keras.layers.Layer):
    """Sends a signal while it is traced, in training."""

    def call(self, x, training=False):
        if training and tf.inside_function():
            os.kill(os.getpid(), signal.SIGTERM)
        return x


def model():
    network = keras.Sequential([keras.Input((4,)), SignalInTrace(), keras.layers.Dense(3)])
    network.compile("sgd", "mse")
    return network


def test_a_signal_ends_a_trace_at_once():
    network = model()
    before = network.get_weights()
    with Guard() as guard, pytest.raises(Interrupted) as stopped:
        helpers.fit(network, callbacks=[guard])
    assert stopped.value.signal_number == signal.SIGTERM
    assert int(network.optimizer.iterations.numpy()) == 0
    helpers.assert_equal(network.get_weights(), before)


def test_with_others_it_waits_for_the_step_that_all_end_at():
    network = model()
    with Guard(alone=False) as guard, pytest.raises(Interrupted):
        helpers.fit(network, callbacks=[guard])
    assert int(network.optimizer.iterations.numpy()) == 1
    assert all(np.isfinite(w).all() for w in network.get_weights())
