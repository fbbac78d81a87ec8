import itertools

import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.data import (
    DataError,
    corrupt_in_order,
    evaluation_batches,
    input_corruption,
    parse_corruptions,
    training_batches,
)
from esgd_tf.data.augmentation import augmenter

N, H, W, C = 23, 6, 5, 2
KINDS = ["all_noise", "some_noise:2", "gaussian:0.5", "some_noise:2+gaussian:0.5"]


def _noise(text, seed=0):
    return input_corruption(parse_corruptions(text), seed=seed)


def _on(count, text, seed=0, first=0, value=0.0, shape=(H, W, C)):
    """Corrupt constant images number first ... first + count - 1."""
    images = tf.fill([count, *shape], value)
    return _noise(text, seed)(images, tf.range(first, first + count)).numpy()


def _prepare(images):
    return tf.cast(images, tf.float32) / 10


@pytest.fixture
def pairs():
    """Image i has the value i everywhere, and the label i."""
    images = np.repeat(np.arange(N, dtype=np.uint8), H * W * C).reshape(N, H, W, C)
    return images, np.arange(N, dtype=np.int32)


# ---- one by one ---------------------------------------------------------------------------------


def _assert_standard_normal(samples):
    samples = np.sort(samples.ravel())
    count = len(samples)
    assert abs(samples.mean()) < 4 / count**0.5
    assert abs(samples.var() - 1) < 4 * (2 / count) ** 0.5
    # Kolmogorov and Smirnov: beyond 1.95 / sqrt(n) once in a thousand.
    below = 0.5 * (1 + tf.math.erf(samples / 2**0.5).numpy())
    assert np.abs(below - (np.arange(count) + 0.5) / count).max() < 1.95 / count**0.5


def test_all_noise_is_standard_normal_whatever_the_images():
    noise = _on(200, "all_noise", value=50.0)
    assert noise.dtype == np.float32
    assert noise.shape == (200, H, W, C)
    _assert_standard_normal(noise)
    np.testing.assert_array_equal(noise, _on(200, "all_noise", value=-3.0))
    assert len(np.unique(noise)) > 0.99 * noise.size


