"""The divergence of two coins against closed values, and its inverse against the definition."""

import math

import pytest

from esgd_tf.landscape import kl_bernoulli, kl_inverse


def test_divergence_of_two_coins():
    assert kl_bernoulli(0.3, 0.3) == 0
    assert kl_bernoulli(0.5, 0.25) == pytest.approx(0.5 * math.log(4 / 3))
    assert kl_bernoulli(0.0, 0.2) == pytest.approx(-math.log(0.8))
    assert kl_bernoulli(1.0, 0.2) == pytest.approx(-math.log(0.2))
    assert kl_bernoulli(0.0, 0.0) == kl_bernoulli(1.0, 1.0) == 0
    assert kl_bernoulli(0.1, 0.0) == kl_bernoulli(0.9, 1.0) == math.inf
    # Small probabilities keep their digits: q ln(q/p) - q + p.
    assert kl_bernoulli(1e-12, 2e-12) == pytest.approx(1e-12 * (1 - math.log(2)), rel=1e-3)


def test_inverse_has_closed_values():
    """1 - e^{-c} at q = 0; q itself without a budget; everything with an infinite one."""
    for budget in (1e-12, 1e-3, 0.7, 20.0):
        assert kl_inverse(0.0, budget) == pytest.approx(-math.expm1(-budget), rel=1e-12)
    assert kl_inverse(0.3, 0.0) == 0.3
    assert kl_inverse(0.3, math.inf) == kl_inverse(1.0, 0.1) == kl_inverse(0.0, 100.0) == 1.0
    assert kl_inverse(0.5, 0.5 * math.log(4 / 3)) == pytest.approx(0.75, abs=1e-12)


@pytest.mark.parametrize("q", [1e-6, 0.02, 0.5, 0.97])
@pytest.mark.parametrize("budget", [1e-8, 0.01, 0.4, 3.0])
def test_inverse_is_the_largest_that_the_budget_allows(q, budget):
    p = kl_inverse(q, budget)
    assert q < p <= 1
    if p < 1 - 1e-9:
        assert kl_bernoulli(q, p) == pytest.approx(budget, rel=1e-5)
    assert p <= q + math.sqrt(budget / 2) + 1e-12  # Pinsker


@pytest.mark.parametrize(
    ("function", "arguments", "word"),
    [
        (kl_bernoulli, (-0.1, 0.5), "`q` must be"),
        (kl_bernoulli, (0.5, 1.1), "`p` must be"),
        (kl_inverse, (math.nan, 0.5), "`q` must be"),
        (kl_inverse, (0.5, -1e-9), "`budget` must be"),
        (kl_inverse, (0.5, math.nan), "`budget` must be"),
    ],
)
def test_bad_arguments(function, arguments, word):
    with pytest.raises(ValueError, match=word):
        function(*arguments)
