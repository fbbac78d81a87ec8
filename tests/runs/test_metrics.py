"""The metrics against numbers that a reader can compute by hand."""

import math

import numpy as np
import pytest

from esgd_tf.runs.metrics import (
    classification_metrics,
    expected_calibration_error,
    log_softmax,
    wilson_interval,
)


def logits_of(*probabilities):
    return np.log(np.array(probabilities, np.float64))


def test_accuracy_and_likelihood_by_hand():
    logits = logits_of([0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2], [0.7, 0.2, 0.1])
    found = classification_metrics(logits + 3.0, np.array([0, 1, 2, 0]))
    assert found.images == 4
    assert found.accuracy == 0.75
    assert found.error == 0.25
    assert found.nll == pytest.approx(-math.log(0.5 * 0.8 * 0.2 * 0.7) / 4)
    low, high = found.accuracy_interval
    assert low < 0.75 < high


def test_uniform_outputs_cost_the_logarithm_of_the_classes_and_are_calibrated_at_chance():
    found = classification_metrics(np.zeros((20, 10), np.float32), np.arange(20) % 10)
    assert found.nll == pytest.approx(math.log(10))
    # All ties go to class 0, which is right for 2 of 20, as confident as it is right.
    assert found.accuracy == 0.1
    assert found.ece == pytest.approx(0.0, abs=1e-12)


def test_calibration_error_by_hand():
    # Bins of width 1/15: 0.62 and 0.65 share (9/15, 10/15], 0.9 lies in (13/15, 14/15].
    confidences = np.array([0.62, 0.65, 0.9, 0.9])
    correct = np.array([True, False, True, True])
    expected = 2 / 4 * abs(0.5 - 0.635) + 2 / 4 * abs(1.0 - 0.9)
    assert expected_calibration_error(confidences, correct) == pytest.approx(expected)
    # With one bin the two errors partly cancel.
    one = abs(0.75 - confidences.mean())
    assert expected_calibration_error(confidences, correct, bins=1) == pytest.approx(one)


def test_bins_are_closed_above_and_open_below():
    # 0.5 belongs to (0, 0.5], 0.5 + to (0.5, 1]: their gaps +0.5 and -0.5 do not cancel.
    confidences, correct = np.array([0.5, 0.5 + 1e-9]), np.array([True, False])
    assert expected_calibration_error(confidences, correct, bins=2) == pytest.approx(0.5)
    same = np.array([0.5, 0.4])
    assert expected_calibration_error(same, correct, bins=2) == pytest.approx(0.05)


def test_certain_and_right_is_perfect_and_certain_and_wrong_is_worst():
    logits = np.array([[1000.0, 0.0], [1000.0, 0.0]])
    right = classification_metrics(logits, np.array([0, 0]))
    assert (right.accuracy, right.nll, right.ece) == (1.0, 0.0, 0.0)
    wrong = classification_metrics(logits, np.array([1, 1]))
    assert (wrong.accuracy, wrong.nll, wrong.ece) == (0.0, 1000.0, 1.0)


def test_log_softmax_is_float64_and_survives_large_logits():
    log_p = log_softmax(np.array([[1e4, 1e4 + math.log(3)]], np.float64))
    np.testing.assert_allclose(np.exp(log_p), [[0.25, 0.75]], rtol=1e-9)
    assert log_softmax(np.zeros((1, 2), np.float32)).dtype == np.float64


def test_wilson_interval():
    # Agresti and Coull's closed form for no success in n: [0, z^2 / (n + z^2)].
    z = 1.959963984540054
    assert wilson_interval(0, 10) == pytest.approx((0.0, z**2 / (10 + z**2)))
    low, high = wilson_interval(10, 10)
    assert (low, high) == pytest.approx((10 / (10 + z**2), 1.0))
    low, high = wilson_interval(50, 100)
    assert low + high == pytest.approx(1.0)
    # For p = 1/2: half the width is z / (2 sqrt(n + z^2)).
    assert high - low == pytest.approx(z / math.sqrt(100 + z**2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        classification_metrics(np.array([[bad, 0.0]]), np.array([0]))


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="n at least 1"):
        classification_metrics(np.zeros((2, 3)), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="n at least 1"):
        classification_metrics(np.zeros((0, 3)), np.zeros(0, np.int64))
