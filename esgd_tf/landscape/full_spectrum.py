"""All eigenvalues of a curvature operator, from the matrix itself."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from esgd_tf._files import replaced_when_whole
from esgd_tf.landscape._memory import free_memory as _free_memory
from esgd_tf.landscape._progress import progress_bar
from esgd_tf.landscape._result import Result, axes
from esgd_tf.landscape._vectors import Array, finite, random_unit
from esgd_tf.landscape.operator import CurvatureOperator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FullSpectrum", "full_spectrum"]


@dataclasses.dataclass(frozen=True, eq=False)
class FullSpectrum(Result):
    """All eigenvalues of a curvature operator.

    Attributes:
        eigenvalues: [n], ascending.
        asymmetry: max|H - H'| over max|H|: what rounding did to the matrix before it was
            symmetrised.
    """

    eigenvalues: Array
    asymmetry: float

    def fraction_below(self, magnitude: float) -> float:
        """Return the fraction of eigenvalues with |λ| < magnitude."""
        return float(np.mean(np.abs(self.eigenvalues) < magnitude))

    def plot(self, ax: Axes | None = None, bins: int = 200) -> Axes:
        """Plot a histogram with a logarithmic count, as Chaudhari et al. (2017) do."""
        ax = axes(ax)
        ax.hist(self.eigenvalues, bins=bins, log=True)
        ax.set(xlabel="eigenvalue", ylabel="number of eigenvalues")
        return ax


def full_spectrum(
    operator: CurvatureOperator,
    *,
    dtype: Literal["float32", "float64"] = "float64",
    path: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> FullSpectrum:
    """Compute all eigenvalues from the matrix itself, formed by n products.

    The matrix takes n² numbers, and the solver works in it. With a path its columns go to a file as
    they come, so that a computation that was interrupted goes on where it stood.

    Args:
        operator: CurvatureOperator. The matrix.
        dtype: "float32" or "float64". The dtype in which the matrix is kept: "float32" halves the
            memory. Defaults to 'float64'.
        path: str or path. Where to keep the columns meanwhile, about n² numbers on disk, with a
            note in a file of the same name and ".json"; both go when the eigenvalues are there. A
            file that is there already and is not that of the same, unfinished computation is left
            as it is, and refused. Defaults to None, which keeps the columns in memory.
        progress: bool. Whether to show a bar. Defaults to None, which shows it on a terminal.

    Raises:
        MemoryError: The matrix does not fit into the memory (or on the disk) that is free.
        ValueError: The file at `path` is of another operator, damaged, or not ours; or a product
            is not finite.
    """
    from scipy.linalg import eigvalsh

    n, kind = operator.shape[0], np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise ValueError(f"`dtype` must be float32 or float64; got {dtype!r}.")
    _refuse_if_too_large(n, kind, path)
    columns = _Columns(operator, kind, path)
    with progress_bar(n, "Hessian columns", progress) as bar:
        bar.update(columns.done)
        while columns.done < n:
            bar.update(columns.advance(operator))
    # In float32 a large number may have become infinite.
    finite(columns.matrix.sum(dtype=np.float64))
    matrix = columns.in_memory()
    asymmetry = _symmetrise(matrix)
    # In Fortran's order, which the transpose of a symmetric matrix is, LAPACK makes no copy.
    eigenvalues = eigvalsh(matrix.T, overwrite_a=True, check_finite=False, driver="evr")
    columns.remove()
    return FullSpectrum(eigenvalues.astype(np.float64), asymmetry, measured_at=operator.measured_at)


class _Columns:
    """The matrix as far as it is formed, in memory or in a file with a note of its progress.

    The note is there before the file, and says what the file is: one without is another's, and is
    left alone. What the note calls done has been written to the disk before.
    """

    def __init__(self, operator: CurvatureOperator, kind: np.dtype, path: Any) -> None:
        n = operator.shape[0]
        self.done, self.path = 0, None if path is None else Path(path)
        if self.path is None:
            self.matrix = np.empty((n, n), kind)
            return
        self.note = self.path.with_name(self.path.name + ".json")
        self.of = {
            "what": _WHAT, "n": n, "dtype": kind.name, "operator": type(operator).__name__
        }  # fmt: skip
        noted = self._read_note()
        # The product with a fixed vector tells operators apart; threads may change its last digits.
        rng = np.random.default_rng(0)
        vector = random_unit(rng, n)
        product = finite(operator @ vector)
        scale = float(np.linalg.norm(product))
        self.probe = probe = [scale, *(float(random_unit(rng, n) @ product) for _ in range(3))]
        if noted is not None:
            done, found = noted.pop("done"), noted.pop("probe")
            same = np.allclose(found, probe, rtol=0, atol=1e-4 * scale)
            if not same or noted != self.of:
                raise ValueError(
                    f"{self.path} holds the columns of another operator (other weights, data or "
                    "dtype): give another path, or remove it and its .json file."
                )
            if os.path.lexists(self.path):
                self._check_file(n, kind)
                self.matrix = np.load(self.path, mmap_mode="r+")
                self._check_rows(done, vector, product)
                self.done = done
                return
        self._write_note()
        self.matrix = np.lib.format.open_memmap(self.path, "w+", kind, (n, n))

    def _read_note(self) -> dict[str, Any] | None:
        """Return what the note says; None if neither it nor the file is there."""
        assert self.path is not None
        for path in (self.path, self.note):
            if os.path.lexists(path) and not path.is_file():
                raise ValueError(f"{path} is no file: give a path to a file that is to be made.")
        if not self.note.is_file():
            if self.path.is_file():
                raise ValueError(
                    f"{self.path} is there already and is no unfinished matrix of "
                    "`full_spectrum` (it has no .json file beside it): give another path."
                )
            return None
        try:
            noted = json.loads(self.note.read_text())
            if noted["what"] != _WHAT:
                raise KeyError
            done, probe = int(noted["done"]), np.asarray(noted["probe"], np.float64)
        except (ValueError, KeyError, TypeError):
            done, probe = -1, np.zeros(0)
        if done < 0 or probe.shape != (4,):
            raise ValueError(
                f"{self.note} is no note of `full_spectrum`, or a damaged one: give another path, "
                f"or remove it and {self.path.name} if both are yours to remove."
            )
        return noted

    def _check_file(self, n: int, kind: np.dtype) -> None:
        """Refuse a file that is not the whole of an array [n, n]: NumPy would fill it with 0."""
        assert self.path is not None
        try:
            with self.path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                whole = file.tell() + n * n * kind.itemsize == self.path.stat().st_size
        except ValueError:
            shape, dtype, whole = (0,), np.dtype("float64"), False
        if not whole or shape != (n, n) or dtype != kind:
            raise ValueError(
                f"{self.path} is damaged (cut short, or another array than its .json file says): "
                "remove both, or give another path."
            )

    def _check_rows(self, done: int, vector: Array, product: Array) -> None:
        """Refuse rows that are not those of the operator: their product with a vector is known."""
        rows, bad = 1024, 0
        for at in range(0, done, rows):
            part = np.asarray(self.matrix[at : min(at + rows, done)], np.float64)
            error = np.abs(part @ vector - product[at : at + len(part)])
            size = np.linalg.norm(part, axis=1)
            # Rounding of float32, of the row itself and of the sums that it comes from.
            bound = 1e-3 * (size + np.linalg.norm(product)) / np.sqrt(len(vector))
            bad += int(np.sum(~(error <= bound)))
        if bad:
            raise ValueError(
                f"{self.path} is damaged: {bad:,} of its {done:,} columns are not those of the "
                "operator. Remove it and its .json file, or give another path."
            )

    def advance(self, operator: CurvatureOperator) -> int:
        n, width = len(self.matrix), operator.block_size
        stop = min(self.done + width, n)
        rows = np.zeros((stop - self.done, n))
        rows[np.arange(stop - self.done), np.arange(self.done, stop)] = 1.0
        self.matrix[self.done : stop] = finite(operator @ rows.T).T
        advanced, self.done = stop - self.done, stop
        if self.path is not None and (self.done == n or self.done % (32 * width) == 0):
            self.matrix.flush()  # type: ignore[attr-defined]
            self._write_note()
        return advanced

    def _write_note(self) -> None:
        text = json.dumps({**self.of, "probe": self.probe, "done": self.done})
        with replaced_when_whole(self.note) as partial:
            partial.write_text(text)

    def in_memory(self) -> NDArray[Any]:
        """Return a matrix that may be overwritten: the file stays for another try."""
        return self.matrix if self.path is None else np.array(self.matrix)

    def remove(self) -> None:
        if self.path is not None:
            del self.matrix
            # The file before its note: without the note, it would look like another's.
            self.path.unlink()
            self.note.unlink()


_WHAT = "columns of esgd_tf.landscape.full_spectrum"


def _symmetrise(matrix: NDArray[Any], block: int = 1024) -> float:
    """Replace the matrix by its symmetric part, in place; return the relative asymmetry."""
    n, worst, largest = len(matrix), 0.0, 0.0
    for i in range(0, n, block):
        for j in range(i, n, block):
            upper = matrix[i : i + block, j : j + block]
            lower = matrix[j : j + block, i : i + block].T
            worst = max(worst, float(np.abs(upper - lower).max()))
            largest = max(largest, float(np.abs(upper).max()))
            mean = (upper + lower) / 2
            matrix[i : i + block, j : j + block] = mean
            matrix[j : j + block, i : i + block] = mean.T
    return worst / largest if largest else 0.0


def _refuse_if_too_large(n: int, kind: np.dtype, path: Any) -> None:
    # The matrix, and what LAPACK and the blocks of products take beside it.
    needed = n * n * kind.itemsize + 64 * n * 8
    free = _free_memory()
    if free is not None and needed > free:
        raise MemoryError(
            f"The matrix of {n:,} weights takes {needed / 2**30:,.1f} GiB in {kind.name} and "
            f"{free / 2**30:,.1f} GiB of memory are free: use `spectral_density`, select layers "
            "with `variables`" + (", or use float32." if kind == np.float64 else ".")
        )
    if path is not None:
        folder = Path(path).absolute().parent
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder} to keep the columns in.")
        on_disk = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        if n * n * kind.itemsize > on_disk and not Path(path).is_file():
            raise MemoryError(
                f"The matrix takes {n * n * kind.itemsize / 2**30:,.1f} GiB on disk and "
                f"{on_disk / 2**30:,.1f} GiB are free at {folder}: give another path."
            )
