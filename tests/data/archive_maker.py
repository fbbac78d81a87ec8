"""Tiny archives in the true formats, and a catalog to go with them."""

import dataclasses
import gzip
import io
import pickle
import struct
import tarfile

import numpy as np

from esgd_tf.data import catalog
from esgd_tf.data.archives import RawImages, RawSplit

# Unequal on purpose, and unlike each other: counts per class tell the sets apart.
COUNTS = {
    "mnist": ((5, 4, 4, 4, 4, 4, 4, 4, 4, 3), (1,) * 9 + (2,)),
    "fashion_mnist": ((4,) * 10, (2,) * 10),
    "fashion_mnist_small": ((2,) * 10, (1,) * 10),
    "cifar10": ((5,) * 10, (2,) * 10),
    "cifar100": ((1,) * 100, (1,) * 100),
}


def tiny_entries():
    """Return the catalog with these few images in place of the published numbers."""
    return {
        name: dataclasses.replace(
            catalog.ENTRIES[name], train_counts=train, test_counts=test, probe_url=None
        )
        for name, (train, test) in COUNTS.items()
    }


def images_of(entry, seed=0):
    """Sample random images with the entry's counts, in random order."""
    rng = np.random.default_rng([seed, len(entry.name)])
    splits = []
    for counts in (entry.train_counts, entry.test_counts):
        labels = rng.permutation(np.repeat(np.arange(entry.num_classes), counts)).astype(np.int32)
        images = rng.integers(0, 256, (len(labels), *entry.image_shape)).astype(np.uint8)
        coarse = (labels // 5).astype(np.int32) if entry.coarse_names else None
        splits.append(RawSplit(images, labels, coarse))
    return RawImages(*splits)


def idx_bytes(array):
    """Return an array of bytes as an uncompressed idx file."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder, raw):
    """Write the four files of an MNIST-like set."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, split in (("train", raw.train), ("t10k", raw.test)):
        images = folder / f"{prefix}-images-idx3-ubyte.gz"
        images.write_bytes(gzip.compress(idx_bytes(split.images[..., 0])))
        labels = folder / f"{prefix}-labels-idx1-ubyte.gz"
        labels.write_bytes(gzip.compress(idx_bytes(split.labels)))


def cifar_members(entry, archive, raw, dump=None):
    """Return the members of a CIFAR archive, name to content."""
    dump = dump or (lambda batch: pickle.dumps(batch, protocol=2))
    members = {}
    for names, split in ((archive.train, raw.train), (archive.test, raw.test)):
        for name, places in zip(
            names, np.array_split(np.arange(len(split.labels)), len(names)), strict=True
        ):
            rows = split.images[places].transpose(0, 3, 1, 2).reshape(len(places), -1)
            columns = {"labels": split.labels, "fine_labels": split.labels}
            columns["coarse_labels"] = split.coarse_labels
            keyed = [(key, columns[key][places]) for key, _, _ in archive.names]
            if archive.pickled:
                batch = {b"batch_label": b"x", b"data": rows}
                batch |= {key.encode(): column.tolist() for key, column in keyed}
                members[name] = dump(batch)
            else:
                records = [*(column[:, None].astype(np.uint8) for _, column in keyed), rows]
                members[name] = np.concatenate(records, axis=1).tobytes()
    lists = {"coarse_labels": entry.coarse_names}
    meta = {}
    for key, member, names_key in archive.names:
        names = lists.get(key, entry.label_names)
        if archive.pickled:
            meta[names_key.encode()] = [name.encode() for name in names]
            members[member] = dump(meta)
        else:
            members[member] = ("\n".join(names) + "\n").encode()
    return {f"{archive.folder}/{name}": content for name, content in members.items()}


def write_tar(path, members):
    """Write a tar.gz; a value may be bytes or a TarInfo to be added as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = members.items() if isinstance(members, dict) else members
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in pairs:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def python2_dumps(value):
    """Pickle as Python 2 and its NumPy did: protocol 2, byte strings, numpy.core's names."""
    out = io.BytesIO()
    out.write(b"\x80\x02")

    def save(x):
        if isinstance(x, bytes):
            if len(x) < 256:
                out.write(b"U" + bytes([len(x)]) + x)
            else:
                out.write(b"T" + struct.pack("<i", len(x)) + x)
        elif isinstance(x, int):
            out.write(b"J" + struct.pack("<i", x))
        elif isinstance(x, list):
            out.write(b"](")
            for item in x:
                save(item)
            out.write(b"e")
        elif isinstance(x, dict):
            out.write(b"}(")
            for key, item in x.items():
                save(key)
                save(item)
            out.write(b"u")
        else:
            out.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n")
            out.write(b"K\x00\x85U\x01b\x87R(K\x01")
            for size in x.shape:
                save(size)
            out.write(b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN")
            out.write(b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
            save(x.tobytes())
            out.write(b"tb")

    save(value)
    out.write(b".")
    return out.getvalue()
