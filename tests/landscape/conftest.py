"""What the tests of the landscape share."""

import pytest
import tensorflow as tf


@pytest.fixture
def eagerly():
    """Run graphs as they are written: much quicker for what runs three times."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
