"""Langevin chains with an accept step, and what tells whether they have converged."""

import numpy as np
import pytest
from scipy.signal import lfilter
from tqdm import tqdm

from esgd_tf.landscape._chains import Chains, effective_sample_size, r_hat


def autoregressive(rho, chains=4, samples=20000, seed=0):
    """Return stationary series of unit variance in which neighbours correlate by rho."""
    noise = np.random.default_rng(seed).standard_normal((chains, samples))
    noise[:, 1:] *= np.sqrt(1 - rho**2)
    return lfilter([1], [1, -rho], noise, axis=1)


def gaussian(precision, mean):
    def target(points):
        slopes = (points - mean) @ precision
        return ((points - mean) * slopes).sum(1) / 2, slopes

    return target


class TestEffectiveSampleSize:
    @pytest.mark.parametrize("rho", [-0.3, 0.0, 0.5, 0.9, 0.98])
    def test_autoregressive(self, rho):
        series = autoregressive(rho)
        exact = series.size * (1 - rho) / (1 + rho)
        assert effective_sample_size(series) == pytest.approx(exact, rel=0.15)
        # Neither where the series is nor its scale matters.
        moved = effective_sample_size(1e3 + 1e-2 * series)
        assert moved == pytest.approx(effective_sample_size(series), rel=1e-6)

    def test_is_the_error_of_the_mean(self):
        """Over many series, means scatter as their ESS says."""
        many = autoregressive(0.8, 200, 1000, seed=1)
        sizes = [effective_sample_size(row[None]) for row in many]
        assert many.mean(axis=1).std() == pytest.approx(np.mean(sizes) ** -0.5, rel=0.2)

    def test_against_plain_sums(self):
        for seed in range(6):
            series = autoregressive(0.6, 3, 31, seed=seed)
            m, n = series.shape
            centred = series - series.mean(1, keepdims=True)
            covariance = [
                np.mean([c[: n - t] @ c[t:] / n for c in centred]) for t in range(n)
            ]  # fmt: skip
            total = covariance[0] + series.mean(1).var(ddof=1)
            rho = [1 - (covariance[0] - c) / total for c in covariance]
            rho[0], tau, smallest = 1.0, -1.0, np.inf
            for t in range(0, n - 1, 2):
                pair = rho[t] + rho[t + 1]
                if pair < 0:
                    break
                smallest = min(smallest, pair)
                tau += 2 * smallest
            assert effective_sample_size(series) == pytest.approx(m * n / tau, rel=1e-9)

    def test_chains_that_disagree_are_worth_little(self):
        series = autoregressive(0.0, 4, 1000)
        apart = series + 10 * np.arange(4)[:, None]
        assert effective_sample_size(series) > 3000
        assert effective_sample_size(apart) < 10

    def test_constants(self):
        assert effective_sample_size(np.full((4, 50), 1e8)) == 200
        assert effective_sample_size(np.zeros((4, 50))) == 200
        # Four chains that are stuck are no more than four samples.
        assert effective_sample_size(np.arange(4.0)[:, None] + np.zeros((4, 50))) <= 4

    def test_anticorrelated_within_reason(self):
        """±1 in turn has the mean 0 at once, and no series is worth infinitely many samples."""
        series = np.tile([1.0, -1.0], (2, 500)) + 1e-3 * autoregressive(0.0, 2, 1000)
        assert 2000 <= effective_sample_size(series) <= 2000 * np.log10(2000) * (1 + 1e-9)

    def test_short(self):
        assert effective_sample_size(np.eye(3)) == 9
        assert np.isfinite(effective_sample_size(autoregressive(0.5, 1, 40)))

    def test_nan_is_not_hidden(self):
        series = autoregressive(0.5, 2, 40)
        series[1, 3] = np.nan
        assert np.isnan(effective_sample_size(series))
        assert np.isnan(r_hat(series))


class TestRHat:
    @pytest.mark.parametrize("rho", [0.0, 0.9])
    def test_is_one_where_chains_agree(self, rho):
        assert r_hat(autoregressive(rho)) == pytest.approx(1, abs=3e-3)

    @pytest.mark.parametrize("samples", [100, 101])
    def test_formula(self, samples):
        """Of an odd number of samples the one in the middle is left out."""
        series = autoregressive(0.5, 3, samples) + np.array([[0.0], [0.5], [2.0]])
        halves = [half for chain in series for half in (chain[:50], chain[-50:])]
        within = np.mean([np.var(h, ddof=1) for h in halves])
        between = 50 * np.var([np.mean(h) for h in halves], ddof=1)
        expected = np.sqrt((49 / 50 * within + between / 50) / within)
        assert r_hat(series) == pytest.approx(expected, rel=1e-12)
        assert expected > 1.2

    def test_sees_a_trend_that_all_chains_share(self):
        series = autoregressive(0.0, 4, 2000)
        assert r_hat(series) < 1.01
        assert r_hat(series + np.linspace(0, 3, 2000)) > 1.2

    def test_constants(self):
        assert r_hat(np.full((4, 50), 3.7)) == 1
        assert r_hat(np.zeros((4, 50))) == 1
        assert r_hat(np.arange(4.0)[:, None] + np.zeros((4, 50))) == np.inf
        assert np.isnan(r_hat(np.ones((4, 3))))


class AlwaysTakes:
    """A generator with which every proposal is accepted."""

    def __init__(self, seed):
        self._rng = np.random.default_rng(seed)
        self.standard_normal = self._rng.standard_normal

    def random(self, size):
        return np.full(size, 1e-300)


