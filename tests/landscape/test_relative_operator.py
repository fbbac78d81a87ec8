"""Curvature by relative changes of the weights: closed forms, invariance, and local energy."""

import keras
import numpy as np
import pytest

from esgd_tf.landscape import (
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    RelativeOperator,
    eigenpairs,
    full_spectrum,
    local_energy,
    rescaled,
    spectral_density,
    trace,
)
from tests.landscape.problems import (
    MatrixOperator,
    cross_entropy,
    examples,
    flat,
    mlp,
    quadratic,
    rectified,
    symmetric,
)

A = symmetric(np.linspace(-0.5, 3.0, 12))
B = np.linspace(-1.0, 0.7, 12)
W = np.linspace(-1, 2, 12)


def start(at=W):
    """Return weights of the shapes [2, 3] and [6] at a point, with 1/2 w'A w + b'w."""
    weights, loss = quadratic(A, B)
    cut = weights[0].size
    return [at[:cut].reshape(weights[0].shape), at[cut:]], loss


def filters_of(at):
    """Return the norms of the filters: columns of the first weight, and entries of the second."""
    first = at[:6].reshape(2, 3)
    return np.concatenate([np.tile(np.sqrt((first**2).sum(0)), 2), np.abs(at[6:])])


def loss_of():
    """Return a loss in float64, as the networks are: Keras' own would round to float32."""
    return cross_entropy(dtype="float64")


class TestQuadratic:
    @pytest.mark.parametrize(("per", "scale"), [("weight", W), ("filter", filters_of(W))])
    def test_it_is_d_a_d(self, per, scale):
        operator = RelativeOperator(HessianOperator(*start()), per)
        expected = A * np.outer(scale, scale)
        np.testing.assert_allclose(operator.scale, scale)
        np.testing.assert_allclose(operator @ np.eye(12), expected, atol=1e-12)
        np.testing.assert_allclose(operator @ W, expected @ W, atol=1e-12)
        np.testing.assert_allclose(operator.gradient(), scale * (A @ W + B), atol=1e-12)
        assert operator.loss() == pytest.approx(W @ A @ W / 2 + B @ W)
        assert (operator.shape, operator.matvecs, operator.per) == ((12, 12), 13, per)
        assert operator.measured_at == "weights"
        np.testing.assert_array_equal(operator.weights(), W)
        assert [p.shape for p in operator.unflatten(W)] == [(2, 3), (6,)]

    def test_gradient_and_product_are_the_derivatives_by_z(self):
        """Of f(w (1 + z)), by differences: no derivative of ours is in them."""
        f = lambda z: (w := W * (1 + z)) @ A @ w / 2 + B @ w  # noqa: E731
        operator, h, unit = RelativeOperator(HessianOperator(*start())), 1e-4, np.eye(12)
        slope = [(f(h * e) - f(-h * e)) / (2 * h) for e in unit]
        np.testing.assert_allclose(operator.gradient(), slope, atol=1e-7)
        d, e = unit[2], unit[9]
        mixed = f(h * (d + e)) - f(h * (d - e)) - f(h * (e - d)) + f(-h * (d + e))
        assert e @ (operator @ d) == pytest.approx(mixed / (4 * h**2), abs=1e-5)

    def test_what_takes_operators_takes_it(self):
        operator = RelativeOperator(HessianOperator(*start()))
        matrix = A * np.outer(W, W)
        eigenvalues = np.linalg.eigvalsh(matrix)
        np.testing.assert_allclose(full_spectrum(operator).eigenvalues, eigenvalues, atol=1e-10)
        assert eigenpairs(operator, 2).eigenvalues == pytest.approx(eigenvalues[:-3:-1])
        assert trace(operator, 12).estimate == pytest.approx(np.trace(matrix))
        density = spectral_density(operator, 3, 12)
        assert density.largest == pytest.approx(eigenvalues[-1])
        diagonal = operator.diagonal_estimate(400, seed=1)
        off = np.abs(diagonal.estimate - np.diag(matrix)) / diagonal.standard_error
        assert off.max() < 5

    @pytest.mark.parametrize("per", ["weight", "filter"])
    def test_at_other_weights_it_is_in_units_of_those(self, per):
        other = W[::-1].copy()
        operator = RelativeOperator(HessianOperator(*start()), per)
        scale = other if per == "weight" else filters_of(other)
        moved = operator.at(other)
        np.testing.assert_allclose(moved @ W, scale * (A @ (scale * W)), atol=1e-12)
        assert (moved.matvecs, operator.matvecs) == (1, 0)
        np.testing.assert_array_equal(operator.weights(), W)

    def test_of_a_matrix(self):
        operator = RelativeOperator(MatrixOperator(A, B, W))
        np.testing.assert_allclose(operator @ np.eye(12), A * np.outer(W, W), atol=1e-12)

    def test_refusals(self):
        hessian = HessianOperator(*start())
        with pytest.raises(ValueError, match="`per` must be weight or filter; got 'layer'"):
            RelativeOperator(hessian, "layer")
        for wrong in (A, RelativeOperator(hessian)):
            with pytest.raises(ValueError, match="`operator` must be a HessianOperator"):
                RelativeOperator(wrong)


