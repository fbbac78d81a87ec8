import subprocess
import sys

import pytest

import esgd_tf.data
from esgd_tf.data.catalog import DATASETS, ENTRIES


def test_names_come_without_tensorflow():
    code = (
        "import sys; from esgd_tf.data import DATASETS, PREPROCESSINGS, AUGMENTATIONS, DataError;"
        "import esgd_tf.data.sources; sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_every_public_name_is_there():
    for name in esgd_tf.data.__all__:
        assert getattr(esgd_tf.data, name) is not None
    assert set(esgd_tf.data.__all__) == set(dir(esgd_tf.data))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = esgd_tf.data.nonsense


def test_published_numbers():
    assert DATASETS == ("fashion_mnist_small", "mnist", "fashion_mnist", "cifar10", "cifar100")
    sizes = {name: (entry.num_train, entry.num_test) for name, entry in ENTRIES.items()}
    assert sizes.pop("fashion_mnist_small") == (8750, 1750)
    assert sizes == {
        "mnist": (60000, 10000),
        "fashion_mnist": (60000, 10000),
        "cifar10": (50000, 10000),
        "cifar100": (50000, 10000),
    }
    for entry in ENTRIES.values():
        assert len(entry.train_counts) == len(entry.test_counts) == entry.num_classes
        assert len(set(entry.label_names)) == (100 if entry.name == "cifar100" else 10)
    fine, coarse = ENTRIES["cifar100"].label_names, ENTRIES["cifar100"].coarse_names
    assert list(fine) == sorted(fine)
    assert list(coarse) == sorted(coarse)
    assert len(coarse) == 20
