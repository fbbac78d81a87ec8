"""docs/figures/local_entropy.py: what it draws, against closed forms and the definition."""

import numpy as np
import pytest

from docs.figures import local_entropy as figure


@pytest.mark.parametrize("gamma", figure.GAMMAS)
def test_the_slope_of_the_local_entropy_is_gamma_times_x_minus_the_mean(gamma):
    x, h = np.linspace(-2.5, 2.5, 23), 1e-4
    ends = figure.negative_local_entropy(np.stack([x - h, x + h]), gamma)
    slope = (ends[1] - ends[0]) / (2 * h)
    np.testing.assert_allclose(
        slope, gamma * (x - figure.mean(x, gamma)), rtol=1e-4, atol=1e-4 * np.abs(slope).max()
    )


def test_a_parabola_has_the_closed_form():
    a, gamma, x = 3.0, 5.0, np.array([-1.0, 0.0, 0.7])
    found = figure.negative_local_entropy(x, gamma, lambda w: a / 2 * w**2)
    expected = 0.5 * np.log((a + gamma) / (2 * np.pi)) + 0.5 * a * gamma / (a + gamma) * x**2
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    mean = figure.mean(x, gamma, lambda w: a / 2 * w**2)
    np.testing.assert_allclose(mean, gamma * x / (a + gamma), rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_the_loss():
    x, h = np.linspace(-2.5, 2.5, 23), 1e-6
    slope = (figure.loss(x + h) - figure.loss(x - h)) / (2 * h)
    np.testing.assert_allclose(figure.gradient(x), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_what_the_page_says_of_the_minima():
    # f is lowest in the sharp well, and so is -F at the largest gamma; at the others, in the wide.
    x = np.linspace(-3, 3, 601)
    assert x[np.argmin(figure.loss(x))] < -1
    at = [x[np.argmin(figure.negative_local_entropy(x, gamma))] for gamma in figure.GAMMAS]
    assert at[0] < -1
    assert min(at[1:]) > 1


def test_an_outer_update_ends_at_the_mean_and_begins_the_next_there():
    # With the outer step size 1 the new anchor is the mean.
    found = figure.walk()
    assert found.weights.shape == found.means.shape == (2, 21)
    np.testing.assert_allclose(found.anchors[1:], found.means[:, -1], rtol=1e-12)
    np.testing.assert_array_equal(found.weights[:, 0], found.anchors[:-1])
    np.testing.assert_array_equal(found.means[:, 0], found.anchors[:-1])
