"""Random walks, against NumPy loops and what is known of Brownian motion and of balls."""

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import random_walk
from esgd_tf.landscape._vectors import student_factor
from tests.landscape.problems import (
    cross_entropy,
    examples,
    flat,
    mlp,
    mlp_loss,
    quadratic,
    symmetric,
)


def bowl(n, curvature=1.0):
    """Weights at the bottom of 1/2 k ‖w‖², [n] float64."""
    return [np.zeros(n)], lambda w: 0.5 * curvature * tf.reduce_sum(w[0] ** 2)


class TestFree:
    def test_is_the_walk_of_a_numpy_loop(self):
        a, b = symmetric([1.0, 2.0, 3.0, 0.5, 4.0]), np.arange(5.0)
        weights, loss = quadratic(a, b)
        weights = [np.full_like(w, 0.3) for w in weights]
        start = np.full(5, 0.3)
        f = lambda w: 0.5 * w @ a @ w + b @ w  # noqa: E731
        found = random_walk(
            weights, loss, threshold=8.0, step_size=0.1, max_steps=60, walks=4, seed=7
        )
        for k in range(4):
            rng = np.random.default_rng([7, k])
            w, losses, distances = start.copy(), [f(start)], [0.0]
            for _ in range(60):
                w = w + 0.1 * rng.standard_normal(5)
                losses.append(f(w))
                distances.append(np.linalg.norm(w - start))
                if losses[-1] > 8:
                    break
            steps = len(losses) - 1
            np.testing.assert_allclose(found.losses[k, : steps + 1], losses, rtol=1e-12)
            np.testing.assert_allclose(found.distances[k, : steps + 1], distances, atol=1e-12)
            assert np.isnan(found.losses[k, steps + 1 :]).all()
            assert np.isnan(found.distances[k, steps + 1 :]).all()
            assert found.escape_steps[k] == (steps if losses[-1] > 8 else -1)
            np.testing.assert_allclose(found.end[k], w, atol=1e-12)
        # Both ends of a walk have been seen.
        assert len(set(found.escape_steps < 0)) == 2
        assert np.isnan(found.mean_escape_step).all()
        np.testing.assert_array_equal(found.acceptance, 1)

    def test_escape_is_the_first_step_beyond_the_threshold(self):
        k, step, threshold = 3.0, 0.2, 1.5
        found = random_walk(*bowl(2, k), threshold=threshold, step_size=step, walks=20, seed=3)
        for walk in range(20):
            steps = np.random.default_rng([3, walk]).standard_normal((1000, 2))
            squares = (np.cumsum(steps, axis=0) ** 2).sum(axis=1)
            first = np.flatnonzero(step**2 * squares * k / 2 > threshold)[0] + 1
            assert found.escape_steps[walk] == first

    @pytest.mark.slow
    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_mean_escape_step_of_a_bowl(self, n):
        """Against an independent simulation, Wald's identity and Siegmund's correction.

        The escape from ‖w‖ <= R of Brownian motion takes R²/(n s²) steps. A walk in steps looks
        only once in each, and is then beyond R: on a line by 0.5826 s on average (Siegmund,
        "Corrected diffusion approximations", 1979), and E T = E ‖w(T)‖²/(n s²) exactly (Wald).
        """
        radius, step, walks = 1.0, 0.4, 300
        found = random_walk(
            *bowl(n, 2.0), threshold=radius**2, step_size=step, walks=walks, max_steps=200, seed=n
        )
        mean, error = found.mean_escape_step
        plain = found.escape_steps.std(ddof=1) / np.sqrt(walks)
        assert error == pytest.approx(student_factor(walks) * plain)

        rng, replicas = np.random.default_rng(1000 + n), 40_000
        w, alive, times = np.zeros((replicas, n)), np.ones(replicas, bool), np.zeros(replicas)
        while alive.any():
            w[alive] += step * rng.standard_normal((alive.sum(), n))
            times += alive
            alive &= (w**2).sum(axis=1) <= radius**2
        assert abs(mean - times.mean()) < 3.5 * np.hypot(error, times.std() / np.sqrt(replicas))

        at_escape = found.distances[np.arange(walks), found.escape_steps]
        assert (at_escape > radius).all()
        martingale = at_escape**2 / step**2 - n * found.escape_steps
        assert abs(martingale.mean()) < 3.5 * martingale.std(ddof=1) / np.sqrt(walks)

        assert mean > radius**2 / (n * step**2)
        if n == 1:
            assert abs(mean - (radius / step + 0.5826) ** 2) < 3.5 * error

    def test_nan_is_outside(self):
        def loss(w):
            return tf.where(w[0][0] > 0.25, tf.constant(np.nan, tf.float64), 0.0 * w[0][0])

        found = random_walk([np.zeros(1)], loss, threshold=1.0, step_size=0.1, walks=5)
        assert (found.escape_steps > 0).all()
        for k, step in enumerate(found.escape_steps):
            assert np.isnan(found.losses[k, step])
            assert found.distances[k, step] > 0.25
            assert (found.end[k] > 0.25).all()
            assert (found.losses[k, :step] == 0).all()

    def test_on_the_threshold_is_inside(self):
        found = random_walk([np.zeros(1)], lambda w: 0.0 * w[0][0], threshold=0.0, max_steps=5)
        assert found.escape_steps.tolist() == [-1]
        assert found.losses.shape == (1, 6)

    def test_steps_that_float32_would_lose_add_up(self):
        """A step of 1e-6 is less than half of what two float32 near 64 differ by (8e-6)."""
        loss = lambda w: 0.0 * tf.reduce_sum(w[0])  # noqa: E731
        found = random_walk(
            [np.full(3, 64, "float32")], loss, threshold=1.0, step_size=1e-6, max_steps=100
        )
        steps = 1e-6 * np.random.default_rng([0, 0]).standard_normal((100, 3))
        np.testing.assert_allclose(
            found.distances[0, 1:], np.linalg.norm(np.cumsum(steps, axis=0), axis=1), rtol=1e-9
        )


