"""Corrupted image data: what a network can memorise although there is little or nothing to learn.

With K classes, images x_i of h x w pixels and labels y_i in 0 ... K - 1:

| kind | what becomes of (x_i, y_i) | training | test |
|---|---|---|---|
| double | x_i beside x_p(i), an image [h, 2 w]; the label is (y_i + y_p(i)) mod K | yes | yes |
| scrambled | y_p(i): the labels permuted, as many of each class as before | yes | no |
| label_noise:r | with probability r, one of the K - 1 OTHER labels, each as likely | yes | no |
| all_noise | x_i = z_i | yes | no |
| some_noise:k | x_i = z_i on k rows and k columns, the same ones in all images | yes | no |
| gaussian:s | x_i + s z_i | yes | no |
| pixel_shuffle | the pixels of x_i in another order, the same for all images | yes | yes |
| random_pixels | the pixels of x_i in another order, its own for each image | yes | no |

p is a permutation of the split, and z_i is N(0, I), both sampled once: the noise of image i is a
function of (seed, i), the same in every epoch, whatever the order of the batches. So this is a
data set like any other, and can be memorised.

The noise kinds act on preprocessed inputs: under "meanstd" 1 is the standard deviation of the
data, as in the original, which samples after standardising. The others act on bytes and labels.

Sources: double, scrambled, all_noise and some_noise are those of load-data.lua of the released
elementary-walkers code, where "double" takes the labels of other images than it shows: here it is
what was meant. label_noise, gaussian inputs, pixel_shuffle and random_pixels are after Zhang et
al. 2017, "Understanding deep learning requires rethinking generalization" (arXiv 1611.03530).

Note:
    Zhang et al. replace a label by any label, the right one too, with probability p: that is
    label_noise at the rate r = p (K - 1) / K. Here r is the expected share of wrong labels, so
    labels say nothing at r = (K - 1) / K, and at r = 1 they say what an image is not.
    They corrupt test inputs too in "random pixels" and "Gaussian"; here the test set stays as it
    is, as in the original's noise.

Nothing here imports TensorFlow before it is needed: flags can be checked at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esgd_tf.data.errors import DataError
from esgd_tf.data.sources import ImageData


@dataclasses.dataclass(frozen=True)
class _Kind:
    amount: str = ""  # What its number is; none where this is empty.
    allowed: str = ""
    highest: float = math.inf
    whole: bool = False
    default: float | None = None
    moves_pixels: bool = False
    draws_noise: bool = False
    all_images: bool = False  # Test images too.


# The place of a kind seeds its random numbers: new ones go to the end.
_KINDS: dict[str, _Kind] = {
    "double": _Kind(moves_pixels=True, all_images=True),
    "scrambled": _Kind(),
    "label_noise": _Kind("rate", "from 0 to 1", highest=1.0),
    "all_noise": _Kind(draws_noise=True),
    "some_noise": _Kind(
        "number of rows and columns",
        "a whole number, 0 or more",
        whole=True,
        default=7.0,
        draws_noise=True,
    ),
    "gaussian": _Kind("standard deviation", "a finite number, 0 or more", draws_noise=True),
    "pixel_shuffle": _Kind(moves_pixels=True, all_images=True),
    "random_pixels": _Kind(moves_pixels=True),
}
CORRUPTIONS: tuple[str, ...] = tuple(_KINDS)

TRAIN, TEST, BOTH = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One corruption; `str` gives what `parse_corruptions` reads.

    Attributes:
        kind: One of `CORRUPTIONS`.
        amount: The r, k or s of "label_noise", "some_noise" and "gaussian", where 0 changes
            nothing; 0 for all others.

    Raises:
        DataError: There is no such kind, or its number makes no sense.
    """

    kind: str
    amount: float = 0.0

    def __post_init__(self) -> None:
        kind = _known(self.kind)
        if not kind.amount and self.amount != 0:
            raise DataError(f"{self.kind} takes no number, and has {self.amount}.")
        good = 0 <= self.amount <= kind.highest and math.isfinite(self.amount)
        if not good or (kind.whole and self.amount != int(self.amount)):
            raise _bad_amount(self.kind, self.amount)

    @property
    def draws_noise(self) -> bool:
        """Whether it acts on preprocessed inputs, and `corrupt_data` passes it over."""
        return _KINDS[self.kind].draws_noise

    @property
    def all_images(self) -> bool:
        """Whether test images, and so whatever a trained network is to see, are like that too."""
        return _KINDS[self.kind].all_images

    def __str__(self) -> str:
        if not _KINDS[self.kind].amount:
            return self.kind
        # "+" joins corruptions, and Python writes it into large numbers.
        number = repr(float(self.amount)).removesuffix(".0").replace("e+", "e")
        return f"{self.kind}:{number}"


