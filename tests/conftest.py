"""What every test shares: two logical CPUs, and a fresh Keras for each test."""

import gc
import os
import resource
import signal
import stat
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf
from tensorflow.python.data.ops import iterator_ops

from tests import tiers

# On Python's own schedule there are dozens of full collections; see `full_collections`.
gc.set_threshold(700, 10, 1_000_000)


def _without_autotuning():
    """Let tf.data choose its parallelism once and for all.

    Each iterator has a thread that goes on tuning it, in longer and longer intervals. Whoever frees
    an old one waits for that thread, which comes to minutes where a collection frees hundreds.
    """
    create = iterator_ops.OwnedIterator._create_iterator
    options = tf.data.Options()
    options.autotune.enabled = False
    iterator_ops.OwnedIterator._create_iterator = lambda self, dataset: create(
        self, dataset.with_options(options)
    )


_without_autotuning()

# TensorFlow can be told only once, and before it looks at its devices.
for _cpu in tf.config.list_physical_devices("CPU"):
    tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def pytest_addoption(parser):
    parser.addoption(
        "--every-combination", action="store_true",
        help="run all cases of all matrices, not only what shows each pair of values once",
    )  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(config, items):
    left_out = set(
        tiers.sort_into_tiers(items, every_combination=config.getoption("--every-combination"))
    )
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True, scope="module")
def full_collections():
    """Collect what the graphs of earlier modules left once they have taken another gigabyte."""
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if peak > _COLLECTED_AT[0] + _ROOM:
        gc.collect()
        _COLLECTED_AT[0] = peak


_ROOM = 2**20  # KiB
_COLLECTED_AT = [0]  # the peak of this process' memory at the last collection


def pytest_sessionfinish():
    # pytest ends with five full collections.
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def default_signals():
    """Let Ctrl-C and a closed terminal act: a run in the background starts with them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def fresh_keras():
    """Seed all generators, and undo what a test did to Keras' global state."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.utils.set_random_seed(20161104)
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
    keras.utils.clear_session(free_memory=False)


@pytest.fixture
def float64():
    """Let Keras compute in float64; `learning_rate` too is kept in floatx."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


@pytest.fixture
def null_device(tmp_path):
    """A device like /dev/null. Where root runs the tests, a defect would replace that one."""
    if os.geteuid() != 0:
        return Path("/dev/null")
    path = tmp_path / "null-device"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        path.write_text("x")
    except OSError:
        pytest.skip("no devices may be made here")
    return path


@pytest.fixture(scope="session")
def two_cpus():
    """A strategy that mirrors the variables on two logical CPUs.

    One for all tests: the numbers by which TensorFlow knows its collective operations start anew
    with every strategy, and clash if two of them reduce different dtypes in one process.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
