import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.data import PREPROCESSINGS, DataError, ImageData, preprocessor, zca
from esgd_tf.data.preprocessing import channel_statistics


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(1)

    def images(count):
        base = rng.normal(size=(count, 48)) @ rng.normal(size=(48, 48)) * 10 + 100
        return np.clip(base, 0, 255).astype(np.uint8).reshape(count, 4, 4, 3)

    return ImageData(
        name="toy",
        train_images=images(300),
        train_labels=np.zeros(300, np.int32),
        test_images=images(20),
        test_labels=np.zeros(20, np.int32),
        num_classes=1,
        label_names=("x",),
        folder=tmp_path,
    )


def test_scale(data):
    prepare = preprocessor("scale", data)
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_allclose(prepare(every), every / 255.0, atol=1e-7)
    assert prepare.augment_first


def test_meanstd_from_training_images_alone(data):
    prepare = preprocessor("meanstd", data)
    out = prepare(data.train_images).numpy()
    np.testing.assert_allclose(out.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(axis=(0, 1, 2)), 1, atol=1e-5)
    mean = data.train_images.reshape(-1, 3).mean(axis=0)
    deviation = data.train_images.reshape(-1, 3).std(axis=0)
    np.testing.assert_allclose(
        prepare(data.test_images), (data.test_images - mean) / deviation, atol=1e-5
    )


def test_meanstd_of_a_constant_channel(data):
    images = data.train_images.copy()
    images[..., 1] = 7
    prepare = preprocessor("meanstd", ImageData(**{**vars(data), "train_images": images}))
    assert np.isfinite(prepare(images)).all()
    np.testing.assert_array_equal(prepare(images)[..., 1], 0)


def test_channel_statistics_of_wide_resnets_units(data):
    mean, deviation = channel_statistics(data.train_images)
    np.testing.assert_allclose(mean, data.train_images.reshape(-1, 3).mean(axis=0))
    np.testing.assert_allclose(deviation, data.train_images.reshape(-1, 3).std(axis=0))


def test_gcn_zca_is_the_fitted_whitening(data):
    prepare = preprocessor("gcn_zca", data)
    assert not prepare.augment_first
    assert (data.folder / "gcn_zca.npz").is_file()
    whitening = zca.fit(data.train_images)
    for images in (data.train_images, data.test_images):
        flat = zca.normalize_contrast(images)
        expected = ((flat - whitening.mean) @ whitening.matrix).reshape(images.shape)
        np.testing.assert_allclose(prepare(images), expected, atol=1e-3)
    constant = np.full((1, 4, 4, 3), 9, np.uint8)
    assert np.isfinite(prepare(constant)).all()


@pytest.mark.parametrize("kind", PREPROCESSINGS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_types_shapes_and_tracing(data, kind, dtype):
    prepare = preprocessor(kind, data)
    images = data.test_images.astype(dtype)
    eager = prepare(images)
    traced = tf.function(prepare)(images)
    assert eager.dtype == traced.dtype == tf.float32
    assert eager.shape == images.shape
    np.testing.assert_allclose(eager, traced, atol=1e-5)
    # A batch of unknown size, as the last one of an evaluation.
    flexible = tf.function(prepare).get_concrete_function(tf.TensorSpec([None, 4, 4, 3], dtype))
    assert flexible.structured_outputs.shape.as_list() == [None, 4, 4, 3]
    np.testing.assert_allclose(flexible(tf.constant(images[:3])), eager[:3], atol=1e-5)


def test_unknown_kind(data):
    with pytest.raises(DataError, match=r"'zca'; choose one of scale, meanstd, gcn_zca"):
        preprocessor("zca", data)
