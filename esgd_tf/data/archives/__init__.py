"""Readers of the original archives. Each checks all that it reads before it returns anything."""

from esgd_tf.data.archives.cifar import read_cifar
from esgd_tf.data.archives.idx import find_idx, read_idx
from esgd_tf.data.archives.members import find_cifar
from esgd_tf.data.archives.npz import read_npz
from esgd_tf.data.archives.raw import RawImages, RawSplit

__all__ = [
    "RawImages",
    "RawSplit",
    "find_cifar",
    "find_idx",
    "read_cifar",
    "read_idx",
    "read_npz",
]
