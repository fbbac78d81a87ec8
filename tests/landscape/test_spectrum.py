"""Eigenvalues, densities and traces, against matrices whose spectrum is chosen."""

import json

import numpy as np
import pytest

from esgd_tf.landscape import (
    HessianOperator,
    eigenpairs,
    full_spectrum,
    spectral_density,
    spectrum,
    trace,
)
from tests.landscape.problems import cross_entropy, examples, mlp, quadratic, symmetric

SPECTRUM = np.concatenate([[-3.0, -1.0], np.linspace(-0.1, 0.1, 34), [1.0, 2.0, 4.0, 8.0]])


def hessian(eigenvalues=SPECTRUM, dtype="float64"):
    return HessianOperator(*quadratic(symmetric(eigenvalues), dtype=dtype))


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
            "eigenvalues", "residuals", "converged", "which", "tol", "matvecs"
        }  # fmt: skip
        assert pairs.plot().get_ylabel()
        with pytest.raises(ValueError, match="read-only"):
            pairs.eigenvalues[0] = 1
        with pytest.raises(AttributeError):
            pairs.tol = 1


class TestFullSpectrum:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_is_the_spectrum(self, dtype):
        full = full_spectrum(hessian(), dtype=dtype)
        atol = 1e-12 if dtype == "float64" else 1e-5
        np.testing.assert_allclose(full.eigenvalues, np.sort(SPECTRUM), atol=atol)
        assert full.asymmetry < (1e-12 if dtype == "float64" else 1e-5)
        assert full.fraction_below(0.5) == 34 / 40
        assert json.loads(json.dumps(full.to_dict()))["eigenvalues"][0] == pytest.approx(
            -3, abs=1e-5
        )
        assert full.plot().get_xlabel()

    def test_goes_on_after_an_interruption(self, tmp_path, monkeypatch):
        values = np.linspace(-1, 1, 600)
        h, path = hessian(values), tmp_path / "columns.npy"
        real, products = HessianOperator.__matmul__, []

        def dying(self, v):
            if len(products) == 40:
                raise KeyboardInterrupt
            products.append(v.shape)
            return real(self, v)

        with monkeypatch.context() as patch:
            patch.setattr(HessianOperator, "__matmul__", dying)
            with pytest.raises(KeyboardInterrupt):
                full_spectrum(h, path=path)
        assert path.exists()
        again = hessian(values)
        full = full_spectrum(again, path=path)
        np.testing.assert_allclose(full.eigenvalues, values, atol=1e-12)
        # 32 blocks of 8 were noted; one product tells the operators apart.
        assert again.matvecs == 600 - 32 * 8 + 1
        assert list(tmp_path.iterdir()) == []

    def test_refuses_the_columns_of_another_operator(self, tmp_path):
        path = tmp_path / "columns.npy"
        columns = spectrum._Columns(hessian(np.linspace(-1, 1, 600)), np.dtype("float64"), path)
        for _ in range(32):
            columns.advance(hessian(np.linspace(-1, 1, 600)))
        with pytest.raises(ValueError, match="another operator"):
            full_spectrum(hessian(np.linspace(-1, 2, 600)), path=path)
        with pytest.raises(ValueError, match="There is no folder"):
            full_spectrum(hessian(), path=tmp_path / "none" / "columns.npy")

    def test_refuses_what_does_not_fit(self, monkeypatch):
        monkeypatch.setattr(spectrum, "_free_memory", lambda: 10_000)
        with pytest.raises(MemoryError, match=r"40 weights takes .* GiB in float64 and 0.0 GiB"):
            full_spectrum(hessian())

    def test_memory_that_is_free_is_known_here(self):
        free = spectrum._free_memory()
        assert free is None or 2**20 < free < 2**50

    def test_bad_dtype(self):
        with pytest.raises(ValueError, match="`dtype` must be"):
            full_spectrum(hessian(), dtype="int32")

    def test_symmetrise_in_blocks(self):
        matrix = np.random.default_rng(0).standard_normal((50, 50))
        expected = (matrix + matrix.T) / 2
        asymmetry = np.abs(matrix - matrix.T).max() / np.abs(matrix).max()
        assert spectrum._symmetrise(matrix, block=16) == pytest.approx(asymmetry, rel=0.5)
        np.testing.assert_array_equal(matrix, expected)


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
        rules = spectrum.lanczos(h, start, 10)
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


class TestTrace:
    def test_lies_within_its_error(self):
        values = np.concatenate([np.full(5, 50.0), np.linspace(-1, 1.2, 195)])
        found = [trace(hessian(values), 60, seed=s) for s in range(30)]
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
        assert set(found.to_dict()) == {"estimate", "standard_error", "matvecs"}
        found.plot()
        with pytest.raises(ValueError, match="at least 6"):
            trace(hessian(), 5)


@pytest.mark.usefixtures("float64")
def test_of_a_network_all_agree():
    h = HessianOperator(mlp(), cross_entropy(), examples())
    full = full_spectrum(h)
    matrix = h @ np.eye(44)
    np.testing.assert_allclose(full.eigenvalues, np.linalg.eigvalsh(matrix), atol=1e-12)
    assert trace(h, 132).estimate == pytest.approx(full.eigenvalues.sum(), abs=1e-10)
    density = spectral_density(h, 300, 30, seed=5)
    for power in range(1, 5):
        value, error = density.mean(lambda t, p=power: t**p)
        assert abs(value - np.mean(full.eigenvalues**power)) < 4 * error
    top = eigenpairs(h, 3, tol=1e-10)
    np.testing.assert_allclose(top.eigenvalues, full.eigenvalues[::-1][:3], atol=1e-9)
