import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.data import AUGMENTATIONS, DataError
from esgd_tf.data.augmentation import MAX_ANGLE, PADDING, augmenter

H, W = 9, 12


def _coded(count):
    """Images whose every value says which image, row and column it is of."""
    n, row, column = np.meshgrid(np.arange(count), np.arange(H), np.arange(W), indexing="ij")
    return np.stack([n * 10000 + row * 100 + column, -(row * 100 + column)], axis=-1).astype(
        np.float32
    )


def _seed(*numbers):
    return tf.constant(numbers, tf.int64)


def test_flip_crop_gives_true_crops_of_padded_images():
    images = _coded(400)
    out = augmenter("flip_crop")(tf.constant(images), _seed(1, 2)).numpy()
    padded = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)], mode="reflect")
    seen = set()
    for i, image in enumerate(out):
        places = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            if np.array_equal(
                image[:, ::-1] if flip else image, padded[i, top : top + H, left : left + W]
            )
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert PADDING == 4
    tops, lefts, flips = (set(part) for part in zip(*seen, strict=True))
    assert tops == lefts == set(range(9))
    assert flips == {False, True}
    # Independent samples: far more combinations than one sample for all three would give.
    assert len(seen) > 120


def test_flips_are_half_of_all():
    images = np.zeros((4000, 1, 2, 1), np.uint8)
    images[:, 0, 1] = 1
    images = np.repeat(np.repeat(images, 9, axis=1), 10, axis=2)
    for kind in ("flip_crop", "flip_rotate"):
        out = augmenter(kind)(tf.constant(images), _seed(3, 4)).numpy()[..., 0]
        flipped = (out[:, 4, :4].mean(axis=1) > out[:, 4, -4:].mean(axis=1)).mean()
        assert abs(flipped - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_flip_rotate_by_what_it_reads():
    """Bilinear interpolation is exact on planes: images of x and y tell where pixels come from."""
    size, count = 15, 1000
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    images = np.repeat(np.stack([x, y], axis=-1)[None], count, axis=0).astype(np.float32)
    out = augmenter("flip_rotate")(tf.constant(images), _seed(5, 6)).numpy()
    # Well inside, where no reflected border mixes in.
    inside = slice(2, -2)
    design = np.stack([x, y, np.ones_like(x)], axis=-1)[inside, inside].reshape(-1, 3)
    angles = []
    for image in out:
        values = image[inside, inside].reshape(-1, 2)
        fit, *_ = np.linalg.lstsq(design, values, rcond=None)
        np.testing.assert_allclose(design @ fit, values, atol=1e-3)
        matrix = fit[:2].T
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(2), atol=1e-3)
        # The centre stays where it is, mirrored or not.
        np.testing.assert_allclose(np.array([7, 7, 1]) @ fit, [7, 7], atol=1e-3)
        mirrored = np.linalg.det(matrix) < 0
        angles.append((np.arctan2(matrix[1, 0], matrix[1, 1]), mirrored))
    turned, mirrored = (np.array(part) for part in zip(*angles, strict=True))
    assert MAX_ANGLE == 0.05
    assert np.abs(turned).max() <= 0.0501
    # Uniform: both ends are reached, and the variance is (0.1)^2 / 12.
    assert turned.min() < -0.049
    assert turned.max() > 0.049
    assert abs(turned.std() - 0.1 / np.sqrt(12)) < 0.002
    assert abs(mirrored.mean() - 0.5) < 0.07
    assert abs(np.corrcoef(turned, mirrored)[0, 1]) < 0.1


def test_rotation_fills_corners_from_the_image():
    out = augmenter("flip_rotate")(tf.fill([50, 20, 20, 1], 200), _seed(7, 8))
    np.testing.assert_allclose(out, 200, atol=1e-3)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shape_type_and_determinism(kind, dtype):
    images = tf.constant(_coded(6).astype(dtype))
    augment = augmenter(kind)
    first = augment(images, _seed(1, 1))
    assert first.shape == images.shape
    assert first.dtype == (tf.float32 if kind == "flip_rotate" else images.dtype)
    np.testing.assert_array_equal(first, augment(images, _seed(1, 1)))
    np.testing.assert_array_equal(first, tf.function(augment)(images, _seed(1, 1)))
    other = augment(images, _seed(1, 2))
    if kind == "none":
        np.testing.assert_array_equal(first, images)
    else:
        assert not np.array_equal(first, other)
        # Images of one batch get samples of their own.
        assert len({image.tobytes() for image in first.numpy() - images.numpy()}) > 1


def test_unknown_kind():
    with pytest.raises(DataError, match=r"'crop'; choose one of none, flip_crop, flip_rotate"):
        augmenter("crop")
