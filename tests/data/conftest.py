import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import archive_maker
import pytest

from esgd_tf.data import catalog


@pytest.fixture
def tiny(monkeypatch):
    """The catalog with a handful of images per set; nothing in it can be downloaded."""
    entries = archive_maker.tiny_entries()
    for name, entry in entries.items():
        monkeypatch.setitem(catalog.ENTRIES, name, entry)
    return entries
