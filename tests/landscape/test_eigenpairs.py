"""Some eigenpairs, against matrices whose spectrum is chosen."""

import json

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import HessianOperator, eigenpairs
from tests.landscape.problems import hessian


class TestEigenpairs:
    @pytest.mark.parametrize(
        ("which", "expected"),
        [
            ("LA", [8, 4, 2]),
            ("SA", [-0.1, -1, -3]),
            ("LM", [8, 4, -3]),
            ("BE", [8, 4, -3]),
        ],
    )
    def test_ends_of_a_known_spectrum(self, which, expected):
        h = hessian()
        pairs = eigenpairs(h, 3, which, tol=1e-10)
        np.testing.assert_allclose(pairs.eigenvalues, expected, atol=1e-8)
        assert pairs.converged.all()
        assert (pairs.residuals <= 1e-10 * pairs.scale).all()
        assert 3 <= pairs.scale <= 8 + 1e-9
        assert pairs.matvecs == h.matvecs
        v = pairs.eigenvectors
        np.testing.assert_allclose(v.T @ v, np.eye(3), atol=1e-8)
        found = np.linalg.norm(h @ v - v * pairs.eigenvalues, axis=0)
        np.testing.assert_allclose(pairs.residuals, found, atol=1e-12)

    @pytest.mark.parametrize(("which", "expected"), [("LA", [8, 4]), ("SA", [-1, -3])])
    def test_lobpcg(self, which, expected):
        pairs = eigenpairs(hessian(), 2, which, tol=1e-8, method="lobpcg")
        np.testing.assert_allclose(pairs.eigenvalues, expected, atol=1e-6)
        assert pairs.converged.all()

    @pytest.mark.parametrize("k", [1, 7, 8])
    def test_a_small_matrix_is_solved_whole(self, k):
        values = np.linspace(-1, 3, 8)
        pairs = eigenpairs(hessian(values), k)
        np.testing.assert_allclose(pairs.eigenvalues, values[::-1][:k], atol=1e-12)

    def test_float32(self):
        pairs = eigenpairs(hessian(dtype="float32"), 2, tol=1e-5)
        np.testing.assert_allclose(pairs.eigenvalues, [8, 4], rtol=1e-5)
        assert pairs.converged.all()

    def test_what_did_not_converge_is_marked(self):
        values = np.linspace(0, 1, 200)
        pairs = eigenpairs(hessian(values), 3, tol=1e-12, max_matvecs=25)
        assert len(pairs.eigenvalues) < 3 or not pairs.converged.all()
        pairs = eigenpairs(hessian(values), 3, tol=1e-12, max_matvecs=30, method="lobpcg")
        assert len(pairs.eigenvalues) == 3
        assert not pairs.converged.any()
        assert (pairs.residuals > 1e-12).all()

    def test_most_negative_pair_of_a_saddle(self):
        """f = (x² - 1)² + y²/2 - 3xy at 0: the Hessian is [[-4, -3], [-3, 1]]."""

        def loss(weights):
            x, y = weights
            return (x**2 - 1) ** 2 + y**2 / 2 - 3 * x * y

        pairs = eigenpairs(HessianOperator([np.zeros(()), np.zeros(())], loss), 1, "SA")
        expected = np.linalg.eigvalsh([[-4, -3], [-3, 1]])[0]
        assert pairs.eigenvalues[0] == pytest.approx(expected, abs=1e-12)
        v = pairs.eigenvectors[:, 0]
        np.testing.assert_allclose(np.array([[-4, -3], [-3, 1]]) @ v, expected * v, atol=1e-12)

    def test_seed(self):
        one = eigenpairs(hessian(), 2, seed=1)
        np.testing.assert_array_equal(
            eigenpairs(hessian(), 2, seed=1).eigenvectors, one.eigenvectors
        )
        assert np.abs(eigenpairs(hessian(), 2, seed=2).eigenvectors - one.eigenvectors).max() > 0

    @pytest.mark.parametrize("which", ["LA", "SA", "LM"])
    @pytest.mark.parametrize("curvatures", [[3.0], [3.0, 2.0, 1.0], [3.0, 2.0, -1.0], []])
    def test_seed_where_most_directions_are_flat(self, which, curvatures):
        """The space that Lanczos searches ends there, and ARPACK draws another vector."""
        curvatures = np.r_[curvatures, np.zeros(40)]
        c = tf.constant(curvatures)
        one, two = (
            eigenpairs(
                HessianOperator(
                    [np.zeros(len(curvatures))], lambda w: tf.reduce_sum(c * w[0] ** 2) / 2
                ),
                6, which, seed=1, max_matvecs=40,
            )
            for _ in range(2)
        )  # fmt: skip
        np.testing.assert_array_equal(one.eigenvalues, two.eigenvalues)
        np.testing.assert_array_equal(one.eigenvectors, two.eigenvectors)
        wanted = np.sort(curvatures)
        wanted = {"LA": wanted[:-7:-1], "SA": wanted[5::-1]}.get(which)
        if wanted is not None:
            np.testing.assert_allclose(one.eigenvalues, wanted, atol=1e-9)
        v = one.eigenvectors
        np.testing.assert_allclose(v.T @ v, np.eye(v.shape[1]), atol=1e-8)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"k": 0}, "`k` must be"),
            ({"k": 41}, "from 1 to 40"),
            ({"k": 1.5}, "`k` must be"),
            ({"which": "SM"}, "`which` must be"),
            ({"tol": -1.0}, "`tol`"),
            ({"tol": float("nan")}, "`tol`"),
            ({"method": "power"}, "`method`"),
            ({"method": "lobpcg", "which": "BE"}, "LA or SA only"),
        ],
    )
    def test_bad_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            eigenpairs(hessian(), **options)

    def test_result(self):
        pairs = eigenpairs(hessian(), 2)
        written = json.loads(json.dumps(pairs.to_dict()))
        assert set(written) == {
            "eigenvalues", "residuals", "converged", "scale", "which", "tol", "matvecs",
            "measured_at",
        }  # fmt: skip
        assert pairs.plot().get_ylabel()
        with pytest.raises(ValueError, match="read-only"):
            pairs.eigenvalues[0] = 1
        with pytest.raises(AttributeError):
            pairs.tol = 1
