"""What the tests of the landscape share."""

import sys

import pytest
import tensorflow as tf

from esgd_tf.landscape import CurvatureOperator


@pytest.fixture(autouse=True)
def no_figures_left():
    """Close the figures that a test has drawn: Matplotlib warns of more than twenty."""
    yield
    if (plt := sys.modules.get("matplotlib.pyplot")) is not None:
        plt.close("all")


@pytest.fixture
def eagerly(monkeypatch):
    """Run graphs as they are written: much quicker for what runs three times.

    Operators are not tried when they are made, which would be most of the time of a sweep; the
    trial has tests of its own.
    """
    monkeypatch.setattr(CurvatureOperator, "_try", lambda self: None)
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
