"""All eigenvalues, in memory and through a file, against matrices whose spectrum is chosen."""

import json
import sys

import numpy as np
import pytest

from esgd_tf.landscape import HessianOperator, eigenpairs, full_spectrum, spectral_density, trace
from tests.landscape.problems import SPECTRUM, cross_entropy, examples, hessian, mlp

# The function of that name hides the module.
module = sys.modules["esgd_tf.landscape.full_spectrum"]


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
        values = np.linspace(-1, 1, 300)
        h, path = hessian(values), tmp_path / "columns.npy"
        real, products = HessianOperator.__matmul__, []

        def dying(self, v):
            if len(products) == 36:
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
        assert again.matvecs == 300 - 32 * 8 + 1
        assert list(tmp_path.iterdir()) == []

    def test_refuses_the_columns_of_another_operator(self, tmp_path):
        path = tmp_path / "columns.npy"
        h = hessian(np.linspace(-1, 1, 300))
        columns = module._Columns(h, np.dtype("float64"), path)
        for _ in range(32):
            columns.advance(h)
        with pytest.raises(ValueError, match="another operator"):
            full_spectrum(hessian(np.linspace(-1, 2, 300)), path=path)
        with pytest.raises(ValueError, match="There is no folder"):
            full_spectrum(hessian(), path=tmp_path / "none" / "columns.npy")

    def test_refuses_what_does_not_fit(self, monkeypatch):
        monkeypatch.setattr(module, "_free_memory", lambda: 10_000)
        with pytest.raises(MemoryError, match=r"40 weights takes .* GiB in float64 and 0.0 GiB"):
            full_spectrum(hessian())

    def test_memory_that_is_free_is_known_here(self):
        free = module._free_memory()
        assert free is None or 2**20 < free < 2**50

    def test_bad_dtype(self):
        with pytest.raises(ValueError, match="`dtype` must be"):
            full_spectrum(hessian(), dtype="int32")

    def test_symmetrise_in_blocks(self):
        matrix = np.random.default_rng(0).standard_normal((50, 50))
        expected = (matrix + matrix.T) / 2
        asymmetry = np.abs(matrix - matrix.T).max() / np.abs(matrix).max()
        assert module._symmetrise(matrix, block=16) == pytest.approx(asymmetry, rel=0.5)
        np.testing.assert_array_equal(matrix, expected)


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
