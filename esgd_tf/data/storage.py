"""Records on disk: written with TFDS, and read by `prepared`.

A set lies in data_dir/name/version, as TFDS lays it out, with the features and the version of
TFDS' own builder of that name: `tfds.load("cifar10", data_dir=...)` reads what is written here,
and what it wrote is read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from esgd_tf.data._tfds import tfds_manners
from esgd_tf.data.archives.raw import RawImages, RawSplit
from esgd_tf.data.catalog import Entry
from esgd_tf.data.errors import DataError, plain_reason


def write(raw: RawImages, entry: Entry, data_dir: Path) -> Path:
    """Store a set as TFDS records. Shows TFDS' progress bars on standard error.

    Args:
        raw: RawImages. The images.
        entry: Entry. What the images are.
        data_dir: Path. The TFDS folder to write under; nothing prepared may lie there.

    Returns:
        The folder of the records, data_dir/name/version.

    Raises:
        OSError: They cannot be written.
    """
    features: dict[str, Any] = {
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
            # TFDS dresses up what TensorFlow's file system layer raised in exceptions of its own.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError | tf.errors.OpError):
                cause = cause.__cause__
            if isinstance(cause, tf.errors.OpError):
                # "PATH; No space left on device", and the path is a temporary one.
                raise OSError(plain_reason(cause).rpartition("; ")[2]) from error
            if cause is not None and cause is not error:
                raise cause from error
            raise
    return Path(builder.data_dir)


def _examples(
    split: RawSplit, name: str, features: dict[str, Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    # TFDS orders records by a hash of the key: the number of the image, as in its own builders.
    for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        example = {"image": image, "label": int(label)}
        if "id" in features:
            example["id"] = f"{name}_{i:05d}"
        if split.coarse_labels is not None:
            example["coarse_label"] = int(split.coarse_labels[i])
        yield i, example


def download(entry: Entry, data_dir: Path) -> Path:
    """Let TFDS download and prepare a set.

    Args:
        entry: Entry. What to download.
        data_dir: Path. The TFDS folder to write under; archives are kept in its folder `downloads`.

    Returns:
        The folder of the records.

    Raises:
        DataError: It did not work.
    """
    try:
        with tfds_manners():
            builder = tfds.builder(entry.name, data_dir=str(data_dir))
            builder.download_and_prepare()
    except Exception as error:
        # A download fails in as many ways as there are layers: sockets, HTTP, checksums, disks.
        raise DataError(
            f"TFDS could not download {entry.name} into {data_dir} "
            f"({plain_reason(error)}); get the archives by hand from {entry.homepage} and name "
            "their folder with --raw_dir."
        ) from error
    return Path(builder.data_dir)
