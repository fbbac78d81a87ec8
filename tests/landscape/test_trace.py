"""Hutch++, against matrices whose spectrum is chosen."""

import numpy as np
import pytest

from esgd_tf.landscape import _memory, trace
from tests.landscape.problems import SPECTRUM, MatrixOperator, hessian, not_finite, symmetric


class TestTrace:
    def test_lies_within_its_error(self):
        values = np.concatenate([np.full(5, 50.0), np.linspace(-1, 1.2, 195)])
        h = hessian(values)
        found = [trace(h, 60, seed=s) for s in range(30)]
        z = [(t.estimate - values.sum()) / t.standard_error for t in found]
        assert np.abs(z).max() < 5
        assert 0.5 < np.std(z) < 2
        assert all(t.matvecs == 60 for t in found)
        # The five large ones are caught by the sketch: Hutchinson's error would be about 35.
        assert np.std([t.estimate for t in found]) < 5

    def test_low_rank_is_exact(self):
        values = np.concatenate([[3.0, 2.0, -1.0], np.zeros(37)])
        assert trace(hessian(values), 30).estimate == pytest.approx(4, abs=1e-10)

    def test_enough_products_are_exact(self):
        found = trace(hessian(), 120)
        assert found.estimate == pytest.approx(SPECTRUM.sum(), abs=1e-10)
        assert found.standard_error == 0


class TestFewProducts:
    @pytest.mark.parametrize("n", [5, 6, 30])
    @pytest.mark.parametrize("factor", [2.0, -1.0, 0.0])
    def test_multiple_of_one(self, n, factor):
        """Nothing is random about it, whatever the seed."""
        for seed in range(20):
            h = MatrixOperator(factor * np.eye(n))
            found = trace(h, 6, seed=seed)
            assert found.estimate == pytest.approx(factor * n, abs=1e-12)
            assert found.standard_error == pytest.approx(0, abs=1e-12)
            assert found.matvecs == h.matvecs <= 6

    def test_an_error_of_zero_is_no_chance(self):
        """Random signs agree by chance; what is drawn from a sphere does not."""
        h = MatrixOperator(np.diag([10.0, 0, 0, 0, 0, 0, 1]))
        for seed in range(200):
            found = trace(h, 6, seed=seed)
            assert found.standard_error > 0

    @pytest.mark.parametrize("num_matvecs", [40, 41, 99])
    def test_as_many_products_as_weights(self, num_matvecs):
        h = MatrixOperator(symmetric(SPECTRUM))
        found = trace(h, num_matvecs)
        assert found.estimate == pytest.approx(SPECTRUM.sum(), abs=1e-12)
        assert found.standard_error == 0
        assert found.matvecs == h.matvecs == 40

    @pytest.mark.parametrize("num_matvecs", [6, 7, 11, 12, 17, 29, 30, 31, 39])
    def test_takes_as_many_as_it_may(self, num_matvecs):
        h = MatrixOperator(symmetric(SPECTRUM))
        assert trace(h, num_matvecs).matvecs == h.matvecs == num_matvecs

    @pytest.mark.slow
    def test_has_no_bias(self):
        found = [trace(MatrixOperator(symmetric(SPECTRUM)), 14, seed=s) for s in range(1500)]
        values = np.array([f.estimate for f in found])
        assert abs(values.mean() - SPECTRUM.sum()) < 4 * values.std() / np.sqrt(len(values))

    @pytest.mark.parametrize("num_matvecs", [6, 30, 99])
    def test_not_finite(self, num_matvecs):
        for value in (np.nan, np.inf):
            with pytest.raises(ValueError, match="not finite"):
                trace(not_finite(value=value), num_matvecs)

    @pytest.mark.slow
    def test_memory(self, monkeypatch):
        monkeypatch.setattr(_memory, "free_memory", lambda: 15_000)
        with pytest.raises(MemoryError, match=r"10 columns for 40 weights .* `num_matvecs`"):
            trace(hessian(), 30)
        monkeypatch.setattr(_memory, "free_memory", lambda: 30_000)
        trace(hessian(), 30)
