"""The Fisher-Rao and Frobenius norms, against closed forms."""

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import (
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    fisher_rao_norm,
    frobenius_norm,
    rescaled,
)
from tests.landscape.problems import (
    SPECTRUM,
    MatrixOperator,
    cross_entropy,
    examples,
    held,
    not_finite,
    quadratic,
    rectified,
    symmetric,
)

A = symmetric(SPECTRUM)
W = np.linspace(-1, 2, 40)


class TestFisherRao:
    def test_of_a_quadratic(self):
        _, loss = quadratic(A)
        found = fisher_rao_norm(HessianOperator([W[:20].reshape(2, 10), W[20:]], loss))
        assert found.estimate == pytest.approx(W @ A @ W)
        assert (found.kind, found.standard_error, found.matvecs) == ("Fisher-Rao", 0.0, 1)

    @pytest.mark.parametrize("c", [1.0, 8.0])
    def test_identity_of_networks_with_rectifiers(self, c):
        """Three layers without biases: w'F w is 9 times the mean of (z · ∂l/∂z)²."""
        model, (x, y) = rescaled(rectified(bias=False), c), examples()
        x = x.astype("float32")  # as Keras takes arrays
        z = np.asarray(model(x), np.float64)
        p = tf.nn.softmax(z).numpy()
        slopes = p - np.eye(4)[y]
        expected = 9 * np.mean((z * slopes).sum(1) ** 2)
        found = fisher_rao_norm(FisherOperator(model, cross_entropy(dtype="float64"), (x, y)))
        assert found.estimate == pytest.approx(expected, rel=1e-6)
        # And of the Gauss-Newton matrix, with the curvature of the loss in place of the slopes.
        curves = np.einsum("ni,ni->n", p, z**2) - np.einsum("ni,ni->n", p, z) ** 2
        found = fisher_rao_norm(GaussNewtonOperator(model, cross_entropy(dtype="float64"), (x, y)))
        assert found.estimate == pytest.approx(9 * curves.mean(), rel=1e-6)

    def test_products_that_are_not_finite(self):
        operator = not_finite()
        operator.point = np.ones(40)
        with pytest.raises(ValueError, match="not finite"):
            fisher_rao_norm(operator)


class TestFrobenius:
    def test_exact_with_enough_probes(self):
        found = frobenius_norm(MatrixOperator(A), 40)
        assert found.estimate == pytest.approx(np.linalg.norm(A))
        assert (found.kind, found.standard_error, found.matvecs) == ("Frobenius", 0.0, 40)
        assert frobenius_norm(MatrixOperator(np.zeros((40, 40))), 5).standard_error == 0

    def test_two_standard_errors_hold_it(self):
        true = np.linalg.norm(A)
        found = [frobenius_norm(MatrixOperator(A), 20, seed=s) for s in range(200)]
        assert found[0].matvecs == 20
        values, errors = ([getattr(f, n) for f in found] for n in ("estimate", "standard_error"))
        assert 0.88 < held(values, errors, true) < 0.995
        assert np.mean(values) == pytest.approx(true, rel=0.02)
        assert np.mean(errors) < 0.2 * true

    def test_errors_fall_with_the_root_of_the_probes(self):
        few, many = (frobenius_norm(MatrixOperator(np.kron(np.eye(20), A)), k, seed=3)
                     for k in (10, 640))  # fmt: skip
        assert few.standard_error / many.standard_error == pytest.approx(8, rel=0.6)
