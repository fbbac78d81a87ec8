"""What all tests of the landscape share."""

import sys

import pytest


@pytest.fixture(autouse=True)
def no_figures_left():
    """Close the figures that a test has drawn: Matplotlib warns of more than twenty."""
    yield
    if (plt := sys.modules.get("matplotlib.pyplot")) is not None:
        plt.close("all")
