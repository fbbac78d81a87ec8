"""The effective dimension, from all eigenvalues and from a density, against its definition."""

import numpy as np
import pytest

from esgd_tf.landscape import (
    effective_dimension,
    full_spectrum,
    laplace_local_entropy,
    spectral_density,
)
from tests.landscape.problems import MatrixOperator, held, symmetric

SPECTRUM = np.concatenate([np.linspace(0, 0.05, 50), [1.0, 2.0, 8.0]])
A = symmetric(SPECTRUM)
GAMMAS = np.array([1e-3, 0.1, 10.0])


def definition(gammas):
    return np.array([(SPECTRUM / (SPECTRUM + g)).sum() for g in gammas])


def test_from_all_eigenvalues_it_is_exact():
    found = effective_dimension(full_spectrum(MatrixOperator(A)), GAMMAS[::-1])
    np.testing.assert_array_equal(found.gammas, GAMMAS)
    np.testing.assert_allclose(found.values, definition(GAMMAS), rtol=1e-9)
    np.testing.assert_array_equal(found.standard_errors, np.zeros(3))
    assert (found.size, found.method) == (53, "eigenvalues")


def test_limits():
    found = effective_dimension(full_spectrum(MatrixOperator(A + np.eye(53))), [1e-9, 1e9])
    np.testing.assert_allclose(found.values, [53, 0], atol=1e-6)


def test_from_a_density_two_standard_errors_hold_it():
    true = definition(GAMMAS)
    found = [effective_dimension(MatrixOperator(A), GAMMAS, num_steps=53, seed=s)
             for s in range(60)]  # fmt: skip
    assert found[0].method == "quadrature"
    for k in range(3):
        values, errors = ([getattr(f, n)[k] for f in found] for n in ("values", "standard_errors"))
        assert held(values, errors, true[k]) > 0.8
        assert np.mean(values) == pytest.approx(true[k], rel=0.1)
        assert 0 < np.mean(errors) < 0.5 * true[k]


def test_a_density_that_is_there_is_not_estimated_again():
    operator = MatrixOperator(A)
    density = spectral_density(operator, 4, 10, seed=2)
    before = operator.matvecs
    one = effective_dimension(density, GAMMAS)
    assert operator.matvecs == before
    other = effective_dimension(operator, GAMMAS, num_probes=4, num_steps=10, seed=2)
    np.testing.assert_array_equal(one.values, other.values)


def test_where_the_matrix_is_not_positive_there_is_none():
    matrix = symmetric(np.array([-0.5, 1.0, 2.0]))
    for known in (full_spectrum(MatrixOperator(matrix)), spectral_density(MatrixOperator(matrix))):
        found = effective_dimension(known, [0.4, 0.6])
        assert np.isnan(found.values[0]) and np.isnan(found.standard_errors[0])
        true = -0.5 / 0.1 + 1 / 1.6 + 2 / 2.6
        assert abs(found.values[1] - true) <= 3 * found.standard_errors[1] + 1e-9
        assert [row.at for row in found.rows()] == [0.6]


def test_it_is_the_slope_of_local_entropy():
    """-2 β ∂F/∂ln γ = n - d(γ) where the gradient is 0, for Laplace's method."""
    operator, h, beta = MatrixOperator(A), 1e-4, 3.0
    spectrum = full_spectrum(operator)
    gammas = 0.3 * np.exp([-h, h])
    low, high = laplace_local_entropy(
        operator, [*gammas, 5.0], spectrum=spectrum, inverse_temperature=beta
    ).values[:2]
    slope = -2 * beta * (high - low) / (2 * h)
    assert slope == pytest.approx(53 - effective_dimension(spectrum, 0.3).values[0], rel=1e-5)


def test_what_it_is_not_taken_of():
    with pytest.raises(ValueError, match="`curvature` must be a curvature operator, or what"):
        effective_dimension(A)
