"""nn-H-L, the fully connected network of the walkers."""

import keras
import numpy as np
import pytest

from esgd_tf import models


@pytest.mark.parametrize(
    ("name", "trainable"),
    [("nn-100-2", 784 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10), ("nn-7-1", 785 * 7 + 80)],
)
def test_is_dense_layers_and_relus(name, trainable):
    model = models.build(name, (28, 28, 1), 10, seed=0)
    assert model.name == name
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == trainable
    assert model.non_trainable_variables == []
    x = np.random.default_rng(0).normal(size=(3, 28, 28, 1)).astype("float32")
    wanted = x.reshape(3, -1)
    *hidden, last = [layer for layer in model.layers if layer.weights]
    for layer in hidden:
        wanted = np.maximum(wanted @ layer.kernel.numpy() + layer.bias.numpy(), 0)
    wanted = wanted @ last.kernel.numpy() + last.bias.numpy()
    np.testing.assert_allclose(model(x), wanted, rtol=1e-4, atol=1e-5)


def test_starts_as_torch_and_drops_if_asked():
    model = models.build("nn-50-3", (4, 4, 1), 10, seed=1)
    for layer in (x for x in model.layers if x.weights):
        limit = 1 / np.sqrt(layer.kernel.shape[0])
        assert np.abs(layer.kernel.numpy()).max() <= limit * (1 + 1e-6)
        assert np.abs(layer.kernel.numpy()).max() > 0.9 * limit
    dropping = models.build("nn-50-3", (4, 4, 1), 10, dropout=0.3, seed=1)
    rates = [x.rate for x in dropping.layers if isinstance(x, keras.layers.Dropout)]
    assert rates == [0.3] * 3
    for a, b in zip(model.get_weights(), dropping.get_weights(), strict=False):
        np.testing.assert_array_equal(a, b)
    other = models.build("nn-50-3", (4, 4, 1), 10, seed=2)
    assert not np.array_equal(other.get_weights()[0], model.get_weights()[0])
