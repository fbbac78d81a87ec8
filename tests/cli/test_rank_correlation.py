"""Kendall's tau of a few runs, by hand and by SciPy, and its interval."""

import math

import numpy as np
import pytest
from scipy.stats import kendalltau

from esgd_tf.cli import rank_correlation
from esgd_tf.cli.rank_correlation import correlation


def test_by_hand():
    # Of the six pairs of runs five are ranked alike.
    assert correlation([1, 2, 3, 4], [1, 2, 4, 3]).tau == pytest.approx(4 / 6)
    assert correlation([1, 2, 3, 4], [9, 8, 7, 5]).tau == -1
    # One tie: 5 / sqrt(5 * 6).
    assert correlation([1, 1, 3, 4], [1, 2, 3, 4]).tau == pytest.approx(5 / math.sqrt(30))


def test_the_samples_are_taken_by_the_same_formula(monkeypatch):
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 5, 9), rng.normal(size=9)
    chosen = rng.integers(0, 9, (40, 9))
    found = rank_correlation._taus(*map(rank_correlation._signs, (x, y)), chosen)
    expected = [kendalltau(x[c], y[c]).statistic for c in chosen]
    np.testing.assert_allclose(found, expected)


def test_the_interval():
    same = correlation(range(8), range(8))
    assert same == pytest.approx((1.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    found = correlation(x, x + rng.normal(size=40))
    assert -1 < found.low < found.tau < found.high < 1
    # Few runs tell less.
    few = correlation(x[:6], (x + rng.normal(size=40))[:6])
    assert few.high - few.low > found.high - found.low
    assert correlation(x, -(x**2), seed=1) == correlation(x, -(x**2), seed=1)
    assert correlation(x, x**2, seed=1) != correlation(x, x**2, seed=2)


def test_it_covers_no_correlation():
    rng = np.random.default_rng(1)
    pairs = [correlation(rng.normal(size=12), rng.normal(size=12)) for _ in range(60)]
    held = np.mean([low <= 0 <= high for _, low, high in pairs])
    assert 0.8 < held <= 1


def test_a_constant_has_none():
    assert all(math.isnan(v) for v in correlation([1, 1, 1, 1], [1, 2, 3, 4]))


def test_many_runs_do_not_fill_the_memory(monkeypatch):
    whole = correlation(np.arange(20) % 7, np.arange(20))
    monkeypatch.setattr(rank_correlation, "_AT_ONCE", 3000)
    assert correlation(np.arange(20) % 7, np.arange(20)) == whole
