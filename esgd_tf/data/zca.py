"""Global contrast normalisation and ZCA whitening, as All-CNN-C's data were prepared.

From process_cifar.py of the released Entropy-SGD code: every image is shifted and scaled to mean
0 and standard deviation 1 over all its values (n - 1 in the denominator; a constant image is only
shifted). Then, with the mean m of the training images and their covariance
C = U diag(S^2) U^T (again n - 1),

    x  ->  U diag(1 / (S + 1e-5)) U^T (x - m),

the smallest change that makes the training pixels uncorrelated with variance 1.

Note:
    Directions in which the training images do not vary at all (S = 0 up to rounding) are set to 0
    here. Such are the sum of all values, which the contrast normalisation removes, and the empty
    corners of MNIST. The original multiplies the rounding error there by 1e5, and also any ink of
    a test image where no training image has ink. In all other directions the two agree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from esgd_tf._files import replaced_when_whole
from esgd_tf.data.npz import open_npz

_LOG = logging.getLogger(__name__)
_REGULARIZER = 1e-5
_FLAT = 1e-8
_CHUNK = 5000
_FILE = "gcn_zca.npz"


@dataclasses.dataclass(frozen=True)
class Whitening:
    """A fitted whitening.

    Attributes:
        mean: float32 [d], the mean of the contrast-normalised training images.
        matrix: float32 [d, d], symmetric.
    """

    mean: NDArray[np.float32]
    matrix: NDArray[np.float32]


def normalize_contrast(images: NDArray[np.generic]) -> NDArray[np.float64]:
    """Shift and scale every image to mean 0 and standard deviation 1.

    Args:
        images: array of any dtype, of shape [n, ...]. The images.

    Returns:
        float64 [n, d], flattened.
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    deviation = flat.std(axis=1, ddof=1, keepdims=True)
    flat /= np.where(deviation < _FLAT, 1.0, deviation)
    return flat


def fit(images: NDArray[np.generic]) -> Whitening:
    """Fit the whitening to training images. For CIFAR's 3,072 values this takes half a minute.

    Args:
        images: array of shape [n, h, w, c] with n >= 2. The images.

    Returns:
        The mean and the matrix.

    Raises:
        ValueError: There are fewer than two images.
    """
    count, size = len(images), math.prod(images.shape[1:])
    if count < 2:
        raise ValueError(f"Whitening needs at least 2 images to fit, not {count}.")
    chunks = range(0, count, _CHUNK)
    mean = np.zeros(size)
    for start in chunks:
        mean += normalize_contrast(images[start : start + _CHUNK]).sum(axis=0)
    mean /= count
    covariance = np.zeros((size, size))
    for start in tqdm(chunks, desc="Fitting the whitening", unit="chunk", leave=False):
        centred = normalize_contrast(images[start : start + _CHUNK]) - mean
        covariance += centred.T @ centred
    covariance /= count - 1
    eigenvalues, vectors = np.linalg.eigh(covariance)
    # The usual bound on the rounding error of an eigenvalue that is 0.
    varies = eigenvalues > eigenvalues[-1] * size * np.finfo(np.float64).eps
    inverse = np.zeros(size)
    inverse[varies] = 1.0 / (np.sqrt(eigenvalues[varies]) + _REGULARIZER)
    matrix = (vectors * inverse) @ vectors.T
    return Whitening(mean=mean.astype(np.float32), matrix=matrix.astype(np.float32))


def fitted(images: NDArray[np.generic], folder: Path) -> Whitening:
    """Return the whitening that is stored beside the records, after fitting it if there is none.

    A stored whitening is used only if it is undamaged and was fitted to exactly these images. In a
    folder that cannot be written to, the whitening is fitted anew every time.

    Args:
        images: array of shape [n, h, w, c]. The training images.
        folder: Path. The folder of the records.
    """
    print_of_images = _fingerprint(images)
    path = folder / _FILE
    stored = _read(path, print_of_images, math.prod(images.shape[1:]))
    if stored is None:
        stored = fit(images)
        _write(path, stored, print_of_images)
    return stored


def _fingerprint(images: NDArray[np.generic]) -> str:
    digest = hashlib.sha256(f"{images.dtype.str} {images.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def _read(path: Path, fingerprint: str, size: int) -> Whitening | None:
    try:
        with open_npz(path) as stored:
            mean, matrix = stored["mean"], stored["matrix"]
            same_images = str(stored["fingerprint"]) == fingerprint
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _LOG.warning("%s is damaged (%s): fitting the whitening anew.", path, error)
        return None
    good = (
        same_images
        and mean.shape == (size,)
        and matrix.shape == (size, size)
        and mean.dtype == matrix.dtype == np.float32
        and bool(np.isfinite(mean).all() and np.isfinite(matrix).all())
    )
    if not good:
        _LOG.warning("%s is not the whitening of these images: fitting it anew.", path)
        return None
    return Whitening(mean=mean, matrix=matrix)


def _write(path: Path, whitening: Whitening, fingerprint: str) -> None:
    try:
        with replaced_when_whole(path) as partial:
            np.savez(
                partial,
                mean=whitening.mean,
                matrix=whitening.matrix,
                fingerprint=np.array(fingerprint),
            )
    except OSError as error:
        _LOG.warning("Cannot store the whitening in %s: %s", path.parent, error.strerror or error)
