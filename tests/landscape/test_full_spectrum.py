"""All eigenvalues, in memory and through a file, against matrices whose spectrum is chosen."""

import json
import sys

import numpy as np
import pytest

from esgd_tf.landscape import HessianOperator, eigenpairs, full_spectrum, spectral_density, trace
from tests.landscape.problems import (
    SPECTRUM,
    MatrixOperator,
    cross_entropy,
    examples,
    hessian,
    mlp,
    not_finite,
    symmetric,
)

# The function of that name hides the module.
module = sys.modules["esgd_tf.landscape.full_spectrum"]


def small():
    """Return an operator that traces nothing."""
    return MatrixOperator(symmetric(SPECTRUM))


class TestFullSpectrum:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.few(1)
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

    @pytest.mark.slow
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
        h = MatrixOperator(symmetric(np.linspace(-1, 1, 300)))
        columns = module._Columns(h, np.dtype("float64"), path)
        for _ in range(32):
            columns.advance(h)
        with pytest.raises(ValueError, match="another operator"):
            full_spectrum(MatrixOperator(symmetric(np.linspace(-1, 2, 300))), path=path)
        with pytest.raises(ValueError, match="There is no folder"):
            full_spectrum(hessian(), path=tmp_path / "none" / "columns.npy")

    def test_refuses_what_does_not_fit(self, monkeypatch):
        monkeypatch.setattr(module, "_free_memory", lambda: 10_000)
        with pytest.raises(MemoryError, match=r"40 weights takes .* GiB in float64 and 0.0 GiB"):
            full_spectrum(hessian())

    def test_memory_that_is_free_is_known_here(self):
        free = module._free_memory()
        assert free is None or 2**20 < free < 2**50

    def test_symmetrise_in_blocks(self):
        matrix = np.random.default_rng(0).standard_normal((50, 50))
        expected = (matrix + matrix.T) / 2
        asymmetry = np.abs(matrix - matrix.T).max() / np.abs(matrix).max()
        assert module._symmetrise(matrix, block=16) == pytest.approx(asymmetry, rel=0.5)
        np.testing.assert_array_equal(matrix, expected)


VALUES = np.linspace(-60, 70, 300)


def begun(path, done=256, values=VALUES, dtype="float64"):
    """Leave the columns of an unfinished computation, and return its operator."""
    h = MatrixOperator(symmetric(values))
    columns = module._Columns(h, np.dtype(dtype), path)
    while columns.done < done:
        columns.advance(h)
    del columns
    return MatrixOperator(h.matrix)


class TestFilesOfOthers:
    """Whatever is at the path: it is ours and whole, or it stays as it is."""

    @pytest.mark.parametrize("name", ["columns.npy", "columns.npy.json"])
    def test_a_file_is_left_alone(self, tmp_path, name):
        path, theirs = tmp_path / "columns.npy", tmp_path / name
        theirs.write_bytes(b"years of work")
        with pytest.raises(ValueError, match="give another path"):
            full_spectrum(small(), path=path)
        assert theirs.read_bytes() == b"years of work"
        assert list(tmp_path.iterdir()) == [theirs]

    def test_an_array_of_the_right_shape_is_left_alone(self, tmp_path):
        path = tmp_path / "columns.npy"
        np.save(path, np.zeros((40, 40)))
        with pytest.raises(ValueError, match="no unfinished matrix"):
            full_spectrum(small(), path=path)
        assert np.load(path).shape == (40, 40)

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "{}", '{"done": 3}', '{"what": "a song", "done": 0, "probe": []}']
    )
    @pytest.mark.few(1)
    def test_notes_that_are_none(self, tmp_path, text):
        path = tmp_path / "columns.npy"
        h = begun(path)
        note = tmp_path / "columns.npy.json"
        before = path.read_bytes()
        note.write_text(text)
        with pytest.raises(ValueError, match="is no note of `full_spectrum`, or a damaged one"):
            full_spectrum(h, path=path)
        assert note.read_text() == text
        assert path.read_bytes() == before

    def test_what_is_no_file(self, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "a.npy.json").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        for name in ("folder", "a.npy", "link"):
            with pytest.raises(ValueError, match="is no file"):
                full_spectrum(small(), path=tmp_path / name)
        assert len(list(tmp_path.iterdir())) == 3

    def test_files_of_the_same_beginning_stay(self, tmp_path):
        others = [tmp_path / "columns.npy.json.part", tmp_path / "columns.npy.part"]
        for other in others:
            other.write_text("mine")
        full_spectrum(small(), path=tmp_path / "columns.npy")
        assert sorted(tmp_path.iterdir()) == sorted(others)
        assert all(other.read_text() == "mine" for other in others)


