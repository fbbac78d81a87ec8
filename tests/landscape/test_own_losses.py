"""Losses of the user's own, and targets of every dtype and shape, against `model.evaluate`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import FisherOperator, GaussNewtonOperator, HessianOperator
from tests.landscape.keras_losses import (
    ANY_SHAPE,
    N,
    agrees,
    examples,
    keras_loss,
    network,
    plain_gradient,
    weights_for,
)


def squared_examples(y, p):
    return tf.reduce_mean(tf.square(y - p), axis=tuple(range(1, len(p.shape))))


def squared_elements(y, p):
    return tf.square(y - p)


def squared_mean(y, p):
    return tf.reduce_mean(tf.square(y - p))


def absolute_first(y, p):
    """With Keras' operations, and of another dtype than that of the targets if not cast."""
    return keras.ops.mean(keras.ops.abs(p - keras.ops.cast(y, p.dtype)), axis=-1)


class Quartic(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return tf.reduce_mean((y_true - y_pred) ** 4, axis=-1)


class LargestOfABatch(keras.losses.Loss):
    """Has a reduction of its own."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        values = tf.reduce_mean(tf.square(tf.cast(y_true, y_pred.dtype) - y_pred), axis=-1)
        if sample_weight is not None:
            values *= tf.cast(sample_weight, values.dtype)
        return tf.reduce_logsumexp(values)


class SpreadOfABatch(keras.losses.Loss):
    """Looks across the batch, and still gives a value for each example."""

    def call(self, y_true, y_pred):
        error = tf.reduce_mean(y_true - y_pred, axis=-1)
        return tf.square(error - tf.reduce_mean(error))


OWN = {
    "examples": squared_examples,
    "elements": squared_elements,
    "mean": squared_mean,
    "keras_operations": absolute_first,
    "subclass": Quartic(),
    "subclass_summed": Quartic(reduction="sum"),
    "own_call": LargestOfABatch(),
    "across": SpreadOfABatch(),
}


@pytest.mark.usefixtures("eagerly")
class TestOwnLosses:
    @pytest.mark.few(2)
    @pytest.mark.parametrize("name", OWN)
    @pytest.mark.parametrize("shape", ["n1", "nc", "ntc"])
    @pytest.mark.parametrize("weighting", ["none", "n"])
    def test_value_and_gradient(self, name, shape, weighting):
        whole = ANY_SHAPE[shape]
        model = network(whole)
        data = (*examples(whole), *weights_for(weighting, whole, fitting=True))
        model.compile(loss=OWN[name], run_eagerly=True)
        agrees(model, data)
        agrees(model, data, loss=OWN[name])

    @pytest.mark.few(1)
    @pytest.mark.parametrize("name", ["examples", "elements", "mean", "own_call"])
    def test_in_graphs(self, name):
        tf.config.run_functions_eagerly(False)
        model, data = network((2, 3)), examples((2, 3))
        model.compile(loss=OWN[name], run_eagerly=True)
        agrees(model, data)

    @pytest.mark.few(3)
    @pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "int64", "uint8", "bool"])
    @pytest.mark.parametrize(
        "loss", [squared_elements, absolute_first, "mse", "hinge", "poisson", "binary_crossentropy"]
    )
    def test_targets_of_any_dtype(self, loss, dtype):
        model, (x, _) = network((2,), "binary"), examples((2,))
        y = (np.arange(2 * N).reshape(N, 2) % 3 == 0).astype(dtype)
        model.compile(loss=loss, run_eagerly=True)
        agrees(model, (x, y))

    @pytest.mark.few(3)
    @pytest.mark.parametrize(
        "loss", [squared_elements, squared_examples, "mse", "hinge", "poisson", "bce", "mape"]
    )
    @pytest.mark.parametrize(
        ("shape", "targets"),
        [((1,), (N,)), ((), (N, 1)), ((2, 1), (N, 2)), ((2,), (N, 2, 1)), ((2, 2, 1), (N, 2, 2))],
        ids=str,
    )
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_targets_with_and_without_a_last_axis(self, loss, shape, targets, dtype):
        """(n,) against (n, 1) is not (n, n)."""
        model, (x, y) = network(shape, "positive"), examples(shape, "binary")
        y = y.reshape(targets).astype(dtype)
        if loss == "bce":
            model = network(shape, "binary")
        if loss == "mape":
            y = y + 0.5
        model.compile(loss=loss, run_eagerly=True)
        agrees(model, (x, y))

    @pytest.mark.few(1)
    @pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 2, 3)], ids=str)
    @pytest.mark.parametrize("dtype", ["int32", "uint8", "float32"])
    def test_sparse_targets_with_a_last_axis(self, shape, dtype):
        model, (x, y) = network(shape, "labels"), examples(shape, "labels")
        model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
        one = agrees(model, (x, y.astype(dtype)))
        other = agrees(model, (x, y[..., None].astype(dtype)))
        assert one.loss() == other.loss()

    def test_a_loss_that_gives_neither_is_refused(self):
        model, data = network((4,)), examples((4,))
        with pytest.raises(ValueError, match="must be a Keras loss"):
            HessianOperator(model, 3.0, data)


@pytest.mark.usefixtures("eagerly")
class TestHowDataAreCut:
    """`batch_size=None` is Keras' 32 where the cut matters, and of no account where it does not."""

    @pytest.mark.few(3)
    @pytest.mark.parametrize(
        "loss",
        [
            keras.losses.MeanSquaredError(reduction="sum"), LargestOfABatch(), SpreadOfABatch(),
            squared_mean, "mse", keras.losses.Tversky(),
        ],
        ids=["sum", "own_call", "across", "mean", "mse", "tversky"],
    )  # fmt: skip
    @pytest.mark.parametrize("weighting", ["none", "n"])
    def test_default(self, loss, weighting):
        model = network((4,), "binary")
        data = (*examples((4,), "binary", n=75), *weights_for(weighting, (4,), n=75))
        model.compile(loss=loss, run_eagerly=True)
        expected = keras_loss(model, data, None)
        slope = plain_gradient(model, data, 32)
        h = HessianOperator(model, data=data)
        assert h.loss() == pytest.approx(expected, rel=2e-5)
        np.testing.assert_allclose(h.gradient(), slope, rtol=1e-3, atol=1e-4 * np.abs(slope).max())

    def test_of_whole_batches_depends_on_the_cut(self):
        model, data = network((4,), "binary"), examples((4,), "binary")
        one = HessianOperator(model, "tversky", data, batch_size=3).loss()
        other = HessianOperator(model, "tversky", data, batch_size=7).loss()
        assert abs(one - other) > 1e-3

    def test_of_examples_does_not(self):
        model, data = network((4,), "binary"), examples((4,), "binary")
        one = HessianOperator(model, "mse", data, batch_size=3)
        other = HessianOperator(model, "mse", data, batch_size=7)
        assert one.loss() == pytest.approx(other.loss(), rel=1e-6)


def matrix(operator):
    return operator @ np.eye(operator.shape[0])


@pytest.mark.usefixtures("float64")
class TestOptimaAreStationary:
    @pytest.mark.parametrize("weighting", ["none", "n", "n1", "zeros"])
    @pytest.mark.few(1)
    def test_weighted_linear_regression(self, weighting):
        """The minimum in closed form, and the Hessian there: 2/N Σ w x x' (not divided by Σ w)."""
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 1))
        weights = weights_for(weighting, (1,), n=20)
        s = weights[0].astype(float).ravel() if weights else np.ones(20)
        ones = np.concatenate([x, np.ones((20, 1))], 1)
        best = np.linalg.solve((ones * s[:, None]).T @ ones, (ones * s[:, None]).T @ y)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.set_weights([best[:3], best[3]])
        model.compile(loss="mse")
        h = HessianOperator(model, data=(x, y, *weights), batch_size=6)
        assert np.abs(h.gradient()).max() < 1e-6
        residual = (s * (ones @ best - y)[:, 0] ** 2).sum() / 20
        assert h.loss() == pytest.approx(residual, rel=1e-6)
        np.testing.assert_allclose(matrix(h), 2 * (ones * s[:, None]).T @ ones / 20, rtol=1e-6)
        g = GaussNewtonOperator(model, data=(x, y, *weights), batch_size=6)
        np.testing.assert_allclose(matrix(g), matrix(h), rtol=1e-6, atol=1e-12)

    def test_fisher_of_weighted_regression(self):
        """F = 1/N Σ w g g' with g = 2 r x."""
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 1))
        s = weights_for("n", (1,), n=20)[0]
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
        g = 2 * (x @ model.get_weights()[0] - y) * x
        f = FisherOperator(model, "mse", (x, y, s), batch_size=6)
        np.testing.assert_allclose(matrix(f), (g * s[:, None]).T @ g / 20, rtol=1e-5, atol=1e-9)

    def test_ridge_regression(self):
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 1))
        s = weights_for("n", (1,), n=20)[0].astype(float)
        best = np.linalg.solve(
            (x * s[:, None]).T @ x / 20 + 0.1 * np.eye(3), (x * s[:, None]).T @ y / 20
        )
        layer = keras.layers.Dense(1, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.1))
        model = keras.Sequential([keras.Input((3,)), layer])
        model.set_weights([best])
        model.compile(loss="mse")
        assert np.abs(HessianOperator(model, data=(x, y, s), batch_size=6).gradient()).max() < 1e-6
