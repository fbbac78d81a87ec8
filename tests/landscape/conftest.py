"""What the tests of the landscape share."""

import sys

import pytest
import tensorflow as tf


@pytest.fixture(autouse=True)
def no_figures_left():
    """Close the figures that a test has drawn: Matplotlib warns of more than twenty."""
    yield
    if (plt := sys.modules.get("matplotlib.pyplot")) is not None:
        plt.close("all")


@pytest.fixture
def eagerly():
    """Run graphs as they are written: much quicker for what runs three times."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