class TestDamage:
    @pytest.mark.parametrize("left", [0, 10, 200, 0.5, 0.999])
    def test_cut_short(self, tmp_path, left):
        """NumPy would lengthen it with zeros, and the smallest eigenvalue would be another."""
        path = tmp_path / "columns.npy"
        h = begun(path)
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(int(left * size) if isinstance(left, float) else left)
        with pytest.raises(ValueError, match="is damaged"):
            full_spectrum(h, path=path)
        assert path.stat().st_size < size

    @pytest.mark.parametrize("rows", [slice(3, 4), slice(100, 256)])
    @pytest.mark.parametrize("change", [0.0, 1.1, np.nan])
    def test_other_numbers(self, tmp_path, rows, change):
        path = tmp_path / "columns.npy"
        h = begun(path)
        matrix = np.load(path, mmap_mode="r+")
        matrix[rows] *= change
        matrix.flush()
        with pytest.raises(ValueError, match="of its 256 columns are not those") as caught:
            full_spectrum(h, path=path)
        bad = int(str(caught.value).split(" of its")[0].split()[-1])
        # A few are nearly orthogonal to the vector that they are tried with.
        assert 0.9 * (rows.stop - rows.start) <= bad <= rows.stop - rows.start
        assert path.exists()

    def test_other_dtype_or_size(self, tmp_path):
        path = tmp_path / "columns.npy"
        h = begun(path)
        with pytest.raises(ValueError, match="another operator"):
            full_spectrum(h, path=path, dtype="float32")
        with pytest.raises(ValueError, match="another operator"):
            full_spectrum(small(), path=path)
        # The note is right, and the file is another's.
        np.save(path, np.zeros((300, 300), "float32"))
        with pytest.raises(ValueError, match="is damaged"):
            full_spectrum(h, path=path)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("done", [0, 256, 300])
    def test_whole_ones_go_on(self, tmp_path, done, dtype):
        path = tmp_path / "columns.npy"
        h = begun(path, done, dtype=dtype)
        full = full_spectrum(h, path=path, dtype=dtype)
        np.testing.assert_allclose(
            full.eigenvalues, VALUES, atol=1e-9 if dtype == "float64" else 1e-3
        )
        assert h.matvecs == 300 - done + 1
        assert list(tmp_path.iterdir()) == []

    def test_note_without_its_file_begins_anew(self, tmp_path):
        path = tmp_path / "columns.npy"
        h = begun(path)
        path.unlink()
        columns = module._Columns(h, np.dtype("float64"), path)
        assert columns.done == 0
        # And says so at once: interrupted here, nothing is taken for done.
        assert json.loads((tmp_path / "columns.npy.json").read_text())["done"] == 0

    def test_disk_that_is_full(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "_free_memory", lambda: None)
        with pytest.raises(MemoryError, match="on disk and"):
            module._refuse_if_too_large(10**9, np.dtype("float64"), tmp_path / "columns.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(tmp_path, value):
    for path in (None, tmp_path / "columns.npy"):
        with pytest.raises(ValueError, match="not finite"):
            full_spectrum(not_finite(value=value), path=path)
    large = MatrixOperator(np.diag(np.full(5, 1e39)))
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="not finite"):
        full_spectrum(large, dtype="float32")


@pytest.mark.slow
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
