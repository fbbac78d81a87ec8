"""Load a data set by name, from prepared records, archives or a download.

`load` looks in this order and takes the first that it finds:

1. records prepared under `data_dir` (by this module, or by TFDS itself);
2. for `fashion_mnist_small`, the records that come with the repository, and with the package;
3. the original archives in `raw_dir`, from which it prepares the records;
4. TFDS' own download, if its host answers within seconds.

Archives are looked for in `raw_dir/<name>/` or `raw_dir/<name-with-hyphens>/` first, then in
`raw_dir` itself. They may be packed or unpacked, under the names of the home pages or of Keras, so
`raw_dir` may be `~/.keras/datasets` or a root folder of torchvision. MNIST and Fashion-MNIST have
the same file names, so idx files directly in `raw_dir` are used only for the set whose numbers of
images per class they have.

Nothing here imports TensorFlow before records are read or written, so a missing data set is
reported within seconds.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from esgd_tf.data import network, staging
from esgd_tf.data.archives import (
    RawImages,
    find_cifar,
    find_idx,
    read_cifar,
    read_idx,
    read_npz,
)
from esgd_tf.data.archives.idx import read_idx_labels
from esgd_tf.data.catalog import DATASETS, ENTRIES, Archive, Entry, IdxFiles, NpzFile
from esgd_tf.data.errors import DataError
from esgd_tf.data.subset import SUBSETS, stratified

if TYPE_CHECKING:
    from types import ModuleType

DEFAULT_DATA_DIR = "tfrecords"
# esgd_tf/data/sources.py lies two folders below the repository's root.
_CHECKOUT = Path(__file__).resolve().parents[2]
# Where a wheel carries the embedded data set.
_CARRIED = Path(__file__).resolve().parents[1] / "_tfrecords"


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A data set in memory.

    Attributes:
        name: Its name in the catalog.
        train_images: uint8 [n, h, w, c].
        train_labels: int32 [n].
        test_images: uint8 [m, h, w, c].
        test_labels: int32 [m].
        num_classes: The number of classes; labels are in 0 ... num_classes - 1.
        label_names: One name per class.
        folder: The folder of the records; preprocessing statistics are stored beside them.
    """

    name: str
    train_images: NDArray[np.uint8] = dataclasses.field(repr=False)
    train_labels: NDArray[np.int32] = dataclasses.field(repr=False)
    test_images: NDArray[np.uint8] = dataclasses.field(repr=False)
    test_labels: NDArray[np.int32] = dataclasses.field(repr=False)
    num_classes: int
    label_names: tuple[str, ...] = dataclasses.field(repr=False)
    folder: Path


def load(
    name: str,
    *,
    data_dir: str | Path = DEFAULT_DATA_DIR,
    raw_dir: str | Path | None = None,
    download: bool = True,
) -> ImageData:
    """Load a data set. If it has no records yet, they are prepared first.

    Args:
        name: str. One of `DATASETS`.
        data_dir: str or Path. The TFDS folder of prepared records. "tfrecords" is the folder of
            that name in this repository, whatever the working directory. If the package was
            installed without the repository, it is ./tfrecords. Defaults to DEFAULT_DATA_DIR.
        raw_dir: str or Path. The folder with the original archives, used if nothing is prepared.
            Defaults to None, which means that there is none.
        download: bool. Whether TFDS may download the data set if there are no archives either.
            Defaults to True.

    Returns:
        All images and labels, in the order of the records, which is always the same.

    Raises:
        DataError: The set is unknown, damaged or not available. The message says what to do.
    """
    if name not in ENTRIES:
        raise DataError(f"There is no data set {name!r}; choose one of {', '.join(DATASETS)}.")
    entry = ENTRIES[name]
    target = resolve(data_dir)
    folder = _find_prepared(target, entry)
    if folder is None and name in SUBSETS:
        home = _CARRIED if _CARRIED.is_dir() else _CHECKOUT / DEFAULT_DATA_DIR
        folder = _find_prepared(home, entry)
    if folder is None:
        folder = _prepare(entry, target, raw_dir, download)
    from esgd_tf.data import prepared  # noqa: PLC0415 - imports TensorFlow, which takes seconds

    train, test = prepared.read(folder, entry)
    return ImageData(
        name=name,
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
        num_classes=entry.num_classes,
        label_names=entry.label_names,
        folder=folder,
    )


def _storage() -> ModuleType:
    from esgd_tf.data import storage  # noqa: PLC0415 - imports TensorFlow, which takes seconds

    return storage


def resolve(data_dir: str | Path) -> Path:
    """Return the absolute path of a data folder.

    Args:
        data_dir: str or Path. The folder, as for `load`.
    """
    home = _CHECKOUT / DEFAULT_DATA_DIR
    if str(data_dir) == DEFAULT_DATA_DIR and home.is_dir():
        return home
    return Path(data_dir).expanduser().absolute()


