"""Corruptions of image data: which there are, how they are written, what cannot be combined.

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
function of (seed, i), the same in every epoch, whatever the order of the batches. A corrupted data
set is therefore a fixed data set, which a network can memorise although it has little or nothing
to learn from it.

The noise kinds act on preprocessed inputs: under "meanstd" 1 is the standard deviation of the
data, as in the original, which samples after standardising. `input_noise` applies them. The other
kinds act on bytes and labels, and `corrupted_data` applies them.

Sources: double, scrambled, all_noise and some_noise are those of load-data.lua of the released
elementary-walkers code. Its "double" adds the labels of other images than the two that it shows;
here the label is the sum for the two images shown. label_noise, gaussian inputs, pixel_shuffle and
random_pixels are after Zhang et al. 2017, "Understanding deep learning requires rethinking
generalization" (arXiv 1611.03530).

Note:
    Zhang et al. replace a label by any label, the right one too, with probability p: that is
    label_noise at the rate r = p (K - 1) / K. Here r is the expected share of wrong labels, so
    labels carry no information at r = (K - 1) / K, and at r = 1 they name a class that the image
    does not belong to.
    They corrupt test inputs too in "random pixels" and "Gaussian"; here the test set stays as it
    is, as in the original's noise.

Nothing here imports TensorFlow, so that flags can be checked at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from esgd_tf.data.errors import DataError

__all__ = [
    "BOTH",
    "CORRUPTIONS",
    "TEST",
    "TRAIN",
    "Corruption",
    "check_lines",
    "check_seed",
    "check_sequence",
    "generator",
    "parse_corruptions",
]


@dataclasses.dataclass(frozen=True)
class _Kind:
    amount: str = ""  # The meaning of its number. A kind where this is empty takes no number.
    allowed: str = ""  # The numbers that it may have, in words.
    highest: float = math.inf
    whole: bool = False
    default: float | None = None
    moves_pixels: bool = False
    is_noise: bool = False
    all_images: bool = False  # Test images are corrupted too.


# The random numbers of a kind depend on its position here: new kinds are added at the end.
_KINDS: dict[str, _Kind] = {
    "double": _Kind(moves_pixels=True, all_images=True),
    "scrambled": _Kind(),
    "label_noise": _Kind("rate", "from 0 to 1", highest=1.0),
    "all_noise": _Kind(is_noise=True),
    "some_noise": _Kind(
        "number of rows and columns",
        "a whole number, 0 or more",
        whole=True,
        default=7.0,
        is_noise=True,
    ),
    "gaussian": _Kind("standard deviation", "a finite number, 0 or more", is_noise=True),
    "pixel_shuffle": _Kind(moves_pixels=True, all_images=True),
    "random_pixels": _Kind(moves_pixels=True),
}
CORRUPTIONS: tuple[str, ...] = tuple(_KINDS)

# The split that random numbers are for; BOTH is for a permutation that the two splits share.
TRAIN, TEST, BOTH = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One corruption; `str` gives what `parse_corruptions` reads.

    Attributes:
        kind: One of `CORRUPTIONS`.
        amount: The r, k or s of "label_noise", "some_noise" or "gaussian", where 0 changes
            nothing. The other kinds have no number, and 0 here.

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
    def is_noise(self) -> bool:
        """Whether it is noise on preprocessed inputs, which `corrupt_data` leaves to others."""
        return _KINDS[self.kind].is_noise

    @property
    def all_images(self) -> bool:
        """Whether it changes test images too, and so every image that a network is shown."""
        return _KINDS[self.kind].all_images

    def __str__(self) -> str:
        if not _KINDS[self.kind].amount:
            return self.kind
        # Python writes 1e20 as "1e+20", and "+" is what joins corruptions.
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
        DataError: The text is neither. The message is one sentence.
    """
    if text.strip() == "none":
        return ()
    corruptions = tuple(_parse_one(part.strip()) for part in text.split("+"))
    check_sequence(corruptions)
    return corruptions


def check_sequence(corruptions: Sequence[Corruption]) -> None:
    """Check that corruptions can be applied in this order.

    Args:
        corruptions: sequence of Corruption. The corruptions, in their order.

    Raises:
        DataError: A kind is named twice, or one that moves pixels follows noise on inputs.
    """
    seen: set[str] = set()
    noise = ""
    for corruption in corruptions:
        if corruption.kind in seen:
            raise DataError(f"The corruption {corruption.kind} stands there twice.")
        seen.add(corruption.kind)
        if corruption.is_noise:
            noise = corruption.kind
        elif noise and _KINDS[corruption.kind].moves_pixels:
            raise DataError(
                f"{corruption.kind} acts before preprocessing and {noise} after it: "
                f"write {corruption.kind} first."
            )


def check_seed(seed: int) -> None:
    """Check the seed of a corruption.

    Args:
        seed: int. The seed.

    Raises:
        DataError: The seed does not fit 64 bits.
    """
    if not -(2**63) <= seed < 2**63:
        raise DataError(f"The seed must fit 64 bits, and {seed} does not.")


def check_lines(count: int, shape: Sequence[int]) -> None:
    """Check that images are large enough for "some_noise".

    Args:
        count: int >= 0. The number of rows and of columns that become noise.
        shape: sequence of two ints. Height and width of the images.

    Raises:
        DataError: The images have fewer rows or columns.
    """
    if count > min(shape):
        raise DataError(
            f"There are no {count} rows and {count} columns for some_noise in an image of "
            f"{shape[0]} x {shape[1]}."
        )


def generator(seed: int, kind: str, split: int) -> np.random.Generator:
    """Return the random numbers of one kind for one split.

    Args:
        seed: int of 64 bits. The seed of all corruptions.
        kind: str. One of `CORRUPTIONS`.
        split: int. TRAIN, TEST or BOTH.
    """
    sequence = np.random.SeedSequence(seed % 2**64, spawn_key=(CORRUPTIONS.index(kind), split))
    return np.random.Generator(np.random.PCG64(sequence))


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
