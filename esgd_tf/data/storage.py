"""Write a data set as TFDS records, or let TFDS download it; `prepared` reads the records.

The records of a set are in data_dir/name/version, as TFDS arranges them, with the features and the
version of TFDS' own builder of that name. `tfds.load("cifar10", data_dir=...)` can therefore read
what is written here, and this library can read what TFDS wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds

from esgd_tf.data._tfds import tfds_manners
from esgd_tf.data.archives.raw import RawImages, RawSplit
from esgd_tf.data.catalog import Entry
from esgd_tf.data.errors import DataError, plain_reason


def write(raw: RawImages, entry: Entry, data_dir: Path) -> Path:
    """Store a set as TFDS records. TFDS shows progress bars on standard error.

    Args:
        raw: RawImages. The images.
        entry: Entry. The data set that they belong to.
        data_dir: Path. The TFDS folder to write under. It must not hold this set already.

    Returns:
        The folder of the records, data_dir/name/version.

    Raises:
        OSError: The records cannot be written.
    """
    features: dict[str, tfds.features.FeatureConnector] = {
        "image": tfds.features.Image(shape=entry.image_shape),
        "label": tfds.features.ClassLabel(names=list(entry.label_names)),
    }
    if entry.name.startswith("cifar"):
        features["id"] = tfds.features.Text()
    if entry.coarse_names:
        features["coarse_label"] = tfds.features.ClassLabel(names=list(entry.coarse_names))
    with tfds_manners():
        try:
            builder = tfds.dataset_builders.store_as_tfds_dataset(
                name=entry.name,
                version=entry.version,
                features=tfds.features.FeaturesDict(features),
                split_datasets={
                    "train": _examples(raw.train, "train", features),
                    "test": _examples(raw.test, "test", features),
                },
                data_dir=str(data_dir),
                description=entry.description,
                homepage=entry.homepage,
                citation=entry.citation,
            )
        except Exception as error:
            # TFDS wraps the errors of TensorFlow's file system layer in exceptions of its own.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError | tf.errors.OpError):
                cause = cause.__cause__
            if isinstance(cause, tf.errors.OpError):
                # The message is "PATH; No space left on device", with a temporary path.
                raise OSError(plain_reason(cause).rpartition("; ")[2]) from error
            if cause is not None and cause is not error:
                raise cause from error
            raise
    return Path(builder.data_dir)


def _examples(
    split: RawSplit, name: str, features: dict[str, tfds.features.FeatureConnector]
) -> Iterator[tuple[int, dict[str, object]]]:
    # TFDS orders records by a hash of the key: the number of the image, as in its own builders.
    for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        example: dict[str, object] = {"image": image, "label": int(label)}
        if "id" in features:
            example["id"] = f"{name}_{i:05d}"
        if split.coarse_labels is not None:
            example["coarse_label"] = int(split.coarse_labels[i])
        yield i, example


def download(entry: Entry, data_dir: Path) -> Path:
    """Let TFDS download and prepare a set.

    Args:
        entry: Entry. What to download.
        data_dir: Path. The TFDS folder to write under. Archives are kept in its folder `downloads`.

    Returns:
        The folder of the records.

    Raises:
        DataError: The download or the preparation failed.
    """
    try:
        with tfds_manners():
            builder = tfds.builder(entry.name, data_dir=str(data_dir))
            builder.download_and_prepare()
    except Exception as error:
        # Sockets, HTTP, checksums and disks each fail with exceptions of their own.
        raise DataError(
            f"TFDS could not download {entry.name} into {data_dir} "
            f"({plain_reason(error)}); get the archives by hand from {entry.homepage} and name "
            "their folder with --raw_dir."
        ) from error
    return Path(builder.data_dir)