class TestInvariance:
    """Rescaled layers compute the same; curvature by relative changes is the same too."""

    @pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator, FisherOperator])
    @pytest.mark.parametrize("per", ["weight", "filter"])
    def test_under_rescaling(self, kind, per):
        model, data = rectified(), examples()
        other = rescaled(model, 4.0)
        one, two = (
            full_spectrum(RelativeOperator(kind(m, loss_of(), data), per)).eigenvalues
            for m in (model, other)
        )
        np.testing.assert_allclose(one, two, atol=1e-9 * one[-1])
        plain, changed = (
            full_spectrum(kind(m, loss_of(), data)).eigenvalues for m in (model, other)
        )
        assert abs(changed.sum() / plain.sum() - 1) > 0.5


class TestLocalEnergy:
    @pytest.mark.parametrize("per", ["weight", "filter"])
    def test_of_a_trained_network(self, per):
        """σ²/2 tr(D H D), for small σ: multiplicative noise is measured, filters are by hand."""
        data = examples(64, dtype="float32")
        model = mlp()
        model.compile(keras.optimizers.Adam(0.05), loss_of())
        model.fit(*data, epochs=30, batch_size=64, verbose=0)
        operator = RelativeOperator(HessianOperator(model, loss_of(), data), per)
        expected = np.trace(operator @ np.eye(operator.shape[0]))
        # Large enough that float32 shows the differences of losses, and small for terms in σ⁴.
        sigma = 0.03
        if per == "weight":
            found = local_energy(model, data, "loss", sigmas=[sigma], samples=400, loss=loss_of())
            (value,), (error,) = found.curve()
        else:
            value, error = noise_in_units_of(operator, sigma, 200)
        assert error < 0.1 * value
        assert abs(value - sigma**2 / 2 * expected) < 3 * error
        # What it is compared with is not the trace of the Hessian itself.
        plain = trace(HessianOperator(model, loss_of(), data), operator.shape[0]).estimate
        assert abs(value - sigma**2 / 2 * plain) > 10 * error

    def test_of_a_quadratic_at_every_sigma(self):
        weights, loss = start()
        operator = RelativeOperator(HessianOperator(weights, loss))
        sigmas = np.array([0.1, 1.0])
        found = local_energy(weights, None, "loss", sigmas=sigmas, samples=2000, loss=loss)
        value, error = found.curve()
        expected = sigmas**2 / 2 * trace(operator, 12).estimate
        assert np.abs((value - expected) / error).max() < 3
        assert (error < 0.2 * np.abs(expected)).all()


def noise_in_units_of(operator, sigma, pairs):
    """Return the mean rise of the loss under noise of σ times the operator's scale, and its error.

    In pairs z, -z.
    """
    rng, w, before = np.random.default_rng(3), operator.weights(), operator.loss()
    inner = operator._operator
    rises = []
    for _ in range(pairs):
        step = sigma * operator.scale * rng.standard_normal(len(w))
        rises.append(sum(inner.at(w + sign * step).loss() - before for sign in (1, -1)) / 2)
    return np.mean(rises), np.std(rises, ddof=1) / np.sqrt(pairs)


def test_filters_of_layers_are_those_that_feed_one_output():
    """A channel of a convolution, and of a transposed one along its last axis but one."""
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Conv2D(3, 2, name="conv"),
            keras.layers.Conv2DTranspose(2, 2, name="back"),
            keras.layers.Flatten(),
            keras.layers.Dense(2, use_bias=False, name="dense"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(4, 4, 4, 2)).astype("float32")
    hessian = HessianOperator(model, loss_of(), (x, np.array([0, 1, 0, 1])))
    conv, bias, back, _, dense = (np.asarray(v) for v in model.trainable_variables)
    expected = [
        np.broadcast_to(np.sqrt((conv**2).sum((0, 1, 2))), conv.shape),
        np.abs(bias),
        np.broadcast_to(np.sqrt((back**2).sum((0, 1, 3), keepdims=True)), back.shape),
        np.zeros(2),
        np.broadcast_to(np.sqrt((dense**2).sum(0)), dense.shape),
    ]
    scale = RelativeOperator(hessian, "filter").scale
    np.testing.assert_allclose(scale, flat(expected), rtol=1e-6)
