"""Read prepared records with TFDS, and check all that TFDS itself does not check."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from numpy.typing import NDArray

from esgd_tf.data._tfds import tfds_manners
from esgd_tf.data.archives.raw import RawImages, RawSplit, check_counts, check_labels
from esgd_tf.data.catalog import Entry
from esgd_tf.data.description import check_description
from esgd_tf.data.errors import DataError, plain_reason
from esgd_tf.data.record_files import is_compressed, unpack

__all__ = ["read"]

Arrays = tuple[NDArray[np.uint8], NDArray[np.int32]]

_READ_BATCH = 1000
_AGAIN = "remove that folder and prepare the set again"


def read(folder: Path, entry: Entry) -> tuple[Arrays, Arrays]:
    """Read all records of a prepared set. Nothing in the folder is ever run as code.

    Shards may be compressed by gzip or zlib, with or without `.gz` at the end of their names; the
    order of the records is that of the uncompressed set.

    Args:
        folder: Path. The folder of the records, data_dir/name/version.
        entry: Entry. The data set that they must be, with its name, features, class names, shapes
            and numbers of images in each class.

    Returns:
        (images, labels) of the train and the test split: uint8 [n, h, w, c] and int32 [n].

    Raises:
        DataError: Files are missing or damaged, or belong to another set.
    """
    check_description(folder, entry)
    builder = _builder(folder, folder, entry)
    with _unpacked(folder, builder, entry) as plain:
        if plain != folder:
            builder = _builder(plain, folder, entry)
        train = _read_split(builder, "train", entry.num_train, folder, entry)
        test = _read_split(builder, "test", entry.num_test, folder, entry)
    # Sets whose images have the same shape differ in the numbers of images in each class.
    check_counts(RawImages(train, test), entry, folder)
    return (train.images, train.labels), (test.images, test.labels)


def _builder(place: Path, folder: Path, entry: Entry) -> tfds.core.DatasetBuilder:
    """Return TFDS' builder of the records in `place`; errors name `folder` instead."""
    try:
        with tfds_manners():
            builder = tfds.builder_from_directory(place)
            image, label = (builder.info.features[name] for name in ("image", "label"))
            shape, kind = tuple(image.shape), tf.as_dtype(image.dtype)
            names, classes = tuple(label.names), label.num_classes
            counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    except Exception as error:
        # TFDS parses these files with asserts, key look-ups and JSON and protobuf readers.
        raise DataError(
            f"The description of {entry.name} in {folder} is damaged ({plain_reason(error)}); "
            "remove that folder and prepare the set again."
        ) from error
    expected = {"train": entry.num_train, "test": entry.num_test}
    if shape != entry.image_shape or any(counts.get(s) != n for s, n in expected.items()):
        raise DataError(
            f"{folder} does not hold {entry.name}: its images are {shape} and its splits {counts}, "
            f"not {entry.image_shape} and {expected}; {_AGAIN}."
        )
    if kind != tf.uint8:
        raise DataError(
            f"{folder} does not hold {entry.name}: the values of its images are {kind.name} and "
            f"not uint8; {_AGAIN}."
        )
    # TFDS names classes by their numbers where no names were stored.
    if classes != entry.num_classes or names not in (entry.label_names, _numbers(classes)):
        raise DataError(
            f"{folder} does not hold {entry.name}: its {classes} classes are "
            f"{', '.join(names[:3])}, ... and not the {entry.num_classes} classes "
            f"{', '.join(entry.label_names[:3])}, ...; {_AGAIN}."
        )
    return builder


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


@contextlib.contextmanager
def _unpacked(folder: Path, builder: tfds.core.DatasetBuilder, entry: Entry) -> Iterator[Path]:
    """Yield a folder with uncompressed shards: the set's own, or a temporary copy."""
    shards = [Path(p) for s in ("train", "test") for p in builder.info.splits[s].filepaths]
    named = {p: p if p.exists() else p.with_name(p.name + ".gz") for p in shards}
    packed = {path for path, file in named.items() if is_compressed(file)}
    if not packed:
        yield folder
        return
    # A PNG image is hardly longer than its pixels, so a longer record is refused.
    images = max(entry.num_train, entry.num_test)
    limit = images * (2 * math.prod(entry.image_shape) + 4096)
    with tempfile.TemporaryDirectory(prefix=f"{entry.name}-") as name:
        copy = Path(name)
        for file in folder.iterdir():
            if file.suffix in (".json", ".txt") and file.is_file():
                shutil.copy(file, copy)
        for path in shards:
            if path in packed:
                unpack(named[path], copy / path.name, limit)
            elif path.exists():
                (copy / path.name).symlink_to(path.absolute())
        yield copy


def _read_split(
    builder: tfds.core.DatasetBuilder, split: str, count: int, folder: Path, entry: Entry
) -> RawSplit:
    images = np.empty((count, *entry.image_shape), np.uint8)
    labels = np.empty(
        (count,), np.int64
    )  # as in the records; in 32 bits a label of 2^33 would become 0
    done = 0
    try:
        with tfds_manners(), tf.device("/CPU:0"):
            records = builder.as_dataset(
                split=split,
                shuffle_files=False,
                decoders=tfds.decode.PartialDecoding({"image": True, "label": True}),
                read_config=tfds.ReadConfig(try_autocache=False),
            ).batch(_READ_BATCH)
            for batch in records:
                size = len(batch["label"])
                images[done : done + size] = batch["image"].numpy()
                labels[done : done + size] = batch["label"].numpy()
                done += size
    except (tf.errors.OpError, ValueError) as error:
        culprit = _damaged_file(builder.info.splits[split].filepaths, folder)
        raise DataError(
            f"{culprit} is damaged or missing ({plain_reason(error)}); remove the folder "
            f"{folder} and prepare the set again."
        ) from error
    if done != count:
        raise DataError(
            f"The {split} records in {folder} are damaged: {done} of {count} images; {_AGAIN}."
        )
    return RawSplit(
        images, check_labels(labels, entry.num_classes, folder, f"The {split} split", then=_AGAIN)
    )


def _damaged_file(files: list[Path], folder: Path) -> Path:
    """Return the record file that cannot be read to its end, or the folder if all can."""
    for file in files:
        try:
            for _ in tf.data.TFRecordDataset(str(file)):
                pass
        except tf.errors.OpError:
            return folder / file.name
    return folder
