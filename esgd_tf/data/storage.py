"""Records on disk: written and read with TFDS.

A set lies in data_dir/name/version, as TFDS lays it out, with the features and the version of
TFDS' own builder of that name: `tfds.load("cifar10", data_dir=...)` reads what is written here,
and what it wrote is read here.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from numpy.typing import NDArray

from esgd_tf.data.archives.raw import RawImages, RawSplit
from esgd_tf.data.catalog import Entry
from esgd_tf.data.errors import DataError

Arrays = tuple[NDArray[np.uint8], NDArray[np.int32]]

_READ_BATCH = 1000


def write(raw: RawImages, entry: Entry, data_dir: Path) -> Path:
    """Store a set as TFDS records. Shows TFDS' progress bars on standard error.

    Args:
        raw: The images.
        entry: What they are.
        data_dir: TFDS folder to write under; nothing prepared may lie there.

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
    with _tfds_manners():
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
                raise OSError(_first_line(cause).rpartition("; ")[2]) from error
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
        entry: What to download.
        data_dir: TFDS folder to write under; archives are kept in its folder `downloads`.

    Returns:
        The folder of the records.

    Raises:
        DataError: It did not work.
    """
    try:
        with _tfds_manners():
            builder = tfds.builder(entry.name, data_dir=str(data_dir))
            builder.download_and_prepare()
    except Exception as error:
        # A download fails in as many ways as there are layers: sockets, HTTP, checksums, disks.
        raise DataError(
            f"TFDS could not download {entry.name} into {data_dir} "
            f"({_first_line(error)}); get the archives by hand from {entry.homepage} and name "
            "their folder with --raw_dir."
        ) from error
    return Path(builder.data_dir)


def read(folder: Path, entry: Entry) -> tuple[Arrays, Arrays]:
    """Read all records of a prepared set.

    Args:
        folder: Where they lie, data_dir/name/version.
        entry: What they must be.

    Returns:
        (images, labels) of the train and the test split: uint8 [n, h, w, c] and int32 [n].

    Raises:
        DataError: Files are missing or damaged, or it is another set.
    """
    try:
        with _tfds_manners():
            builder = tfds.builder_from_directory(folder)
            shape = tuple(builder.info.features["image"].shape)
            counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    except Exception as error:
        # TFDS parses these files with asserts, key look-ups and JSON and protobuf readers.
        raise DataError(
            f"The description of {entry.name} in {folder} is damaged ({_first_line(error)}); "
            "remove that folder and prepare the set again."
        ) from error
    expected = {"train": entry.num_train, "test": entry.num_test}
    if shape != entry.image_shape or any(counts.get(s) != n for s, n in expected.items()):
        raise DataError(
            f"{folder} does not hold {entry.name}: its images are {shape} and its splits {counts}, "
            f"not {entry.image_shape} and {expected}; remove that folder and prepare the set again."
        )
    return (
        _read_split(builder, "train", entry.num_train, entry),
        _read_split(builder, "test", entry.num_test, entry),
    )


def _read_split(builder: Any, split: str, count: int, entry: Entry) -> Arrays:
    images = np.empty((count, *entry.image_shape), np.uint8)
    labels = np.empty((count,), np.int32)
    done = 0
    try:
        with _tfds_manners(), tf.device("/CPU:0"):
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
        culprit = _damaged_file(Path(builder.data_dir), split)
        raise DataError(
            f"{culprit} is damaged or missing ({_first_line(error)}); remove the folder "
            f"{builder.data_dir} and prepare the set again."
        ) from error
    if done != count or labels.min() < 0 or labels.max() >= entry.num_classes:
        raise DataError(
            f"The {split} records in {builder.data_dir} are damaged: {done} of {count} images, "
            f"labels {labels[:done].min(initial=0)} ... {labels[:done].max(initial=0)}; remove "
            "that folder and prepare the set again."
        )
    return images, labels


def _damaged_file(folder: Path, split: str) -> Path:
    """Return the record file that cannot be read to its end, or the folder if all can."""
    for file in sorted(folder.glob(f"*-{split}.tfrecord-*")):
        try:
            for _ in tf.data.TFRecordDataset(str(file)):
                pass
        except tf.errors.OpError:
            return file
    return folder


def _first_line(error: BaseException) -> str:
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    return next(iter(text.strip().splitlines()), "") or type(error).__name__


@contextlib.contextmanager
def _tfds_manners() -> Iterator[None]:
    """Drop TFDS' announcements, which name temporary folders, and its deprecation warnings."""
    absl_log = logging.getLogger("absl")
    level = absl_log.level
    absl_log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_log.setLevel(level)
