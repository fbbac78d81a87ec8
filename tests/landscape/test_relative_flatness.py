"""Relative flatness against its definition, from a Hessian without autodiff."""

import keras
import numpy as np
import pytest

from esgd_tf.landscape import HessianOperator, relative_flatness, rescaled
from tests.landscape.problems import (
    cross_entropy,
    examples,
    held,
    mlp,
    quadratic,
    rectified,
    softmax_regression_hessian,
    symmetric,
)


def definition(w, hessian):
    """Return Σ_st <w_s, w_t> tr H_st for weights [inputs, neurons], of which H is by rows."""
    inputs, neurons = w.shape
    blocks = hessian.reshape(inputs, neurons, inputs, neurons)
    return sum(
        w[:, s] @ w[:, t] * np.trace(blocks[:, s, :, t])
        for s in range(neurons)
        for t in range(neurons)
    )


@pytest.mark.parametrize("shape", [(3, 6), (6, 3)])
def test_of_softmax_regression(shape):
    """Its Hessian is known: 1/N Σ (x x') ⊗ (diag p - p p')."""
    features, classes = shape
    model = keras.Sequential(
        [keras.Input((features,)), keras.layers.Dense(classes, name="only", dtype="float64")]
    )
    x, y = examples(40, features, classes)
    x = x.astype("float32").astype("float64")  # as Keras takes arrays
    w = np.random.default_rng(2).normal(size=shape)
    model.layers[-1].set_weights([w, np.zeros(classes)])
    matrix = softmax_regression_hessian(w, x, classes)
    found = relative_flatness(model, cross_entropy(dtype="float64"), (x, y))
    assert [name.endswith("only/kernel") for name in found.layers] == [True]
    assert found.values[0] == pytest.approx(definition(w, matrix), rel=1e-9)
    whole = np.square(w).sum() * np.trace(matrix)
    assert found.norm_times_trace[0] == pytest.approx(whole, rel=1e-9)
    assert found.standard_errors[0] == found.norm_times_trace_errors[0] == 0
    assert found.matvecs == features * min(shape) + features * classes


def test_of_a_quadratic_with_arrays_for_layers():
    matrix = symmetric(np.linspace(-1, 3, 20))
    weights, loss = quadratic(matrix)
    w = np.random.default_rng(0).normal(size=(2, 5))
    found = relative_flatness([w, weights[1]], loss)
    assert found.layers == ("weight_0",)
    assert found.values[0] == pytest.approx(definition(w, matrix[:10, :10]), rel=1e-9)


def test_neurons_whose_weights_are_orthogonal():
    """Then norm² times trace is κ times their number."""
    w = 1.5 * np.linalg.qr(np.random.default_rng(0).normal(size=(5, 2)))[0]
    weights, loss = quadratic(symmetric(np.linspace(0.5, 3, 20)))
    found = relative_flatness([w, weights[0]], lambda v: loss([v[0], v[1]]))
    assert found.norm_times_trace[0] == pytest.approx(2 * found.values[0], rel=1e-9)


def test_filters_of_a_convolution_are_its_neurons():
    model = keras.Sequential(
        [
            keras.Input((3, 3, 2)),
            keras.layers.Conv2D(3, 2, dtype="float64", name="conv"),
            keras.layers.Conv2DTranspose(2, 2, dtype="float64", name="back", use_bias=False),
            keras.layers.GlobalAveragePooling2D(dtype="float64"),
        ]
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 3, 3, 2)), rng.integers(0, 2, 10)
    found = relative_flatness(model, cross_entropy(), (x, y))
    assert len(found.layers) == 2
    for k, (name, last) in enumerate([("conv", (0, 1, 2, 3)), ("back", (0, 1, 3, 2))]):
        kernel = np.asarray(model.get_layer(name).kernel)
        variable = [model.get_layer(name).kernel]
        hessian = HessianOperator(model, cross_entropy(), (x, y), variables=variable)
        h = (hessian @ np.eye(kernel.size)).reshape(*kernel.shape, *kernel.shape)
        h = h.transpose(*last, *(4 + i for i in last)).reshape(kernel.size, kernel.size)
        w = kernel.transpose(last).reshape(-1, kernel.shape[last[3]])
        assert found.values[k] == pytest.approx(definition(w, h), rel=1e-8)


def test_it_does_not_change_with_a_factor_between_layers():
    model, data = rectified(), examples()
    other = rescaled(model, 4.0)
    one, two = (relative_flatness(m, cross_entropy(dtype="float64"), data) for m in (model, other))
    assert len(one.layers) == len(two.layers) == 3
    np.testing.assert_allclose(one.values, two.values, rtol=1e-8)
    np.testing.assert_allclose(one.norm_times_trace, two.norm_times_trace, rtol=1e-8)


@pytest.mark.slow
def test_two_standard_errors_hold_it():
    model, data = mlp(features=8, hidden=12), examples(30, 8, dtype="float32")
    first = [model.get_layer("first")]
    options = {"variables": first}
    true = relative_flatness(model, cross_entropy(), data, num_matvecs=200, **options)
    assert true.standard_errors[0] == 0
    found = [
        relative_flatness(model, cross_entropy(), data, num_matvecs=24, seed=s, **options)
        for s in range(20)
    ]
    values, errors = ([getattr(f, n)[0] for f in found] for n in ("values", "standard_errors"))
    assert held(values, errors, true.values[0]) > 0.7


def test_only_the_layers_that_are_named():
    found = relative_flatness(mlp(), cross_entropy(), examples(dtype="float32"), variables=["last"])
    assert [name.endswith("last/kernel") for name in found.layers] == [True]
    with pytest.raises(ValueError, match="None of the weights is that of a layer"):
        relative_flatness(
            mlp(), cross_entropy(), examples(dtype="float32"),
            variables=lambda v: v.name == "bias",
        )  # fmt: skip
