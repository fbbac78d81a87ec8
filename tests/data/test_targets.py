import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.data import DataError, soft_labels

K = 5


def test_soft_labels_by_hand():
    np.testing.assert_allclose(
        soft_labels(np.array([2, 0], np.int32), 3, 0.8, 0.1), [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]
    )
    made = soft_labels(tf.range(10), 10, 0.91, 0.01)
    assert made.dtype == tf.float32
    np.testing.assert_allclose(np.sum(made, axis=1), 1, atol=1e-6)


def test_soft_labels_that_are_one_hot():
    labels = np.array([3, 1, 0, 4])
    made = soft_labels(labels, K, 1, 0)
    np.testing.assert_array_equal(made, np.eye(K)[labels])
    logits = np.random.default_rng(0).normal(size=(4, K))
    soft = keras.losses.CategoricalCrossentropy(from_logits=True)(made, logits)
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    np.testing.assert_allclose(soft, hard, rtol=1e-6)


@pytest.mark.parametrize("pq", [(0.91, 0.01), (1.2, -0.05), (-0.2, 0.3), (math.nan, 0.0)])
def test_soft_labels_that_are_no_probabilities(pq):
    with pytest.raises(DataError, match=r"must sum to 1.* q = \(1 - p\)"):
        soft_labels(np.zeros(2, np.int32), K, *pq)


def test_why_soft_labels_must_sum_to_one():
    """TensorFlow's gradient is softmax - target, which is that of its value only for sum 1."""
    logits = tf.constant([[0.3, -0.2, 1.0]])
    for total, right in ((1.0, True), (2.0, False)):
        target = tf.constant([[0.5, 0.25, 0.25]]) * total
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = tf.nn.softmax_cross_entropy_with_logits(target, logits)
        truth = total * tf.nn.softmax(logits) - target
        assert np.allclose(tape.gradient(value, logits), truth, atol=1e-6) == right
