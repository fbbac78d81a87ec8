"""The data set in the repository: a stratified subset of Fashion-MNIST.

`python3 -m esgd_tf.data.make_fashion_mnist_small` wrote the records in the repository with
`stratified`; `load` uses the same function where it has the full archives but not the records.
"""

from __future__ import annotations

import numpy as np

from esgd_tf.data.archives.raw import RawImages, RawSplit
from esgd_tf.data.catalog import Entry

# The full data set that each subset is taken from.
SUBSETS = {"fashion_mnist_small": "fashion_mnist"}
_SEED = 20161104


def stratified(raw: RawImages, entry: Entry) -> RawImages:
    """Sample a subset with the entry's number of images in each class.

    Args:
        raw: RawImages. The full data set.
        entry: Entry. The subset; its `train_counts` and `test_counts` say how many images of each
            class.

    Returns:
        The sampled images in their original order. They are the same in every call.
    """
    rng = np.random.Generator(np.random.PCG64(_SEED))
    return RawImages(
        train=_sampled(raw.train, entry.train_counts, rng),
        test=_sampled(raw.test, entry.test_counts, rng),
    )


def _sampled(split: RawSplit, counts: tuple[int, ...], rng: np.random.Generator) -> RawSplit:
    chosen = [
        rng.permutation(np.flatnonzero(split.labels == label))[:count]
        for label, count in enumerate(counts)
    ]
    order = np.sort(np.concatenate(chosen))
    return RawSplit(images=split.images[order], labels=split.labels[order])
