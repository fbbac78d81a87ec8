import dataclasses
import math

import numpy as np
import pytest

from esgd_tf.data import (
    Corruption,
    DataError,
    ImageData,
    corrupt_data,
    corrupt_new_images,
    parse_corruptions,
)

N, M, H, W, C, K = 60, 20, 3, 4, 2, 5
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture
def data(tmp_path):
    """Images that say who they are: value j at image j's first pixel, each pixel its place."""

    def images(count, first):
        pixels = np.arange(H * W, dtype=np.uint8).reshape(1, H, W, 1) * 10
        both = np.concatenate([pixels + 100, pixels], axis=3).repeat(count, axis=0)
        both[:, 0, 0, 0] = first + np.arange(count)
        return both

    return ImageData(
        name="toy",
        train_images=images(N, 0),
        train_labels=(np.arange(N) % K).astype(np.int32),
        test_images=images(M, N),
        test_labels=(np.arange(M) * 3 % K).astype(np.int32),
        num_classes=K,
        label_names=tuple("01234"),
        folder=tmp_path,
    )


def _corrupt(data, text, seed=0):
    """Corrupt, and hold what is true of every corruption."""
    before = {name: getattr(data, name).copy() for name in ARRAYS}
    made = corrupt_data(data, parse_corruptions(text), seed=seed)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(data, name), array, err_msg="wrote to its input")
        assert getattr(made, name).dtype == array.dtype
        assert len(getattr(made, name)) == len(array)
        assert getattr(made, name).flags.c_contiguous
    assert made.num_classes == len(made.label_names) == K
    assert (made.name, made.folder) == (data.name, data.folder)
    return made


def _changed(before, after):
    """The names of the arrays that differ."""
    return {n for n in ARRAYS if not np.array_equal(getattr(before, n), getattr(after, n))}


# ---- which arrays, under which seed -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "arrays"),
    [
        ("none", set()),
        ("double", set(ARRAYS)),
        ("scrambled", {"train_labels"}),
        ("label_noise:0.5", {"train_labels"}),
        ("label_noise:0", set()),
        ("all_noise", set()),
        ("some_noise:2", set()),
        ("gaussian:1", set()),
        ("pixel_shuffle", {"train_images", "test_images"}),
        ("random_pixels", {"train_images"}),
    ],
)
def test_scope(data, text, arrays):
    assert _changed(data, _corrupt(data, text)) == arrays


@pytest.mark.parametrize(
    "text", ["double", "scrambled", "label_noise:0.5", "pixel_shuffle", "random_pixels"]
)
def test_seeds(data, text):
    first = _corrupt(data, text, seed=3)
    assert not _changed(first, _corrupt(data, text, seed=3))
    others = [_corrupt(data, text, seed=s) for s in (4, -3, 2**62, 3 + 2**32)]
    for i, other in enumerate(others):
        assert all(_changed(other, one) for one in [first, *others[:i]])


def test_each_kind_has_its_own_random_numbers(data):
    """Under one seed, neither kinds nor splits share a permutation."""
    partners = _corrupt(data, "double").train_images[:, 0, W, 0]
    scrambled = dataclasses.replace(data, train_labels=np.arange(N, dtype=np.int32))
    scrambled = _corrupt(scrambled, "scrambled").train_labels
    assert not np.array_equal(partners, scrambled)
    twins = dataclasses.replace(data, test_images=data.train_images, test_labels=data.train_labels)
    twins = _corrupt(twins, "double")
    assert not np.array_equal(twins.train_images, twins.test_images)


# ---- one by one ---------------------------------------------------------------------------------


def test_double_is_two_images_of_a_split_and_their_sum(data):
    made = _corrupt(data, "double")
    for images, labels, sources, numbers, first in (
        (made.train_images, made.train_labels, data.train_images, data.train_labels, 0),
        (made.test_images, made.test_labels, data.test_images, data.test_labels, N),
    ):
        assert images.shape == (len(sources), H, 2 * W, C)
        left, right = images[:, :, :W], images[:, :, W:]
        np.testing.assert_array_equal(left, sources)
        partners = right[:, 0, 0, 0].astype(int) - first
        assert sorted(partners) == list(range(len(sources)))
        np.testing.assert_array_equal(right, sources[partners])
        for label, a, b in zip(labels, numbers, numbers[partners], strict=True):
            assert label == (a + b if a + b < K else a + b - K)


def test_double_names_its_classes_by_what_they_are(data):
    assert _corrupt(data, "double").label_names == ("sum 0", "sum 1", "sum 2", "sum 3", "sum 4")
    assert _corrupt(data, "pixel_shuffle").label_names == data.label_names


def test_scrambled_keeps_the_class_counts(data):
    uneven = dataclasses.replace(
        data, train_labels=np.repeat([0, 1, 2], [40, 15, 5]).astype(np.int32)
    )
    labels = _corrupt(uneven, "scrambled").train_labels
    assert list(np.bincount(labels)) == [40, 15, 5]
    assert 0 < (labels[:40] != 0).sum() <= 20


