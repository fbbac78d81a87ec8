"""Two tiny runs that the commands' tests share; none of them changes a run."""

import contextlib
import fcntl
import functools
import os

import pytest

from esgd_tf import data
from esgd_tf.runs import report
from esgd_tf.runs.figures import plot_history
from tests.cli.helpers import SMALL, STEPS, interrupted_at, train

_load = data.load
_embedded = functools.cache(lambda: _load("fashion_mnist_small"))


# Not for the session: the tests of other folders read records that they have damaged.
@pytest.fixture(scope="module", autouse=True)
def only_once():
    """Read the embedded images once, not at each command, and draw no pictures."""

    def load_or_remember(name, **keywords):
        return _embedded() if name == "fashion_mnist_small" else _load(name, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", load_or_remember)
        # A picture takes as long as a tracing; `finished` and `drawn` have theirs.
        patch.setattr(report, "plot_history", lambda *_: None)
        yield


@pytest.fixture
def drawn(monkeypatch):
    """Have the picture of a run drawn after all."""
    monkeypatch.setattr(report, "plot_history", plot_history)


@contextlib.contextmanager
def unless_it_exists(tmp_path_factory, name):
    """Give a folder for all of pytest's processes, and whether it is still to be filled."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each worker has a folder of its own in there
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new = not (root / name).exists()
        yield root / name, new


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """An uninterrupted run."""
    with unless_it_exists(tmp_path_factory, "finished") as (logdir, new):
        if new:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(report, "plot_history", plot_history)
                assert train(*SMALL, "--logdir", logdir, "-n", "whole") == 0
        return logdir / "whole"


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory):
    """A run stopped two minibatches into its second epoch, inside an inner loop."""
    with unless_it_exists(tmp_path_factory, "interrupted") as (logdir, new):
        if new:
            with pytest.MonkeyPatch.context() as patch:
                interrupted_at(patch, STEPS + 2)
                assert train(*SMALL, "--logdir", logdir, "-n", "cut") == 130
        return logdir / "cut"