def _find_prepared(data_dir: Path, entry: Entry) -> Path | None:
    """Return the folder of the version that this library writes, or else of the newest version."""
    parent = data_dir / entry.name
    try:
        versions = [p for p in parent.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", p.name)]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"Cannot look into {parent}: {error.strerror or error}.") from error
    versions = [p for p in versions if staging.is_whole(p)]
    by_number = sorted(versions, key=lambda p: tuple(map(int, p.name.split("."))))
    preferred = [p for p in by_number if p.name == entry.version]
    return next(iter(preferred or by_number[::-1]), None)


def _prepare(entry: Entry, data_dir: Path, raw_dir: str | Path | None, download: bool) -> Path:
    source = ENTRIES[SUBSETS.get(entry.name, entry.name)]
    if raw_dir is not None:
        found = _find_archive(source, Path(raw_dir).expanduser())
        if found is not None:
            return _build(entry, source, data_dir, *found)
    needed = " or ".join(
        " + ".join(archive.names) if isinstance(archive, IdxFiles) else archive.file
        for archive in source.archives
    )
    what_to_do = (
        f"download {needed} by hand (home page: {source.homepage}), put it into a folder "
        f"DIR/{source.name}, and name DIR with --raw_dir"
    )
    if raw_dir is not None:
        what_to_do += f" (neither {Path(raw_dir) / source.name} nor {raw_dir} holds it)"
    lacking = f"{entry.name} is not prepared under {data_dir}"
    if entry.probe_url is None:
        raise DataError(f"{lacking} and is not to be downloaded by itself: {what_to_do}.")
    if not download:
        raise DataError(f"{lacking}, and downloading is off: {what_to_do}.")
    if not network.reachable(entry.probe_url):
        host = network.host(entry.probe_url)
        raise DataError(f"{lacking}, and {host} does not answer: {what_to_do}.")
    with staging.exclusive(data_dir, entry.name):
        # Another process may have prepared the set while this one waited for the lock.
        return _find_prepared(data_dir, entry) or _storage().download(entry, data_dir)


def _find_archive(entry: Entry, raw_dir: Path) -> tuple[Path, Archive] | None:
    """Return the path of an archive (a file, or the folder with its files) and its description."""
    if not raw_dir.is_dir():
        raise DataError(f"--raw_dir {raw_dir} is not a folder; name the one with the archives.")
    own = [entry.name, entry.name.replace("_", "-"), *filter(None, [entry.torchvision])]
    for folder in [*(raw_dir / name for name in own), raw_dir]:
        for archive in entry.archives:
            if isinstance(archive, IdxFiles):
                found = folder if any(find_idx(folder, name) for name in archive.names) else None
                if found == raw_dir and not _labels_match(folder, archive, entry):
                    found = None
            elif isinstance(archive, NpzFile):
                found = folder / archive.file if (folder / archive.file).is_file() else None
            else:
                found = find_cifar(folder, archive)
            if found is not None:
                return found, archive
    return None


def _labels_match(folder: Path, files: IdxFiles, entry: Entry) -> bool:
    path = find_idx(folder, files.train_labels)
    if path is None:
        return False
    labels = read_idx_labels(path, entry.num_train)
    return tuple(np.bincount(labels, minlength=entry.num_classes)) == entry.train_counts


def _build(entry: Entry, source: Entry, data_dir: Path, place: Path, archive: Archive) -> Path:
    with staging.exclusive(data_dir, entry.name):
        done = _find_prepared(data_dir, entry)
        if done is not None:
            return done
        raw: RawImages
        if isinstance(archive, IdxFiles):
            raw = read_idx(place, archive, source)
        elif isinstance(archive, NpzFile):
            raw = read_npz(place, source)
        else:
            raw = read_cifar(place, archive, source)
        if entry is not source:
            raw = stratified(raw, entry)
        return build(raw, entry, data_dir)


def build(raw: RawImages, entry: Entry, data_dir: Path) -> Path:
    """Write the records of a data set, either all of them or none.

    Args:
        raw: RawImages. The images.
        entry: Entry. The data set that they belong to.
        data_dir: Path. The TFDS folder to write under.

    Returns:
        The folder of the finished records, data_dir/name/version.

    Raises:
        DataError: The records cannot be written, or something else is in their place.
    """
    final = data_dir / entry.name / entry.version
    if final.is_dir() and any(final.iterdir()) and not staging.is_whole(final):
        raise DataError(f"{final} holds files but no whole data set; remove it and start again.")
    with staging.temporary_folder(data_dir, entry.name) as temporary:
        staged = _storage().write(raw, entry, temporary)
        staging.publish(staged, final)
    return final