class TestMala:
    PRECISION = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
    MEAN = np.array([1.0, -2.0, 0.5])

    def run(self, rng, step_size, steps=3000, chains=50):
        target = gaussian(self.PRECISION, self.MEAN)
        sampler = Chains(target, np.zeros((chains, 3)), step_size, rng)
        samples, rate = np.empty((chains, steps, 3)), 0.0
        for t in range(-300, steps):
            moved = sampler.step()
            if t >= 0:
                samples[:, t] = sampler.points
                rate += moved.mean() / steps
        assert sampler.step_size == step_size
        return samples, rate

    def within_errors(self, samples, expected_mean, expected_covariance):
        scores = []
        for i in range(3):
            for j in range(i, 3):
                series = (samples[..., i] - expected_mean[i]) * (samples[..., j] - expected_mean[j])
                error = series.std() / np.sqrt(effective_sample_size(series))
                scores.append((series.mean() - expected_covariance[i, j]) / error)
            series = samples[..., i]
            error = series.std() / np.sqrt(effective_sample_size(series))
            scores.append((series.mean() - expected_mean[i]) / error)
        return np.array(scores)

    def test_samples_the_gaussian_at_a_large_step(self):
        samples, rate = self.run(np.random.default_rng(0), 0.45)
        exact = np.linalg.inv(self.PRECISION)
        scores = self.within_errors(samples, self.MEAN, exact)
        assert np.abs(scores).max() < 4
        assert 0.4 < rate < 0.9
        # The errors are small enough to tell it from a chain without an accept step.
        biased = np.linalg.inv(self.PRECISION @ (np.eye(3) - 0.45 / 2 * self.PRECISION))
        assert np.abs(self.within_errors(samples, self.MEAN, biased)).max() > 20

    def test_without_the_accept_step_it_is_biased(self):
        """x - h P x + sqrt(2h) N(0, I) reestimates at the covariance P^{-1} (1 - h P / 2)^{-1}."""
        samples, rate = self.run(AlwaysTakes(0), 0.45)
        assert rate == pytest.approx(1)
        biased = np.linalg.inv(self.PRECISION @ (np.eye(3) - 0.45 / 2 * self.PRECISION))
        assert np.abs(self.within_errors(samples, self.MEAN, biased)).max() < 4
        exact = np.linalg.inv(self.PRECISION)
        assert np.abs(self.within_errors(samples, self.MEAN, exact)).max() > 20

    def test_not_only_gaussians(self):
        """U = x⁴/4. Started far out, a chain would stay there: its proposals overshoot."""
        rng = np.random.default_rng(1)
        sampler = Chains(lambda x: ((x**4).sum(1) / 4, x**3), np.zeros((200, 1)), 0.2, rng)
        for _ in range(100):
            sampler.step()
        squares = np.stack([(sampler.step(), sampler.points[:, 0] ** 2)[1] for _ in range(2000)], 1)
        # ⟨x²⟩ = 4^(1/2) Γ(3/4) / Γ(1/4)
        error = squares.std() / np.sqrt(effective_sample_size(squares))
        assert abs(squares.mean() - 0.675978240067285) < 4 * error
        assert error < 0.01

    def test_burn_in_finds_the_step_size(self):
        """From far too small and far too large, to the rate of acceptance that is best."""
        found = []
        for step_size in (1e-5, 50.0):
            rng = np.random.default_rng(2)
            start = rng.standard_normal((4, 20))
            sampler = Chains(gaussian(np.eye(20), 0), start, step_size, rng)
            bar = tqdm(disable=True)
            sampler.burn_in(800, bar)
            found.append(sampler.step_size)
            rate = np.mean([sampler.step() for _ in range(1000)])
            assert rate == pytest.approx(0.574, abs=0.1)
        assert found[0] == pytest.approx(found[1], rel=0.3)

    @pytest.mark.parametrize("outside", [np.inf, -np.inf, np.nan])
    @pytest.mark.parametrize("slope", [0.0, np.nan])
    def test_never_goes_where_the_energy_is_not_finite(self, outside, slope):
        """Half of a Gaussian is left, and it is sampled correctly."""

        def target(x):
            beyond = x[:, 0] < 0
            return np.where(beyond, outside, x[:, 0] ** 2 / 2), np.where(beyond, slope, x[:, 0])[
                :, None
            ]

        rng = np.random.default_rng(3)
        sampler = Chains(target, np.ones((100, 1)), 0.5, rng)
        points = np.stack([(sampler.step(), sampler.points[:, 0])[1] for _ in range(1500)], 1)
        assert points.min() > 0
        error = points.std() / np.sqrt(effective_sample_size(points))
        assert abs(points.mean() - np.sqrt(2 / np.pi)) < 4 * error
        assert error < 0.02

    def test_another_target_from_the_same_points(self):
        rng = np.random.default_rng(4)
        start = rng.standard_normal((5, 3))
        sampler = Chains(gaussian(np.eye(3), 0), start, 0.1, rng)
        np.testing.assert_array_equal(sampler.points, start)
        assert sampler.points is not start
        sampler.step()
        points = sampler.points
        sampler.retarget(gaussian(3 * np.eye(3), 1.0))
        np.testing.assert_array_equal(sampler.points, points)
        np.testing.assert_allclose(sampler.energies, 1.5 * ((points - 1) ** 2).sum(1))
        np.testing.assert_allclose(sampler.slopes, 3 * (points - 1))

    def test_energies_and_slopes_are_those_of_the_points(self):
        rng = np.random.default_rng(5)
        target = gaussian(self.PRECISION, self.MEAN)
        sampler = Chains(target, np.zeros((30, 3)), 0.8, rng)
        before = sampler.points
        moved = sampler.step()
        assert 0 < moved.sum() < 30
        np.testing.assert_array_equal((sampler.points != before).any(axis=1), moved)
        energies, slopes = target(sampler.points)
        np.testing.assert_allclose(sampler.energies, energies)
        np.testing.assert_allclose(sampler.slopes, slopes)