def test_gaussian_is_added():
    clean, noise = _on(200, "gaussian:0", value=2.0), _on(200, "gaussian:1")
    np.testing.assert_array_equal(clean, 2.0)
    _assert_standard_normal(noise)
    np.testing.assert_allclose(
        _on(200, "gaussian:0.3", value=2.0), 2.0 + 0.3 * noise, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_some_noise_is_on_so_many_rows_and_columns(count):
    made = _on(40, f"some_noise:{count}", value=9.0)
    touched = made != 9.0
    np.testing.assert_array_equal(touched, np.broadcast_to(touched[:1, :, :, :1], made.shape))
    lines = touched[0, :, :, 0]
    rows, columns = lines.all(axis=1), lines.all(axis=0)
    if count < W:
        assert (rows.sum(), columns.sum()) == (count, count)
    np.testing.assert_array_equal(lines, rows[:, None] | columns[None, :])
    if count:
        _assert_standard_normal(made[touched])


def test_lines_are_sampled():
    """Over some seeds, every row and every column is chosen about equally often."""
    count = 40
    made = np.stack([_on(1, "some_noise:2", seed=s, value=9.0)[0, :, :, 0] for s in range(count)])
    rows, columns = (made != 9).all(axis=2).sum(axis=0), (made != 9).all(axis=1).sum(axis=0)
    assert rows.sum() == columns.sum() == 2 * count
    np.testing.assert_allclose(rows / count, 2 / H, atol=4 * (2 / H / count) ** 0.5)
    np.testing.assert_allclose(columns / count, 2 / W, atol=4 * (2 / W / count) ** 0.5)
    # The lines for two are among those for three.
    two, three = (_on(1, f"some_noise:{k}", value=9.0) != 9.0 for k in (2, 3))
    assert (three | ~two).all()
    assert three.sum() > two.sum()


def test_more_lines_than_there_are():
    with pytest.raises(DataError, match=r"no 6 rows and 6 columns for some_noise .* of 6 x 5"):
        _on(1, "some_noise:6")


def test_kinds_are_applied_in_their_order():
    both = _on(40, "some_noise:2+gaussian:0.5", value=9.0)
    lines, added = _on(40, "some_noise:2", value=9.0), _on(40, "gaussian:0.5")
    np.testing.assert_allclose(both, lines + added, atol=1e-6)
    # The other way round the lines are noise of variance 1 again.
    turned = _on(40, "gaussian:0.5+some_noise:2", value=9.0)
    chosen = lines != 9.0
    np.testing.assert_array_equal(turned[chosen], lines[chosen])


def test_only_noise_is_done_here():
    assert _noise("none") is None
    assert _noise("double+label_noise:0.5+scrambled+pixel_shuffle+random_pixels") is None
    np.testing.assert_array_equal(_on(5, "double+gaussian:1"), _on(5, "gaussian:1"))


# ---- a function of (seed, index) ----------------------------------------------------------------


@pytest.mark.parametrize("text", KINDS)
def test_noise_of_an_image_is_its_own(text):
    whole = _on(N, text)
    order = np.random.default_rng(0).permutation(N)
    some = _noise(text)(tf.zeros([N, H, W, C]), order).numpy()
    np.testing.assert_array_equal(some, whole[order])
    np.testing.assert_array_equal(_on(3, text, first=7), whole[7:10])
    assert len({image.tobytes() for image in whole}) == N
    for seed in (1, -1, 2**62, 2**32):
        assert not np.array_equal(_on(N, text, seed=seed), whole)
    # Two images side by side in one call do not share their samples either.
    assert abs(np.corrcoef(_on(400, "all_noise").reshape(2, -1))[0, 1]) < 4 / 12000**0.5


def test_each_kind_has_its_own_random_numbers():
    samples = [_on(200, text).ravel() for text in ("all_noise", "gaussian:1")]
    assert abs(np.corrcoef(samples)[0, 1]) < 4 / 12000**0.5
    lines = _on(200, "some_noise:5").ravel()
    for other in samples:
        assert abs(np.corrcoef(lines, other)[0, 1]) < 4 / 12000**0.5


@pytest.mark.parametrize("text", KINDS)
def test_types_and_tracing(text):
    corrupt, images, indices = _noise(text), tf.ones([4, H, W, C]), [3, 0, 9, 2**31 - 1]
    eager = corrupt(images, tf.constant(indices, tf.int32))
    flexible = tf.function(corrupt).get_concrete_function(
        tf.TensorSpec([None, H, W, C], tf.float32), tf.TensorSpec([None], tf.int64)
    )
    assert flexible.structured_outputs.shape.as_list() == [None, H, W, C]
    np.testing.assert_array_equal(flexible(images, tf.constant(indices, tf.int64)), eager)


def test_an_index_for_every_image():
    with pytest.raises(tf.errors.InvalidArgumentError):
        _noise("gaussian:1")(tf.zeros([4, H, W, C]), [3])


def test_seeds_must_fit():
    for seed in (2**63, -(2**63) - 1):
        with pytest.raises(DataError, match="must fit 64 bits"):
            _noise("gaussian:1", seed=seed)
    with pytest.raises(DataError, match="twice"):
        input_corruption(parse_corruptions("gaussian:1") * 2)
    _on(1, "gaussian:1", seed=-(2**63))
    _on(1, "some_noise:1", seed=2**63 - 1)


# ---- in the pipeline ----------------------------------------------------------------------------


def _batches(pairs, count=None, **settings):
    settings = {"batch_size": 5, "seed": 7, "preprocess": _prepare, **settings}
    dataset = training_batches(*pairs, **settings)
    return [(x.numpy(), y.numpy()) for x, y in itertools.islice(dataset, count)]


@pytest.mark.parametrize("text", ["all_noise", "some_noise:2+gaussian:0.5"])
def test_the_same_noise_in_every_epoch_and_order(pairs, text):
    corrupt = _noise(text)
    expected = corrupt(_prepare(pairs[0]), np.arange(N)).numpy()
    for settings in (
        {"epochs": 3},
        {"seed": 8, "epochs": 1},
        {"batch_size": 4, "epochs": 2},
        {"first_epoch": 5, "first_batch": 3, "epochs": 1},
    ):
        for images, labels in _batches(pairs, corrupt=corrupt, **settings):
            np.testing.assert_array_equal(images, expected[labels])


def test_order_of_images_is_what_it_was(pairs):
    clean, noisy = _batches(pairs, epochs=2), _batches(pairs, epochs=2, corrupt=_noise("all_noise"))
    for (_, a), (_, b) in zip(clean, noisy, strict=True):
        np.testing.assert_array_equal(a, b)
    spec = training_batches(
        *pairs, batch_size=5, seed=0, preprocess=_prepare, corrupt=_noise("gaussian:1")
    ).element_spec
    assert spec == (tf.TensorSpec([5, H, W, C], tf.float32), tf.TensorSpec([5], tf.int32))


@pytest.mark.parametrize("augment_first", [True, False])
def test_the_corrupted_data_set_is_augmented(augment_first):
    """Every crop that comes out is one of the corrupted image: its noise moves with it."""

    class Prepare:
        def __init__(self):
            self.augment_first = augment_first

        def __call__(self, images):
            return _prepare(images)

    images = np.full((1, 6, 6, 1), 70, np.uint8)
    corrupt = _noise("gaussian:1")
    expected = corrupt(_prepare(images), [0])
    many = augmenter("flip_crop")(tf.repeat(expected, 5000, axis=0), [1, 2])
    crops = {crop.tobytes() for crop in many.numpy()}
    seen = {
        x.tobytes()
        for x, _ in _batches(
            (images, np.zeros(1, np.int32)),
            batch_size=1,
            augmentation="flip_crop",
            corrupt=corrupt,
            preprocess=Prepare(),
            epochs=30,
        )
    }
    assert len(seen) > 15
    assert seen <= crops


def test_its_random_numbers_are_not_those_of_the_pipeline():
    """Under the same seed, the noise of image k is not what batch k of an epoch samples from."""
    for index in range(5):
        noise = _on(1, "all_noise", seed=7, first=index).ravel()
        for epoch in range(9):
            seed = tf.constant([7, epoch * 2**32 + index], tf.int64)
            samples = tf.random.stateless_normal([H * W * C], seed, alg="philox").numpy()
            assert not np.isclose(noise, samples).any()


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_in_order(pairs, batch_size):
    corrupt = _noise("some_noise:2")
    clean = evaluation_batches(*pairs, batch_size=batch_size, preprocess=_prepare)
    made = corrupt_in_order(clean, corrupt)
    assert made.cardinality() == clean.cardinality()
    assert made.element_spec == clean.element_spec
    expected = corrupt(_prepare(pairs[0]), np.arange(N)).numpy()
    for _ in range(2):
        batches = list(made.as_numpy_iterator())
        np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), expected)
        np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), pairs[1])
