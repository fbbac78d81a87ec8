import dataclasses
import time

import numpy as np
import pytest

from esgd_tf.data import zca


@pytest.fixture(scope="module")
def images():
    """Correlated, uneven images: 600 of 4x4x3."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(600, 48)) @ rng.normal(size=(48, 48)) * 12 + 120
    return np.clip(mixed, 0, 255).astype(np.uint8).reshape(600, 4, 4, 3)


def _whiten(whitening, images):
    flat = zca.normalize_contrast(images)
    return (flat - whitening.mean) @ whitening.matrix


def test_contrast_normalisation_by_hand():
    image = np.array([[[[1], [2]], [[3], [6]]]], np.uint8)
    deviation = np.sqrt((4 + 1 + 0 + 9) / 3)
    np.testing.assert_allclose(
        zca.normalize_contrast(image), [np.array([-2, -1, 0, 3]) / deviation], atol=1e-15
    )
    flat = zca.normalize_contrast(np.full((1, 2, 2, 1), 7, np.uint8))
    np.testing.assert_array_equal(flat, np.zeros((1, 4)))


def test_agrees_with_a_singular_value_decomposition(images):
    """The released code's way: U, S of the centred data over sqrt(n - 1)."""
    data = zca.normalize_contrast(images).T
    centred = data - data.mean(axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(centred / np.sqrt(len(images) - 1), full_matrices=False)
    expected = (u @ np.diag(1 / (s + 1e-5)) @ u.T @ centred).T
    np.testing.assert_allclose(_whiten(zca.fit(images), images), expected, atol=2e-4)


def test_training_images_become_white(images):
    white = _whiten(zca.fit(images), images)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-5)
    spectrum = np.linalg.eigvalsh(np.cov(white.T))
    # One direction is gone: every contrast-normalised image sums to 0.
    assert abs(spectrum[0]) < 1e-6
    np.testing.assert_allclose(spectrum[1:], 1, atol=1e-3)


def test_whitening_is_the_nearest_one(images):
    """ZCA and not PCA: the matrix is symmetric and positive, so pixels stay where they are."""
    matrix = zca.fit(images).matrix
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    assert np.linalg.eigvalsh(matrix.astype(np.float64)).min() > -1e-6
    white = _whiten(zca.fit(images), images)
    flat = zca.normalize_contrast(images)
    between = [np.corrcoef(white[:, i], flat[:, i])[0, 1] for i in range(48)]
    assert min(between) > 0.2


def test_ink_where_no_training_image_has_any(images):
    train = images.copy()
    train[:, :2] = 0
    test = train[:1].copy()
    test[0, 0, 0, 0] = 255
    assert np.abs(_whiten(zca.fit(train), test)).max() < 100


def test_chunks_make_no_difference(images, monkeypatch):
    whole = zca.fit(images)
    monkeypatch.setattr(zca, "_CHUNK", 77)
    parts = zca.fit(images)
    np.testing.assert_allclose(parts.mean, whole.mean, atol=1e-6)
    np.testing.assert_allclose(parts.matrix, whole.matrix, rtol=1e-4, atol=1e-4)


def test_too_few_images():
    with pytest.raises(ValueError, match="at least 2 images"):
        zca.fit(np.zeros((1, 2, 2, 1), np.uint8))


@pytest.fixture
def fits(monkeypatch):
    calls = []
    real = zca.fit
    monkeypatch.setattr(zca, "fit", lambda images: calls.append(len(images)) or real(images))
    return calls


def test_stored_beside_the_records(images, tmp_path, fits):
    first = zca.fitted(images, tmp_path)
    second = zca.fitted(images, tmp_path)
    assert len(fits) == 1
    np.testing.assert_array_equal(first.matrix, second.matrix)
    np.testing.assert_array_equal(first.mean, second.mean)
    assert [p.name for p in tmp_path.iterdir()] == ["gcn_zca.npz"]


def test_other_images_are_fitted_anew(images, tmp_path, fits, caplog):
    zca.fitted(images, tmp_path)
    changed = images.copy()
    changed[0, 0, 0, 0] ^= 1
    zca.fitted(changed, tmp_path)
    assert len(fits) == 2
    assert "not the whitening of these images" in caplog.text
    zca.fitted(changed, tmp_path)
    assert len(fits) == 2


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "nonsense", "one array", "zlib", "not finite", "shape", "pickle"]
)
def test_damaged_file_is_replaced(images, tmp_path, fits, caplog, damage):
    good = zca.fitted(images, tmp_path)
    path = tmp_path / "gcn_zca.npz"
    stored = dict(np.load(path))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "one array":
        with path.open("wb") as stream:
            np.save(stream, stored["matrix"])
    elif damage == "zlib":
        np.savez_compressed(path, **stored)
        content = bytearray(path.read_bytes())
        content[300:330] = b"\xff" * 30
        path.write_bytes(bytes(content))
    elif damage == "nonsense":
        path.write_bytes(b"PK\x03\x04 nonsense")
    else:
        wrong = {
            "not finite": np.where(np.eye(48) > 0, np.float32(np.nan), stored["matrix"]),
            "shape": stored["matrix"][:-1],
            "pickle": np.array([{"a": 1}], object),
        }[damage]
        np.savez(path, **{**stored, "matrix": wrong})
    again = zca.fitted(images, tmp_path)
    assert len(fits) == 2
    assert "gcn_zca.npz" in caplog.text
    np.testing.assert_array_equal(again.matrix, good.matrix)
    zca.fitted(images, tmp_path)
    assert len(fits) == 2


def test_folder_that_cannot_be_written(images, tmp_path, monkeypatch, caplog):
    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(zca.np, "savez", read_only)
    whitening = zca.fitted(images, tmp_path)
    assert np.isfinite(whitening.matrix).all()
    assert "Read-only file system" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(images, tmp_path, monkeypatch, caplog):
    def full(path, **arrays):
        path.write_bytes(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zca.np, "savez", full)
    zca.fitted(images, tmp_path)
    assert "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_whitening_is_frozen_and_quick_to_read(images, tmp_path):
    whitening = zca.fitted(images, tmp_path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        whitening.mean = None
    begin = time.monotonic()
    zca.fitted(images, tmp_path)
    assert time.monotonic() - begin < 1
