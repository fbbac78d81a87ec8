"""Readers of the original archives: each checks everything before it believes anything."""

from esgd_tf.data.archives.cifar import read_cifar
from esgd_tf.data.archives.idx import read_idx
from esgd_tf.data.archives.raw import RawImages, RawSplit

__all__ = ["RawImages", "RawSplit", "read_cifar", "read_idx"]
