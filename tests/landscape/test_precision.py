"""Networks in mixed precision are measured in float32, at the same weights."""

import keras
import numpy as np
import pytest

from esgd_tf.landscape import (
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    interpolate,
    local_energy,
    sharpness,
)
from tests.landscape.problems import same_state, state

layers = keras.layers
MIXED = ("mixed_bfloat16", "mixed_float16")
N = 2048


def network(policy, inner=False):
    """Return a network under a policy, with the same weights under each."""
    keras.config.set_dtype_policy(policy)
    parts = [layers.Dense(8, "tanh"), layers.LayerNormalization(), layers.Dense(3)]
    if inner:
        parts = [keras.Sequential(parts[:2]), parts[2]]
    model = keras.Sequential([keras.Input((5,)), *parts])
    keras.config.set_dtype_policy("float32")
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape, scale=0.5))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def data(n=N):
    rng = np.random.default_rng(1)
    return rng.standard_normal((n, 5)).astype("float32"), rng.integers(0, 3, n)


def policies(model):
    return [layer.dtype_policy.name for layer in model._flatten_layers()]


@pytest.mark.parametrize("policy", MIXED)
class TestMixed:
    @pytest.mark.few(1)
    @pytest.mark.slow
    def test_is_the_float32_twin(self, policy):
        mixed, twin = network(policy), network("float32")
        for kind in (HessianOperator, GaussNewtonOperator, FisherOperator):
            one, other = kind(mixed, data=data(64)), kind(twin, data=data(64))
            v = np.random.default_rng(2).standard_normal(one.shape[0])
            assert one.loss() == pytest.approx(other.loss(), rel=1e-6)
            np.testing.assert_allclose(one.gradient(), other.gradient(), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(one @ v, other @ v, rtol=1e-3, atol=1e-5)

    @pytest.mark.slow
    def test_does_not_depend_on_the_batch(self, policy):
        model = network(policy)
        v = np.random.default_rng(2).standard_normal(sum(w.size for w in model.get_weights()))
        norms = [
            np.linalg.norm(HessianOperator(model, data=data(), batch_size=size) @ v)
            for size in (32, N)
        ]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)

    @pytest.mark.slow
    def test_does_not_depend_on_small_batches(self, policy):
        model = network(policy)
        v = np.random.default_rng(2).standard_normal(sum(w.size for w in model.get_weights()))
        norms = [
            np.linalg.norm(HessianOperator(model, data=data(), batch_size=size) @ v)
            for size in (8, N)
        ]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)

    @pytest.mark.few(1)
    @pytest.mark.parametrize("inner", [False, True])
    def test_leaves_weights_and_policies(self, policy, inner):
        model = network(policy, inner)
        before, kept = state(model), policies(model)
        assert policy in kept
        h = HessianOperator(model, data=data(64))
        h @ np.ones(h.shape[0])
        sharpness(model, data=data(64), max_steps=1)
        assert policies(model) == kept
        assert same_state(before, state(model))
        assert model(data(4)[0]).dtype == policy.removeprefix("mixed_")

    def test_leaves_policies_after_an_error(self, policy):
        model = network(policy)
        kept = policies(model)

        def fails(y, p):
            raise RuntimeError("on purpose")

        with pytest.raises(RuntimeError, match="on purpose"):
            HessianOperator(model, fails, data(8))
        assert policies(model) == kept

    @pytest.mark.slow
    def test_large_losses_are_finite(self, policy):
        """A sum over a batch in float16 ends at 65,504."""
        model = network(policy)
        x, _ = data()
        targets = np.full((N, 3), 100.0, "float32")
        h = HessianOperator(model, "mse", (x, targets), batch_size=N)
        twin = HessianOperator(network("float32"), "mse", (x, targets), batch_size=N)
        assert h.loss() == pytest.approx(twin.loss(), rel=1e-6)
        np.testing.assert_allclose(h.gradient(), twin.gradient(), rtol=1e-4, atol=1e-3)

    @pytest.mark.slow
    def test_the_other_tools(self, policy):
        mixed, twin = network(policy), network("float32")
        found = []
        for model in (mixed, twin):
            w = model.get_weights()
            path = interpolate(
                model, w, [2 * v for v in w], [0.0, 0.5], data=data(64), metric="loss"
            )
            noise = local_energy(model, data(64), "loss", samples=2, sigmas=[0.1])
            climb = sharpness(model, data=data(64), max_steps=2)
            increase = np.ravel(noise.increase["data"]["loss"])
            found.append([*path.gradient_norm["data"], climb.perturbed_loss, *increase])
        np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_precision_are_refused(dtype):
    model = network(dtype)
    with pytest.raises(ValueError, match=f"is stored as {dtype}"):
        HessianOperator(model, data=data(8))
    with pytest.raises(ValueError, match="float32 weights"):
        local_energy(model, data(8), "loss", samples=2, sigmas=[0.1])


def test_one_layer_of_half_precision_is_named():
    half = layers.Dense(3, dtype="bfloat16", name="half")
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4), half])
    with pytest.raises(ValueError, match="half/kernel"):
        HessianOperator(model, "mse", (data(8)[0], np.ones((8, 3))))


@pytest.mark.usefixtures("float64")
def test_float64_stays():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    x = data(8)[0].astype("float64")
    h = HessianOperator(model, "mse", (x, x[:, :3]))
    expected = np.mean((model(x).numpy() - x[:, :3]) ** 2)
    assert h.loss() == pytest.approx(expected, rel=1e-14)
