"""Two tiny runs that the commands' tests share; none of them changes a run."""

import functools

import pytest

from esgd_tf import data
from tests.cli.helpers import SMALL, STEPS, interrupted_at, train

_load = data.load
_embedded = functools.cache(lambda: _load("fashion_mnist_small"))


# Not for the session: the tests of other folders read records that they have damaged.
@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """Read the embedded images once, not at each command."""

    def load_or_remember(name, **keywords):
        return _embedded() if name == "fashion_mnist_small" else _load(name, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", load_or_remember)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """An uninterrupted run."""
    logdir = tmp_path_factory.mktemp("finished")
    assert train(*SMALL, "--logdir", logdir, "-n", "whole") == 0
    return logdir / "whole"


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory):
    """A run stopped two minibatches into its second epoch, inside an inner loop."""
    logdir = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        interrupted_at(patch, STEPS + 2)
        assert train(*SMALL, "--logdir", logdir, "-n", "cut") == 130
    return logdir / "cut"