def _large(data, count=20_000):
    return dataclasses.replace(
        data,
        train_images=np.zeros((count, 1, 1, 1), np.uint8),
        train_labels=(np.arange(count) % K).astype(np.int32),
    )


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_label_noise_is_the_share_of_wrong_labels(data, rate):
    data = _large(data)
    shifts = (_corrupt(data, f"label_noise:{rate}").train_labels - data.train_labels) % K
    counts = np.bincount(shifts, minlength=K)
    expected = np.array([1 - rate, *[rate / (K - 1)] * (K - 1)]) * len(shifts)
    # Chi squared with 4 degrees of freedom: beyond 23 once in ten thousand.
    assert ((counts - expected) ** 2 / expected).sum() < 23
    # Every class is hit alike.
    wrong = [(shifts[label::K] != 0).mean() for label in range(K)]
    np.testing.assert_allclose(wrong, rate, atol=4 * math.sqrt(rate * (1 - rate) / 4000))


def test_label_noise_at_its_ends(data):
    assert not (_corrupt(data, "label_noise:1").train_labels == data.train_labels).any()
    two = dataclasses.replace(data, num_classes=2, train_labels=data.train_labels % 2)
    flipped = corrupt_data(two, parse_corruptions("label_noise:1")).train_labels
    np.testing.assert_array_equal(flipped, 1 - two.train_labels)
    one = dataclasses.replace(data, num_classes=1, train_labels=data.train_labels * 0)
    with pytest.raises(DataError, match="at least 2 classes"):
        corrupt_data(one, parse_corruptions("label_noise:0.5"))


def test_label_noise_is_nested(data):
    """Wrong at one rate is wrong in the same way at a higher one, and in a smaller data set."""
    clean = data.train_labels
    low, high = (_corrupt(data, f"label_noise:{r}").train_labels for r in (0.3, 0.6))
    assert 0 < (low != clean).sum() < (high != clean).sum()
    np.testing.assert_array_equal(high[low != clean], low[low != clean])
    short = dataclasses.replace(
        data, train_images=data.train_images[:30], train_labels=data.train_labels[:30]
    )
    np.testing.assert_array_equal(_corrupt(short, "label_noise:0.6").train_labels, high[:30])


def test_pixel_shuffle_is_one_permutation(data):
    data = _at_their_places(data)
    made = _corrupt(data, "pixel_shuffle")
    order = made.train_images[0, :, :, 1].ravel() // 10
    assert sorted(order) == list(range(H * W))
    assert list(order) != list(range(H * W))
    for images, sources in (
        (made.train_images, data.train_images),
        (made.test_images, data.test_images),
    ):
        flat = sources.reshape(-1, H * W, C)
        np.testing.assert_array_equal(images.reshape(-1, H * W, C), flat[:, order])


def test_random_pixels_is_a_permutation_for_each_image(data):
    data = _at_their_places(data)
    made = _corrupt(data, "random_pixels").train_images.reshape(N, H * W, C)
    orders = made[:, :, 1] // 10
    for order in orders:
        assert sorted(order) == list(range(H * W))
    # Both channels went the same way.
    np.testing.assert_array_equal(made[:, :, 0], 100 + made[:, :, 1])
    assert len({tuple(order) for order in orders}) == N


def _at_their_places(data):
    """Let channel 0 say where a pixel was, as channel 1 does."""
    train, test = data.train_images.copy(), data.test_images.copy()
    train[:, 0, 0, 0] = test[:, 0, 0, 0] = 100
    return dataclasses.replace(data, train_images=train, test_images=test)


def test_several_are_applied_in_their_order(data):
    together = _corrupt(data, "double+label_noise:0.5+pixel_shuffle")
    apart = data
    for text in ("double", "label_noise:0.5", "pixel_shuffle"):
        apart = _corrupt(apart, text)
    assert not _changed(together, apart)
    # Sums of wrong labels are not wrong sums.
    assert _changed(_corrupt(data, "label_noise:0.5+double"), _corrupt(data, "double+scrambled"))
    assert _changed(
        _corrupt(data, "label_noise:0.5+double"), _corrupt(data, "double+label_noise:0.5")
    ) == {"train_labels"}


@pytest.mark.parametrize(
    "text",
    ["none", "label_noise:0.5", "pixel_shuffle", "pixel_shuffle+double", "double+pixel_shuffle"],
)
def test_new_images_become_what_the_test_images_became(data, text):
    corruptions, seed = parse_corruptions(text), 3
    corrupted = _corrupt(data, text, seed).test_images
    # The pairs, in their order of before.
    paired = _corrupt(data, "double", seed).test_images if "double" in text else data.test_images
    found = corrupt_new_images(paired, corruptions, seed=seed)
    np.testing.assert_array_equal(found, corrupted)
    assert np.array_equal(found, paired) == ("shuffle" not in text)


def test_a_set_without_test_images(data):
    empty = dataclasses.replace(
        data, test_images=data.test_images[:0], test_labels=data.test_labels[:0]
    )
    made = _corrupt(empty, "double+pixel_shuffle")
    assert made.test_images.shape == (0, H, 2 * W, C)


def test_what_cannot_be_done(data):
    with pytest.raises(DataError, match=r"no 4 rows and 4 columns for some_noise .* of 3 x 4"):
        corrupt_data(data, [Corruption("some_noise", 4)])
    with pytest.raises(DataError, match="must fit 64 bits"):
        corrupt_data(data, [], seed=2**63)
    with pytest.raises(DataError, match="twice"):
        corrupt_data(data, [Corruption("scrambled")] * 2)
