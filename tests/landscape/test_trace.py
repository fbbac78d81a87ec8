"""Hutch++, against matrices whose spectrum is chosen."""

import numpy as np
import pytest

from esgd_tf.landscape import trace
from tests.landscape.problems import SPECTRUM, hessian


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

    def test_result(self):
        found = trace(hessian(), 30)
        assert set(found.to_dict()) == {
            "estimate", "standard_error", "matvecs", "measured_at"
        }  # fmt: skip
        found.plot()
        with pytest.raises(ValueError, match="at least 6"):
            trace(hessian(), 5)
