"""Some eigenpairs, against matrices whose spectrum is chosen."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import HessianOperator, _memory, eigenpairs
from esgd_tf.landscape._complement import Found, search
from tests.landscape.problems import (
    MatrixOperator,
    cross_entropy,
    examples,
    hessian,
    not_finite,
    softmax_regression_hessian,
    symmetric,
)


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
    @pytest.mark.few(2)
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
        assert len(pairs.eigenvalues) == 3
        assert not pairs.converged.all()
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

    @pytest.mark.parametrize("which", ["LA", "SA", "LM"])
    @pytest.mark.parametrize("curvatures", [[3.0], [3.0, 2.0, 1.0], [3.0, 2.0, -1.0], []])
    @pytest.mark.few(2)
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


def ends(values, k, which):
    """Return the k eigenvalues asked for, descending; for LM their magnitudes, ascending."""
    ordered = np.sort(values)[::-1]
    if which == "LM":
        return np.sort(np.abs(values))[-k:]
    low = {"SA": k, "BE": k // 2}.get(which, 0)
    return np.r_[ordered[: k - low], ordered[len(ordered) - low :]]


SPECTRA = {
    "identity": np.ones(60),
    "zero": np.zeros(60),
    "rank one": np.r_[5.0, np.zeros(59)],
    "rank one, negative": np.r_[-5.0, np.zeros(59)],
    "negative definite": -np.linspace(1, 2, 60),
    "ten of each": np.repeat([4.0, 3, 2, 1, -1, -2], 10),
    "reflection": np.repeat([1.0, -1.0], 30),
    "a bulk": np.linspace(-1, 1, 60),
    "two of each": np.repeat(np.linspace(-1, 1, 30), 2),
    "pairs of outliers": np.r_[3.0, -3, 3, -3, np.zeros(56)],
}


class TestMultiplicities:
    @pytest.mark.parametrize("spectrum", SPECTRA)
    @pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
    def test_every_eigenvalue_as_often_as_it_is_there(self, spectrum, which):
        values = SPECTRA[spectrum]
        for k in (1, 2, 3, 8, 59):
            h = MatrixOperator(symmetric(values))
            pairs = eigenpairs(h, k, which, tol=1e-8, seed=k)
            found = pairs.eigenvalues
            assert (np.diff(found) <= 1e-12).all()
            found = np.sort(np.abs(found)) if which == "LM" else found
            np.testing.assert_allclose(found, ends(values, k, which), atol=1e-6)
            assert pairs.converged.all()
            v = pairs.eigenvectors
            np.testing.assert_allclose(v.T @ v, np.eye(k), atol=1e-8)
            assert pairs.matvecs == h.matvecs <= 400

    @pytest.mark.parametrize("which", ["LA", "SA"])
    @pytest.mark.parametrize("spectrum", ["identity", "zero", "ten of each", "two of each"])
    def test_lobpcg(self, spectrum, which):
        values = SPECTRA[spectrum]
        pairs = eigenpairs(MatrixOperator(symmetric(values)), 3, which, tol=1e-6, method="lobpcg")
        np.testing.assert_allclose(pairs.eigenvalues, ends(values, 3, which), atol=1e-4)

    @pytest.mark.usefixtures("float64")
    def test_softmax_regression_has_as_many_zeros_as_inputs(self):
        """The same number on all logits of an input changes nothing: 7 inputs, 7 zeros."""
        x, y = examples(features=7)
        model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(4, use_bias=False)])
        model.layers[0].kernel.assign(np.random.default_rng(0).normal(size=(7, 4)))
        h = HessianOperator(model, cross_entropy(), (x, y))
        expected = np.linalg.eigvalsh(softmax_regression_hessian(model.get_weights()[0], x, 4))
        np.testing.assert_allclose(expected[:7], 0, atol=1e-12)
        assert expected[7] > 1e-3
        # Through the matrix here, and once more without it.
        pairs = eigenpairs(h, 8, "SA", tol=1e-7)
        np.testing.assert_allclose(pairs.eigenvalues, expected[7::-1], atol=1e-6)
        pairs = eigenpairs(MatrixOperator(np.kron(h @ np.eye(28), np.eye(2))), 16, "SA", tol=1e-7)
        np.testing.assert_allclose(pairs.eigenvalues, np.repeat(expected[:8], 2)[::-1], atol=1e-6)
        assert pairs.converged.all()

    @pytest.mark.parametrize("which", ["LA", "LM", "BE"])
    def test_linear_regression_has_each_as_often_as_outputs(self, which):
        """In float32, where a vector that was found leaks into the others."""
        rng = np.random.default_rng(1)
        x = rng.normal(size=(50, 12)) * np.geomspace(3, 0.3, 12)
        y = rng.normal(size=(50, 5))
        model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(5, use_bias=False)])
        h = HessianOperator(model, "mse", (x.astype("float32"), y.astype("float32")))
        # The mean over outputs divides by 5, and the square doubles.
        expected = np.repeat(np.linalg.eigvalsh(2 / 5 * x.T @ x / 50), 5)
        pairs = eigenpairs(h, 12, which, tol=1e-4)
        scale = expected.max()
        np.testing.assert_allclose(
            pairs.eigenvalues, np.sort(ends(expected, 12, which))[::-1], atol=1e-4 * scale
        )
        assert pairs.converged.all()

    def test_check_takes_few_products_where_nothing_is_missing(self):
        values = np.r_[np.linspace(-0.1, 0.1, 290), np.arange(1.0, 11.0)]
        for k in (1, 5, 9):
            h = MatrixOperator(symmetric(values))
            pairs = eigenpairs(h, k, tol=1e-3)
            np.testing.assert_allclose(pairs.eigenvalues, np.arange(10, 10 - k, -1), rtol=1e-3)
            assert pairs.converged.all()
            assert pairs.matvecs <= 55

    def test_what_is_missing_is_seen(self):
        """The search alone, given two of three that are equal."""
        values = np.r_[3.0, 3.0, 3.0, np.linspace(-1, 1, 57)]
        matrix = symmetric(values)
        vectors = np.linalg.eigh(matrix)[1]
        options = {"accuracy": 1e-9, "steps": 60, "rng": np.random.default_rng(0)}
        found = search(matrix, vectors[:, -2:], (-np.inf, 2.9), **options)
        assert found.vectors.shape == (60, 1)
        assert abs(found.vectors[:, 0] @ vectors[:, -3]) == pytest.approx(1, abs=1e-9)
        found = search(matrix, vectors[:, -3:], (-np.inf, 2.9), **options)
        assert found.vectors is None
        assert found.highest <= 2.9
        assert 5 <= found.products < 20
        # In time it is on its way, and says where to.
        found = search(matrix, vectors[:, -2:], (-np.inf, 2.9), **options | {"steps": 3})
        assert found.vectors is None
        if found.start is not None:
            assert np.abs(found.start @ vectors[:, -3]) > 0.5


class TestLimits:
    @pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
    @pytest.mark.parametrize("max_matvecs", [1, 10, 60, 100, 200])
    def test_what_was_not_found_is_not_a_number_and_not_converged(self, which, max_matvecs):
        """Always k entries, of which none is a lie: those that converged are the outermost."""
        values = np.r_[np.linspace(-1, 1, 300), 3.0, -3.0, 2.0, -2.5]
        h = MatrixOperator(symmetric(values))
        pairs = eigenpairs(h, 6, which, tol=1e-6, max_matvecs=max_matvecs)
        assert h.matvecs <= max(max_matvecs, 40) + 20
        assert pairs.eigenvalues.shape == pairs.residuals.shape == pairs.converged.shape == (6,)
        assert pairs.eigenvectors.shape == (304, 6)
        missing = np.isnan(pairs.eigenvalues)
        np.testing.assert_array_equal(missing, np.isnan(pairs.residuals))
        np.testing.assert_array_equal(missing, np.isnan(pairs.eigenvectors).any(axis=0))
        assert not pairs.converged[missing].any()
        assert np.isfinite(pairs.scale)
        found = pairs.eigenvalues[pairs.converged]
        if which == "LM":
            np.testing.assert_allclose(
                np.sort(np.abs(found)), ends(values, max(len(found), 1), which)[: len(found)],
                atol=1e-5,
            )  # fmt: skip
        elif which != "BE" and len(found):
            np.testing.assert_allclose(found, ends(values, len(found), which), atol=1e-5)
        json.dumps(pairs.to_dict())
        pairs.plot()

    def test_nothing_found_is_not_all_converged(self):
        values = np.linspace(0, 1, 400)
        pairs = eigenpairs(MatrixOperator(symmetric(values)), 4, tol=1e-12, max_matvecs=20)
        assert not pairs.converged.any()
        assert len(pairs.converged) == 4

    def test_order_of_what_is_missing(self):
        """On the inner side, so that the outermost keeps its place."""
        values = np.r_[np.linspace(-1, 1, 300), 5.0, -5.0]
        for which, place in (("LA", 0), ("SA", -1)):
            h = MatrixOperator(symmetric(values))
            pairs = eigenpairs(h, 4, which, tol=1e-9, max_matvecs=60)
            assert np.isnan(pairs.eigenvalues).any()
            assert abs(pairs.eigenvalues[place]) == pytest.approx(5, abs=1e-6)
            assert pairs.converged[place]

    def test_fewer_than_wanted_of_both_ends_are_not_sure(self):
        """Three of four: which end they belong to is not known, so neither is what they are."""
        matrix = np.diag(np.arange(1.0, 11.0))
        found = Found(matrix, np.eye(10)[:, [0, 8, 9]], 4, (2, 2))
        found.highest, found.lowest = 8.0, 2.0
        values, vectors, residuals, sure = found.best(0.1)
        np.testing.assert_array_equal(values, [10, 9, np.nan, 1])
        assert not sure.any()
        np.testing.assert_allclose(np.abs(vectors[:, 3]), np.eye(10)[0], atol=1e-12)
        # All four, with a bound that one of them does not fulfil.
        found = Found(matrix, np.eye(10)[:, [0, 1, 8, 9]], 4, (2, 2))
        found.highest, found.lowest = 9.5, 3.0
        values, _, residuals, sure = found.best(0.1)
        np.testing.assert_array_equal(values, [10, 9, 2, 1])
        np.testing.assert_array_equal(sure, [True, False, True, True])
        np.testing.assert_allclose(residuals, 0, atol=1e-12)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("which", ["LA", "BE", "LM"])
    @pytest.mark.parametrize("n", [5, 40])
    def test_not_finite(self, n, which, value):
        with pytest.raises(ValueError, match="product with the curvature operator is not finite"):
            eigenpairs(not_finite(n, value), 2, which)

    def test_memory(self, monkeypatch):
        monkeypatch.setattr(_memory, "free_memory", lambda: 10_000)
        with pytest.raises(MemoryError, match=r"2 eigenpairs of 40 weights takes .* smaller `k`"):
            eigenpairs(hessian(), 2)