class TestRejecting:
    def test_is_the_walk_of_a_numpy_loop(self):
        found = random_walk(
            *bowl(3), threshold=0.5, step_size=0.4, kind="rejecting", max_steps=50, walks=2, seed=5
        )
        for k in range(2):
            rng = np.random.default_rng([5, k])
            w, losses, taken = np.zeros(3), [0.0], 0
            for _ in range(50):
                proposed = w + 0.4 * rng.standard_normal(3)
                if 0.5 * proposed @ proposed <= 0.5:
                    w, taken = proposed, taken + 1
                losses.append(0.5 * w @ w)
            np.testing.assert_allclose(found.losses[k], losses, atol=1e-12)
            np.testing.assert_allclose(found.distances[k], np.sqrt(2 * np.array(losses)))
            np.testing.assert_allclose(found.end[k], w, atol=1e-12)
            assert found.acceptance[k] == pytest.approx(taken / 50)
            assert 5 < taken < 45
        np.testing.assert_array_equal(found.escape_steps, -1)
        assert np.isnan(found.mean_escape_step[0])

    @pytest.mark.few(1)
    @pytest.mark.parametrize("n", [1, 3])
    def test_samples_a_ball_uniformly(self, n):
        """Then E ‖w‖² is n/(n + 2) R². The walks are independent: their spread is the error."""
        radius, walks = 2.0, 8
        found = random_walk(
            *bowl(n, 2.0), threshold=radius**2, step_size=1.6 / np.sqrt(n), kind="rejecting",
            max_steps=250, walks=walks, seed=11,
        )  # fmt: skip
        assert (found.losses <= radius**2).all()
        means = (found.distances[:, 20:] ** 2).mean(axis=1) / radius**2
        error = means.std(ddof=1) / np.sqrt(walks)
        assert error < 0.03
        assert abs(means.mean() - n / (n + 2)) < 3.5 * error

    def test_nan_is_outside(self):
        def loss(w):
            return tf.where(w[0][0] > 0.1, tf.constant(np.nan, tf.float64), 0.0 * w[0][0])

        found = random_walk(
            [np.zeros(1)], loss, threshold=1.0, step_size=0.1, kind="rejecting", max_steps=50
        )
        assert np.isfinite(found.losses).all()
        assert found.end[0, 0] <= 0.1
        assert 0 < found.acceptance[0] < 1


class TestNetwork:
    @pytest.mark.usefixtures("float64")
    def test_losses_are_those_of_the_network(self):
        model, (x, y) = mlp(), examples()
        found = random_walk(
            model, cross_entropy(), (x, y), threshold=50.0, step_size=0.1, max_steps=3,
            walks=2, batch_size=16,
        )  # fmt: skip
        start = flat([v.numpy() for v in model.trainable_variables])
        assert found.losses[0, 0] == pytest.approx(mlp_loss(start, x, y), rel=1e-12)
        for k in range(2):
            assert found.losses[k, 3] == pytest.approx(mlp_loss(found.end[k], x, y), rel=1e-12)

    @pytest.mark.usefixtures("float64")
    def test_some_variables_only(self):
        model, (x, y) = mlp(), examples()
        found = random_walk(
            model, cross_entropy(), (x, y), threshold=50.0, step_size=0.1, max_steps=3,
            variables=["last"],
        )  # fmt: skip
        parts = [v.numpy().ravel() for v in model.trainable_variables]
        assert found.end.shape == (1, 24)
        moved = np.concatenate([*parts[:2], found.end[0]])
        assert found.losses[0, 3] == pytest.approx(mlp_loss(moved, x, y), rel=1e-12)


class TestArguments:
    def test_a_walk_does_not_depend_on_their_number(self):
        options = {"threshold": 0.5, "step_size": 0.2, "max_steps": 40, "seed": 2}
        many = random_walk(*bowl(2), walks=3, **options)
        one = random_walk(*bowl(2), walks=1, **options)
        np.testing.assert_array_equal(one.losses[0], many.losses[0])
        assert many.losses[0, 1] != many.losses[1, 1]
        other = random_walk(*bowl(2), walks=1, **{**options, "seed": 3})
        assert other.losses[0, 1] != one.losses[0, 1]


class TestResult:
    def test_one_walk_has_no_spread(self):
        one = random_walk(*bowl(2), threshold=0.5, step_size=2.0)
        assert np.isnan(one.mean_escape_step[1])
        assert (one.threshold, one.step_size, one.kind) == (0.5, 2.0, "free")

    def test_plot(self):
        found = random_walk(*bowl(2), threshold=0.5, step_size=0.3, max_steps=50, walks=3)
        ax = found.plot()
        *walks, threshold = ax.get_lines()
        for line, losses in zip(walks, found.losses, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), losses)
        assert set(threshold.get_ydata()) == {0.5}
        assert ax.get_xlabel() == "step"
        assert found.plot(ax) is ax
