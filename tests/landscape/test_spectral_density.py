"""Stochastic Lanczos quadrature, against matrices whose spectrum is chosen."""

import json

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import (
    FullSpectrum,
    HessianOperator,
    _memory,
    eigenpairs,
    full_spectrum,
    laplace_local_entropy,
    spectral_density,
    trace,
)
from esgd_tf.landscape.spectral_density import lanczos
from tests.landscape.problems import (
    SPECTRUM,
    MatrixOperator,
    hessian,
    not_finite,
    quadratic,
    symmetric,
)


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

    def test_bad_bandwidth(self):
        with pytest.raises(ValueError, match="`bandwidth` must be a finite number, above 0"):
            spectral_density(hessian(), 2, 2).density([0.0], 0.0)

    def test_result(self):
        found = spectral_density(hessian(), 2, 5)
        assert json.loads(json.dumps(found.to_dict()))["size"] == 40
        assert found.plot().get_yscale() == "log"

    def test_a_plot_ends_at_the_ends_and_says_how_it_was_smoothed(self):
        found = spectral_density(hessian(), num_probes=2, num_steps=25)
        ax = found.plot(bandwidth=0.25)
        curve, marks = ax.lines
        for line in (curve, marks):
            np.testing.assert_allclose([min(line.get_xdata()), max(line.get_xdata())], [-3, 8])
        assert "Gaussian of σ = 0.25" in ax.get_xlabel()
        assert "1 % of the range" in found.plot().get_xlabel()


class TestMemory:
    """A probe of 20 steps for 40 weights takes 8 x 40 x 26 = 8,320 bytes."""

    @pytest.mark.parametrize(("fit", "times"), [(1, 19), (3, 7), (8, 3), (11, 3), (18, 2), (19, 1)])
    def test_in_groups_it_is_the_same(self, monkeypatch, fit, times):
        h = MatrixOperator(symmetric(SPECTRUM))
        whole = spectral_density(h, 19, 20, seed=3)
        steps, real = [], MatrixOperator._columns
        monkeypatch.setattr(
            MatrixOperator, "_columns",
            lambda self, rows: (steps.append(len(rows)), real(self, rows))[1],
        )  # fmt: skip
        monkeypatch.setattr(_memory, "free_memory", lambda: fit * 8_320 / 0.8 + 1)
        found = spectral_density(h, 19, 20, seed=3)
        assert len(steps) == 20 * times
        # Whole blocks of products, where it can be.
        assert max(steps) == (fit if fit < 8 or fit == 19 else fit - fit % 8)
        assert found.matvecs == whole.matvecs == 19 * 20
        np.testing.assert_array_equal(found.probes, whole.probes)
        np.testing.assert_allclose(found.nodes, whole.nodes, atol=1e-9)
        np.testing.assert_allclose(found.weights, whole.weights, atol=1e-9)

    def test_blocks_of_products_give_the_same_bits(self, monkeypatch):
        """Through TensorFlow, in whole blocks."""
        h = hessian()
        whole = spectral_density(h, 16, 6, seed=3)
        monkeypatch.setattr(_memory, "free_memory", lambda: 8 * 40 * 12 * 8 / 0.8 + 1)
        np.testing.assert_array_equal(spectral_density(h, 16, 6, seed=3).nodes, whole.nodes)

    def test_says_what_would_fit(self, monkeypatch):
        monkeypatch.setattr(_memory, "free_memory", lambda: 8_320)
        with pytest.raises(MemoryError, match=r"20 Lanczos steps for 40 weights .*`num_steps=14`"):
            spectral_density(hessian(), 2, 20)
        spectral_density(hessian(), 2, 14)
        with pytest.raises(MemoryError, match=r"20 Lanczos steps .*`num_steps=14`"):
            laplace_local_entropy(
                hessian(), spectrum=FullSpectrum(np.ones(40), 0.0), num_steps=20
            )  # fmt: skip
        monkeypatch.setattr(_memory, "free_memory", lambda: 1_000)
        with pytest.raises(MemoryError, match="no number of steps fits; or select layers"):
            spectral_density(hessian(), 2, 20)

    def test_where_the_system_does_not_tell(self, monkeypatch):
        monkeypatch.setattr(_memory, "free_memory", lambda: None)
        assert spectral_density(hessian(), 3, 4).matvecs == 12

    def test_rows_that_fit(self, monkeypatch):
        monkeypatch.setattr(_memory, "free_memory", lambda: 1000)
        assert [_memory.rows_that_fit(100, r, 4) for r in (3, 8, 9, 50)] == [3, 8, 8, 8]
        assert _memory.rows_that_fit(300, 9, 4) == 2
        assert _memory.rows_that_fit(801, 9) == 0
        monkeypatch.undo()
        free = _memory.free_memory()
        assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(value):
    h = not_finite(value=value)
    for measure in (
        lambda: spectral_density(h, 2, 5),
        lambda: h.diagonal_estimate(10),
        lambda: laplace_local_entropy(h),
        lambda: laplace_local_entropy(
            MatrixOperator(np.eye(40), np.full(40, value)), num_steps=5, num_probes=2
        ),
    ):
        with pytest.raises(ValueError, match="not finite"):
            measure()


def test_of_a_network_whose_second_derivative_is_infinite():
    """|x|^1.5 at 0: loss and gradient are 0."""

    def loss(weights):
        return tf.reduce_sum(tf.abs(weights[0] - 1.0) ** 1.5)

    h = HessianOperator([np.ones(30)], loss)
    for measure in (trace, spectral_density, full_spectrum, eigenpairs):
        with pytest.raises(ValueError, match="no finite second derivative at these weights"):
            measure(h)