def parse_corruptions(text: str) -> tuple[Corruption, ...]:
    """Read "none", a corruption such as "label_noise:0.2", or several joined by "+".

    "some_noise" alone is "some_noise:7"; "label_noise" and "gaussian" must have their number.

    Args:
        text: str. The corruptions, such as "double+label_noise:0.2", or "none".

    Returns:
        The corruptions in the order in which they are applied; none of them for "none".

    Raises:
        DataError: The text is none of that. Its own text is one sentence.
    """
    if text.strip() == "none":
        return ()
    corruptions = tuple(_parse_one(part.strip()) for part in text.split("+"))
    check_sequence(corruptions)
    return corruptions


def corrupt_data(
    images: ImageData, corruptions: Sequence[Corruption], *, seed: int = 0
) -> ImageData:
    """Apply what acts on bytes and labels; `input_corruption` does the rest.

    Call it before `preprocessor`, which then fits what the network will see. The same seed
    corrupts nested sets: labels that are wrong at one rate are so, and the same, at every higher.

    Args:
        images: ImageData. The data set, whose arrays are not written to.
        corruptions: sequence of Corruption. What to do, in this order. Noise on inputs is passed
            over, but checked.
        seed: int of 64 bits. Each kind of corruption has its own random numbers under it. Defaults
            to 0.

    Returns:
        The corrupted set, with the same numbers of images and classes. "double" makes images
        [n, h, 2 w, c], and names its classes "sum 0" ... "sum K - 1": what they mean now.

    Raises:
        DataError: The seed does not fit, noise is followed by a kind that moves pixels, a kind
            stands twice, labels of a single class cannot be wrong, or an image has fewer than k
            rows or columns.
    """
    check_sequence(corruptions)
    check_seed(seed)
    act: dict[str, Callable[[ImageData, float, int], ImageData]] = {
        "double": _double,
        "scrambled": _scrambled,
        "label_noise": _label_noise,
        "pixel_shuffle": _pixel_shuffle,
        "random_pixels": _random_pixels,
    }
    for corruption in corruptions:
        if corruption.kind in act:
            images = act[corruption.kind](images, corruption.amount, seed)
        elif corruption.kind == "some_noise":
            check_lines(int(corruption.amount), images.train_images.shape[1:3])
    return images


def corrupt_new_images(
    images: NDArray[np.uint8], corruptions: Sequence[Corruption], *, seed: int = 0
) -> NDArray[np.uint8]:
    """Do to images of the user's what `corrupt_data` did to the test images, where it can be done.

    That is the order of the pixels. What the pair of "double" is they must show themselves: two
    images side by side.

    Args:
        images: uint8 array of shape [n, h, w, c], or [n, h, 2 w, c] if "double" is among the
            corruptions. The images.
        corruptions: sequence of Corruption. What was done to the data set, in this order.
        seed: int of 64 bits. The seed of the data set's corruption. Defaults to 0.

    Returns:
        Images of the same shape.

    Raises:
        DataError: The seed does not fit.
    """
    check_seed(seed)
    kinds = [corruption.kind for corruption in corruptions]
    if "pixel_shuffle" not in kinds:
        return images
    if "double" in kinds[kinds.index("pixel_shuffle") :]:  # paired after the shuffling
        halves = np.split(images, 2, axis=2)
        return np.concatenate([_shuffled(half, seed) for half in halves], axis=2)
    return _shuffled(images, seed)


def soft_labels(labels: Any, classes: int, p: float, q: float) -> Any:
    """Return p at the place of each label and q everywhere else, a target for cross-entropy.

    From elementary-walkers, with p = 0.91 and q = 0.01 for 10 classes, on training labels only.
    p = 1, q = 0 are one-hot labels.

    Args:
        labels: array or tensor of integers, of shape [n]. The classes, in 0 ... K - 1.
        classes: int >= 1. K, the number of classes.
        p: float in [0, 1]. The weight of the true class.
        q: float in [0, 1]. The weight of every other class; p + (K - 1) q is 1.

    Returns:
        A float32 tensor [n, K].

    Raises:
        DataError: p and q are no probabilities. TensorFlow's cross-entropy from logits takes the
            sum of the target for 1: with another its gradient is not that of its value.
    """
    import tensorflow as tf  # noqa: PLC0415 - takes seconds

    in_range = 0 <= p <= 1 and 0 <= q <= 1
    if not in_range or not math.isclose(p + (classes - 1) * q, 1.0, abs_tol=1e-6):
        raise DataError(
            f"Soft labels must sum to 1, and {p:g} once and {q:g} {classes - 1} times do not: "
            "choose p from 0 to 1 and q = (1 - p) / (classes - 1)."
        )
    return tf.one_hot(labels, classes, on_value=float(p), off_value=float(q), dtype=tf.float32)


# ---- reading and checking ------------------------------------------------------------------------


def _parse_one(text: str) -> Corruption:
    name, colon, number = text.partition(":")
    kind = _known(name)
    if not kind.amount:
        if colon:
            raise DataError(f"{name} takes no number, and has {number!r}.")
        return Corruption(name)
    if not colon:
        if kind.default is None:
            raise DataError(f"{name} needs its {kind.amount}, as in {name}:0.2.")
        return Corruption(name, kind.default)
    try:
        amount = float(number)
    except ValueError:
        raise _bad_amount(name, number) from None
    return Corruption(name, amount)


