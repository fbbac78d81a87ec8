"""The error on corrupted versions of data."""

import keras
import numpy as np
import pytest

from esgd_tf.landscape import corruption_error
from tests.landscape.problems import cross_entropy


def test_each_version_has_its_error():
    """A network that tells classes by the sign of the input, and inputs whose sign is turned."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    model.set_weights([np.array([[-1.0, 1.0]]), np.zeros(2)])
    x = np.array([[-1.0], [-2.0], [1.0], [2.0]], "float32")
    y = np.array([0, 0, 1, 1])
    turned, half = -x, x * [[1], [1], [1], [-1]]
    found = corruption_error(
        model, (x, y), {"turned": (turned, y), "half": (half, y)}, loss=cross_entropy()
    )
    assert found.reference["error"] == 0
    assert {n: v["error"] for n, v in found.values.items()} == {"turned": 1.0, "half": 0.25}
    # log(1 + e^{-2 m}) at the margins m.
    margins = np.array([1, 2, 1, -2])
    assert found.values["half"]["loss"] == pytest.approx(np.log1p(np.exp(-2.0 * margins)).mean())
    assert found.increase("half") == 0.25
    assert found.increase("turned", "loss") == pytest.approx(3.0)  # of the mean margin, twice 1.5
    increases = {(r.at, r.metric): r.value for r in found.rows()}
    assert increases["half", "increase of error"] == 0.25
    assert increases["half", "error"] == 0.25


def test_an_increase_is_over_the_error_of_the_data():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    model.set_weights([np.array([[-1.0, 1.0]]), np.zeros(2)])
    x, y = np.array([[-1.0], [-2.0], [1.0], [2.0]], "float32"), np.array([0, 0, 1, 0])
    found = corruption_error(model, (x, y), {"turned": (-x, y)}, metric="error")
    assert found.reference == {"error": 0.25}
    (value, increase) = found.rows()
    assert (value.value, increase.value) == (0.75, 0.5)
    assert found.increase("turned") == 0.5
