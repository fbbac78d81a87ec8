"""Stochastic Lanczos quadrature, against matrices whose spectrum is chosen."""

import json

import numpy as np
import pytest

from esgd_tf.landscape import HessianOperator, spectral_density
from esgd_tf.landscape.spectral_density import lanczos
from tests.landscape.problems import SPECTRUM, hessian, quadratic, symmetric


class TestDensity:
    def test_all_steps_give_the_measure_of_each_probe(self):
        """After n steps the quadrature is exact for every power of H."""
        h = hessian()
        found = spectral_density(h, num_probes=200, num_steps=40, seed=1)
        assert found.weights.sum() == pytest.approx(1, abs=1e-12)
        for power in range(1, 5):
            value, error = found.mean(lambda t, p=power: t**p)
            assert abs(value - np.mean(SPECTRUM**power)) < 4 * error

    def test_first_moments_are_those_of_the_probes_exactly(self):
        h, n = hessian(), 40
        found = spectral_density(h, num_probes=3, num_steps=5, seed=2)
        rng = np.random.default_rng(2)
        a = symmetric(SPECTRUM)
        vectors = [v / np.linalg.norm(v) for v in (rng.standard_normal(n) for _ in range(3))]
        for power in range(10):  # 2m - 1 = 9
            exact = np.mean([v @ np.linalg.matrix_power(a, power) @ v for v in vectors])
            assert found.mean(lambda t, p=power: t**p)[0] == pytest.approx(exact, rel=1e-9)

    def test_no_ghosts(self):
        """Without reorthogonalisation, copies of the outlier appear within 60 steps."""
        values = np.concatenate([np.linspace(0, 1, 199), [1000.0]])
        found = spectral_density(hessian(values), num_probes=2, num_steps=80)
        per_probe = [np.sum(found.nodes[found.probes == p] > 500) for p in range(2)]
        assert per_probe == [1, 1]

    def test_breakdown_is_the_end_and_exact(self):
        values = np.repeat([-1.0, 0.5, 2.0], [4, 6, 10])
        found = spectral_density(hessian(values), num_probes=5, num_steps=15)
        assert len(found.nodes) == 15  # three each
        np.testing.assert_allclose(np.sort(found.nodes)[::5], [-1, 0.5, 2], atol=1e-10)
        assert found.matvecs == 15
        assert found.upper_residual == 0

    def test_one_that_breaks_down_leaves_the_others_going(self):
        """Probes of one run need not be equally long."""
        eigenvalues = np.linspace(1, 2, 30)
        h = hessian(eigenvalues)
        vectors = np.linalg.eigh(symmetric(eigenvalues))[1]
        start = np.stack([vectors[:, 3], vectors.sum(1) / np.sqrt(30), vectors[:, 7]])
        rules = lanczos(h, start, 10)
        assert [len(rule.nodes) for rule in rules] == [1, 10, 1]
        assert rules[0].nodes[0] == pytest.approx(eigenvalues[3], abs=1e-9)
        assert rules[2].nodes[0] == pytest.approx(eigenvalues[7], abs=1e-9)
        assert rules[1].weights.sum() == pytest.approx(1)

    def test_density_integrates_to_one_and_errors_are_of_the_right_size(self):
        found = spectral_density(hessian(), num_probes=20, num_steps=30, seed=0)
        grid = np.linspace(-6, 11, 4000)
        value, error = found.density(grid, 0.3)
        assert np.trapezoid(value, grid) == pytest.approx(1, abs=1e-6)
        bells = np.exp(-0.5 * ((grid[:, None] - SPECTRUM) / 0.3) ** 2) / (0.3 * np.sqrt(2 * np.pi))
        exact = bells.mean(axis=1)
        somewhere = exact > 1e-3
        z = (value - exact)[somewhere] / error[somewhere]
        assert np.abs(z).max() < 6
        assert np.isnan(spectral_density(hessian(), 1, 5).density(grid, 0.3)[1]).all()

    def test_ends(self):
        found = spectral_density(hessian(), num_probes=2, num_steps=25)
        assert found.largest == pytest.approx(8, abs=1e-6)
        assert found.smallest == pytest.approx(-3, abs=1e-6)
        assert found.upper_residual < 1e-3
        assert found.fraction_below(0.5)[0] == pytest.approx(34 / 40, abs=0.2)

    def test_of_zero(self):
        found = spectral_density(HessianOperator(*quadratic(np.zeros((8, 8)))), 2, 5)
        np.testing.assert_array_equal(found.nodes, [0, 0])
        assert np.isfinite(found.density(np.linspace(-1, 1, 5))[0]).all()
        found.plot()

    def test_seed(self):
        one = spectral_density(hessian(), 2, 5, seed=3)
        np.testing.assert_array_equal(spectral_density(hessian(), 2, 5, seed=3).nodes, one.nodes)
        assert np.abs(spectral_density(hessian(), 2, 5, seed=4).nodes - one.nodes).max() > 0

    @pytest.mark.parametrize("options", [{"num_probes": 0}, {"num_steps": 0}, {"num_steps": 1.5}])
    def test_bad_arguments(self, options):
        with pytest.raises(ValueError, match="must be a positive integer"):
            spectral_density(hessian(), **options)
        with pytest.raises(ValueError, match="`bandwidth` must be positive"):
            spectral_density(hessian(), 2, 2).density([0.0], 0.0)

    def test_result(self):
        found = spectral_density(hessian(), 2, 5)
        assert json.loads(json.dumps(found.to_dict()))["size"] == 40
        assert found.plot().get_yscale() == "log"
