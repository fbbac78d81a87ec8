"""The largest box without much harm, against closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import worst_case_radius
from tests.landscape.problems import cross_entropy, examples, quadratic, rectified

W = np.linspace(-1, 2, 12)
SLOPE = np.linspace(-1.0, 0.7, 12)


def radius(matrix, slope=None, at=W, **options):
    """Return the radius of 1/2 w'A w + b'w around a point."""
    weights, loss = quadratic(matrix, slope)
    cut = weights[0].size
    start = [at[:cut].reshape(weights[0].shape), at[cut:]]
    return worst_case_radius(start, None, "loss", loss=loss, **options)


class TestClosedForms:
    @pytest.mark.parametrize("bound", [0.1, 1e-3])
    @pytest.mark.parametrize("box", ["additive", "relative"])
    def test_linear_loss(self, bound, box):
        """The corner of the box: α Σ b_i |g_i|."""
        sides = np.ones(12) if box == "additive" else np.abs(W) + 1e-2
        found = radius(np.zeros((12, 12)), SLOPE, bound=bound, box=box, epsilon=1e-2, rtol=0.01)
        true = bound / (np.abs(SLOPE) @ sides)
        assert found.radius <= true * (1 + 1e-6)
        assert found.beyond >= true * (1 - 1e-6)
        assert found.beyond <= 1.01 * found.radius
        assert found.increase == pytest.approx(found.radius * np.abs(SLOPE) @ sides, rel=1e-6)
        assert found.increase <= bound < found.increase_beyond
        assert found.bracketed
        assert (found.box, found.bound) == (box, bound)
        assert found.epsilon == (1e-2 if box == "relative" else 0.0)

    def test_at_a_minimum(self):
        """Without a slope the ascent begins at random points: ½ α² Σ λ_i at every corner."""
        curvature = np.linspace(0.5, 3.0, 12)
        found = radius(np.diag(curvature), at=np.zeros(12), bound=0.2, rtol=0.01)
        true = np.sqrt(2 * 0.2 / curvature.sum())
        assert found.radius == pytest.approx(true, rel=0.011)
        assert found.radius <= true * (1 + 1e-6)

    def test_from_far_above_and_never(self):
        steep = radius(np.zeros((12, 12)), 1e6 * SLOPE, rtol=0.05)
        assert steep.radius == pytest.approx(0.1 / (1e6 * np.abs(SLOPE).sum()), rel=0.06)
        flat = radius(np.zeros((12, 12)), 1e-6 * SLOPE, max_radius=3.0)
        assert (flat.radius, flat.beyond, flat.bracketed) == (3.0, np.inf, False)
        assert np.isnan(flat.increase_beyond)
        assert flat.increase == pytest.approx(3e-6 * np.abs(SLOPE).sum(), rel=1e-6)

    def test_a_loss_that_is_infinite_far_away_counts_as_a_rise(self):
        loss = lambda w: -tf.reduce_sum(tf.math.log(1 - w[0]))  # noqa: E731
        found = worst_case_radius([np.zeros(3)], None, "loss", loss=loss, bound=30.0, rtol=0.01)
        assert found.radius == pytest.approx(1 - np.exp(-10.0), rel=0.02)

    def test_no_box_is_small_enough(self):
        loss = lambda w: 1e20 * tf.reduce_sum(w[0])  # noqa: E731
        with pytest.raises(ValueError, match=r"No box keeps the increase of loss below 0\.1"):
            worst_case_radius([np.zeros(3)], None, "loss", loss=loss)


def test_accuracy_of_a_linear_classifier():
    """Of ten examples x_i = ±(a_i, b_i), the worst weights are w - α (1, 1) for all of them."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[-1].set_weights([np.array([[1.0], [2.0]], "float32")])
    a, sign = np.linspace(0.2, 2.0, 10), np.resize([1.0, -1.0], 10)
    x = (sign[:, None] * np.stack([a, np.ones(10)], 1)).astype("float32")
    y = (sign > 0).astype("float32")[:, None]
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    found = worst_case_radius(model, (x, y), bound=0.25, loss=loss, rtol=0.005)
    # With three of ten wrong it exceeds 0.25.
    true = np.sort((a + 2) / (a + 1))[2]
    assert found.radius == pytest.approx(true, rel=0.01)
    assert found.increase == pytest.approx(0.2)
    assert found.increase_beyond == pytest.approx(0.3)


def test_a_metric_of_nan_counts_as_a_rise():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[-1].set_weights([np.array([[0.5]], "float32")])
    loss = lambda y, p: p[:, 0]  # noqa: E731
    broken = lambda y, p: tf.where(p[:, 0] > 1, np.nan, 0.0)  # noqa: E731
    data = np.ones((4, 1), "float32"), np.zeros(4, "float32")
    found = worst_case_radius(model, data, broken, loss=loss, rtol=0.01)
    assert found.radius == pytest.approx(0.5, rel=0.02)
    assert (found.increase, found.increase_beyond) == (0.0, np.inf)


def test_the_weights_that_may_move():
    all_of_them = radius(np.zeros((12, 12)), SLOPE)
    some = radius(np.zeros((12, 12)), SLOPE, variables=[1])
    assert some.radius == pytest.approx(0.1 / np.abs(SLOPE[6:]).sum(), rel=0.03)
    assert some.radius > all_of_them.radius


def test_the_relative_box_does_not_see_a_factor_between_layers():
    """But for ε, which is small against the weights here; the additive box does."""
    from esgd_tf.landscape import rescaled

    model = rectified()
    data = examples(20)
    y = np.argmax(model.predict(data[0], verbose=0), axis=1)
    options = {"loss": cross_entropy(), "bound": 0.1, "epsilon": 1e-9, "max_steps": 5}
    one, two = (
        worst_case_radius(m, (data[0], y), box="relative", **options)
        for m in (model, rescaled(model, 8.0))
    )
    assert two.radius == pytest.approx(one.radius, rel=1e-6)
    other = worst_case_radius(rescaled(model, 8.0), (data[0], y), **options)
    assert other.radius < 0.7 * worst_case_radius(model, (data[0], y), **options).radius