def _known(name: str) -> _Kind:
    if name not in _KINDS:
        raise DataError(
            f"There is no corruption {name!r}; choose none, or one or several, joined by '+', of "
            f"{', '.join(_KINDS)}."
        )
    return _KINDS[name]


def _bad_amount(name: str, amount: float | str) -> DataError:
    kind = _KINDS[name]
    return DataError(f"The {kind.amount} of {name} must be {kind.allowed}, not {amount!r}.")


def check_sequence(corruptions: Sequence[Corruption]) -> None:
    """Raise DataError for what cannot be done in this order, or stands there twice."""
    seen: set[str] = set()
    noise = ""
    for corruption in corruptions:
        if corruption.kind in seen:
            raise DataError(f"The corruption {corruption.kind} stands there twice.")
        seen.add(corruption.kind)
        if corruption.draws_noise:
            noise = corruption.kind
        elif noise and _KINDS[corruption.kind].moves_pixels:
            raise DataError(
                f"{corruption.kind} acts before preprocessing and {noise} after it: "
                f"write {corruption.kind} first."
            )


def check_seed(seed: int) -> None:
    """Raise DataError for a seed of more than 64 bits."""
    if not -(2**63) <= seed < 2**63:
        raise DataError(f"The seed must fit 64 bits, and {seed} does not.")


def check_lines(count: int, shape: Sequence[int]) -> None:
    """Raise DataError if images of shape (h, w) have not so many rows or columns."""
    if count > min(shape):
        raise DataError(
            f"There are no {count} rows and {count} columns for some_noise in an image of "
            f"{shape[0]} x {shape[1]}."
        )


# ---- on bytes and labels -------------------------------------------------------------------------


def generator(seed: int, kind: str, split: int) -> np.random.Generator:
    """Return the random numbers of one kind for one split: TRAIN, TEST, or BOTH."""
    sequence = np.random.SeedSequence(seed % 2**64, spawn_key=(CORRUPTIONS.index(kind), split))
    return np.random.Generator(np.random.PCG64(sequence))


def _double(data: ImageData, amount: float, seed: int) -> ImageData:
    del amount

    def pair(
        images: NDArray[np.uint8], labels: NDArray[np.int32], split: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        other = generator(seed, "double", split).permutation(len(labels))
        sums = (labels + labels[other]) % data.num_classes
        return np.concatenate([images, images[other]], axis=2), sums.astype(labels.dtype)

    train_images, train_labels = pair(data.train_images, data.train_labels, TRAIN)
    test_images, test_labels = pair(data.test_images, data.test_labels, TEST)
    return dataclasses.replace(
        data,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        label_names=tuple(f"sum {k}" for k in range(data.num_classes)),
    )


def _scrambled(data: ImageData, amount: float, seed: int) -> ImageData:
    del amount
    rng = generator(seed, "scrambled", TRAIN)
    return dataclasses.replace(data, train_labels=rng.permutation(data.train_labels))


def _label_noise(data: ImageData, amount: float, seed: int) -> ImageData:
    labels, others = data.train_labels, data.num_classes - 1
    if others < 1:
        raise DataError("label_noise needs at least 2 classes to choose a wrong one from.")
    # Both random numbers for every label, whatever the rate: so the wrong ones are nested, and
    # those of the first n images do not depend on how many follow.
    coins, samples = generator(seed, "label_noise", TRAIN).random((len(labels), 2)).T
    shifts = 1 + np.floor(samples * others).astype(labels.dtype)
    wrong = (labels + shifts) % data.num_classes
    noisy = np.where(coins < amount, wrong, labels).astype(labels.dtype)
    return dataclasses.replace(data, train_labels=noisy)


def _pixel_shuffle(data: ImageData, amount: float, seed: int) -> ImageData:
    del amount
    return dataclasses.replace(
        data,
        train_images=_shuffled(data.train_images, seed),
        test_images=_shuffled(data.test_images, seed),
    )


def _shuffled(images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Return images with their pixels in the one order that belongs to their size and the seed."""
    _, height, width, channels = images.shape
    order = generator(seed, "pixel_shuffle", BOTH).permutation(height * width)
    # Not -1 for the channels: there may be no test images.
    flat = images.reshape(len(images), height * width, channels)
    return np.take(flat, order, axis=1).reshape(images.shape)


def _random_pixels(data: ImageData, amount: float, seed: int) -> ImageData:
    del amount
    rng = generator(seed, "random_pixels", TRAIN)
    shuffled = np.empty_like(data.train_images)
    # A pixel goes with all its channels.
    for image, target in zip(data.train_images, shuffled, strict=True):
        flat = image.reshape(-1, image.shape[2])
        target[:] = flat[rng.permutation(len(flat))].reshape(image.shape)
    return dataclasses.replace(data, train_images=shuffled)
