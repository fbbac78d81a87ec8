"""Products with curvature matrices, against closed forms and finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import FisherOperator, GaussNewtonOperator, HessianOperator
from tests.landscape.problems import (
    central_hessian,
    cross_entropy,
    examples,
    flat,
    mlp,
    mlp_loss,
    quadratic,
    same_state,
    softmax_regression_hessian,
    state,
    symmetric,
)


def matrix(operator):
    return operator @ np.eye(operator.shape[0])


class TestClosedForms:
    def test_quadratic(self):
        a = symmetric(np.linspace(-2, 5, 11))
        h = HessianOperator(*quadratic(a))
        assert h.shape == (11, 11)
        assert h.dtype == np.float64
        np.testing.assert_allclose(matrix(h), a, atol=1e-13)

    def test_gradient_and_loss_of_a_quadratic(self):
        a, b = symmetric([1.0, 2.0, 3.0, 4.0]), np.arange(4.0)
        h = HessianOperator(*quadratic(a, b)).at(np.ones(4))
        np.testing.assert_allclose(h.gradient(), a @ np.ones(4) + b, atol=1e-13)
        assert h.loss() == pytest.approx(0.5 * a.sum() + b.sum(), abs=1e-13)

    @pytest.mark.usefixtures("float64")
    def test_linear_regression(self):
        x, _ = examples(50, 3)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        h = HessianOperator(model, "mean_squared_error", (x, x[:, :1]))
        ones = np.concatenate([x, np.ones((50, 1))], 1)
        np.testing.assert_allclose(matrix(h), 2 * ones.T @ ones / 50, atol=1e-12)

    @pytest.mark.usefixtures("float64")
    def test_logistic_regression(self):
        x, y = examples(50, 3, classes=2)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
        w = model.weights[0].numpy()
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        h = HessianOperator(model, loss, (x, y[:, None].astype(float)), batch_size=7)
        p = 1 / (1 + np.exp(-x @ w))
        np.testing.assert_allclose(matrix(h), (x * p * (1 - p)).T @ x / 50, atol=1e-12)

    @pytest.mark.usefixtures("float64")
    @pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator])
    def test_softmax_regression(self, kind):
        """Without hidden layers the Gauss-Newton matrix is the Hessian."""
        x, y = examples(40, 3, 4)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, use_bias=False)])
        expected = softmax_regression_hessian(model.weights[0].numpy(), x, 4)
        h = kind(model, cross_entropy(), (x, y), batch_size=16)
        np.testing.assert_allclose(matrix(h), expected, atol=1e-12)

    @pytest.mark.usefixtures("float64")
    def test_mlp_against_central_differences(self):
        """The reference is a NumPy forward pass, differenced twice."""
        model, (x, y) = mlp(), examples()
        w = flat([v.numpy() for v in model.trainable_variables])
        n, step = len(w), 1e-4
        eye = step * np.eye(n)
        loss = lambda v: mlp_loss(v, x, y)  # noqa: E731
        expected = np.empty((n, n))
        for i in range(n):
            for j in range(i, n):
                expected[i, j] = expected[j, i] = (
                    loss(w + eye[i] + eye[j]) - loss(w + eye[i] - eye[j])
                    - loss(w - eye[i] + eye[j]) + loss(w - eye[i] - eye[j])
                ) / (4 * step**2)  # fmt: skip
        h = HessianOperator(model, cross_entropy(), (x, y))
        assert h.loss() == pytest.approx(loss(w), rel=1e-12)
        np.testing.assert_allclose(matrix(h), expected, atol=2e-7)


class TestGaussNewtonAndFisher:
    @pytest.mark.usefixtures("float64")
    @pytest.mark.slow
    def test_gauss_newton_is_jacobian_curvature_jacobian(self):
        model, (x, y) = mlp(), examples(12)
        variables = [v.value for v in model.trainable_variables]
        expected = 0
        for i in range(12):
            with tf.GradientTape() as tape:
                logits = model(x[i : i + 1])[0]
            jacobian = np.concatenate(
                [np.reshape(j, (4, -1)) for j in tape.jacobian(logits, variables)],
                axis=1,
            )
            p = np.exp(logits) / np.exp(logits).sum()
            expected = expected + jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian / 12
        g = GaussNewtonOperator(model, cross_entropy(), (x, y), batch_size=5)
        np.testing.assert_allclose(matrix(g), expected, atol=1e-12)
        assert np.linalg.eigvalsh(matrix(g)).min() > -1e-12

    @pytest.mark.slow
    @pytest.mark.usefixtures("float64")
    @pytest.mark.parametrize("centered", [False, True])
    def test_fisher_is_the_second_moment_of_gradients(self, centered):
        model, (x, y) = mlp(), examples(12)
        rows = []
        for i in range(12):
            with tf.GradientTape() as tape:
                value = cross_entropy()(y[i : i + 1], model(x[i : i + 1]))
            rows.append(flat(tape.gradient(value, [v.value for v in model.trainable_variables])))
        rows = np.stack(rows)
        expected = rows.T @ rows / 12
        if centered:
            expected -= np.outer(rows.mean(0), rows.mean(0))
        f = FisherOperator(model, cross_entropy(), (x, y), batch_size=5, centered=centered)
        np.testing.assert_allclose(matrix(f), expected, atol=1e-12)

    @pytest.mark.usefixtures("float64")
    def test_fisher_of_a_list_of_weights(self):
        x, y = examples(10, 2)
        f = FisherOperator(
            [np.ones(2)], lambda w, x, y: tf.linalg.matvec(x, w[0]) * tf.cast(y, x.dtype), (x, y)
        )
        rows = x * y[:, None]
        np.testing.assert_allclose(matrix(f), rows.T @ rows / 10, atol=1e-13)

    def test_fisher_needs_a_loss_of_each_example(self):
        data = examples(10, 2, dtype="float32")
        with pytest.raises(ValueError, match="loss of each example"):
            FisherOperator(
                [np.ones(2, "float32")], lambda w, x, y: tf.reduce_mean(x @ w[0][:, None]), data
            )
        with pytest.raises(ValueError, match="loss of each example"):
            FisherOperator(*quadratic(np.eye(4)))

    def test_gauss_newton_needs_a_network(self):
        with pytest.raises(ValueError, match="give a Keras model"):
            GaussNewtonOperator(*quadratic(np.eye(4)))


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator, FisherOperator])
class TestFace:
    @pytest.mark.few(1)
    def test_vectors_matrices_and_scipy_agree(self, kind):
        h = kind(mlp(), cross_entropy(), examples(dtype="float32"))
        v = np.random.default_rng(1).standard_normal((h.shape[0], 11))
        together = h @ v
        assert together.shape == v.shape
        one_by_one = np.stack([h @ v[:, k] for k in range(11)], axis=1)
        np.testing.assert_allclose(together, one_by_one, atol=1e-6)
        assert h.matvecs == 22
        linear = h.as_linear_operator()
        np.testing.assert_allclose(linear @ v, together, atol=1e-6)
        np.testing.assert_allclose(linear @ v[:, 0], together[:, 0], atol=1e-6)
        np.testing.assert_allclose(linear.H @ v[:, 0], together[:, 0], atol=1e-6)
        assert (h @ np.zeros((h.shape[0], 0))).shape == (h.shape[0], 0)

    @pytest.mark.few(1)
    def test_batch_size_does_not_matter(self, kind):
        model, data = mlp(), examples(dtype="float32")
        v = np.random.default_rng(1).standard_normal(44)
        results = [kind(model, cross_entropy(), data, batch_size=b) @ v for b in (40, 7, 1)]
        np.testing.assert_allclose(results[1], results[0], atol=1e-6)
        np.testing.assert_allclose(results[2], results[0], atol=1e-6)

    @pytest.mark.few(1)
    def test_leaves_the_model_as_it_was(self, kind):
        model = mlp(batch_norm=True)
        model.layers[0].trainable = False
        before = state(model)
        h = kind(model, cross_entropy(), examples(dtype="float32"), batch_size=16)
        h @ np.ones(h.shape[0])
        h.diagonal_estimate(4)
        h.gradient()
        assert same_state(before, state(model))

    @pytest.mark.few(1)
    def test_later_changes_of_the_model_do_not_matter_until_asked(self, kind):
        model = mlp(batch_norm=True)
        h = kind(model, cross_entropy(), examples(dtype="float32"))
        v = np.ones(h.shape[0])
        before = h @ v
        for variable in model.weights:
            variable.assign(1.1 * variable)
        np.testing.assert_array_equal(h @ v, before)
        moved = h.at() @ v
        assert np.abs(moved - before).max() > 1e-3
        fresh = kind(model, cross_entropy(), examples(dtype="float32")) @ v
        np.testing.assert_allclose(moved, fresh, atol=1e-6)
        old = [w / 1.1 for w in (v.numpy() for v in model.trainable_variables)]
        assert np.abs(h.at(old) @ v - before).max() < 1e-4

    @pytest.mark.slow
    def test_two_devices_are_one(self, kind, two_cpus):
        with two_cpus.scope():
            mirrored = mlp(batch_norm=True)
        single = mlp(batch_norm=True)
        data, v = examples(31, dtype="float32"), np.linspace(-1, 1, 54)
        one = kind(single, cross_entropy(), data, batch_size=8)
        two = kind(mirrored, cross_entropy(), data, batch_size=8)
        np.testing.assert_allclose(two @ v, one @ v, atol=1e-6)
        np.testing.assert_allclose(two.gradient(), one.gradient(), atol=1e-6)
        assert two.loss() == pytest.approx(one.loss(), abs=1e-6)

    @pytest.mark.few(1)
    def test_refuses_other_shapes(self, kind):
        h = kind(mlp(), cross_entropy(), examples(dtype="float32"))
        for wrong in (np.ones(3), np.ones((3, h.shape[0])), np.ones((44, 2, 2)), 1.0):
            with pytest.raises(ValueError, match="dimension 44"):
                h @ wrong
        with pytest.raises(ValueError, match="real numbers"):
            h @ (1j * np.ones(44))


class TestSelection:
    @pytest.mark.usefixtures("float64")
    @pytest.mark.slow
    def test_a_layer_is_a_block_of_the_whole(self):
        model, data = mlp(), examples()
        whole = matrix(HessianOperator(model, cross_entropy(), data))
        n = sum(int(np.prod(v.shape)) for v in model.get_layer("first").trainable_variables)
        first = model.get_layer("first")
        for chosen in (["first"], [first], first.trainable_variables, lambda v: "first" in v.path):
            block = matrix(HessianOperator(model, cross_entropy(), data, variables=chosen))
            np.testing.assert_allclose(block, whole[:n, :n], atol=1e-13)
        kernel = HessianOperator(model, cross_entropy(), data, variables=[first.kernel.path])
        np.testing.assert_allclose(matrix(kernel), whole[:15, :15], atol=1e-13)

    def test_by_index_in_a_list_of_weights(self):
        a = symmetric(np.arange(1.0, 9.0))
        weights, loss = quadratic(a)
        h = HessianOperator(weights, loss, variables=[1])
        np.testing.assert_allclose(matrix(h), a[4:, 4:], atol=1e-13)
        for wrong in ([2], [], ["first"]):
            with pytest.raises(ValueError, match="`variables` must be"):
                HessianOperator(weights, loss, variables=wrong)

    def test_of_nothing_is_refused(self):
        data = examples(dtype="float32")
        with pytest.raises(ValueError, match="'second' is no trainable variable"):
            HessianOperator(mlp(), cross_entropy(), data, variables=["second"])
        with pytest.raises(ValueError, match="leaves no weight"):
            HessianOperator(mlp(), cross_entropy(), data, variables=lambda v: False)


class TestData:
    @pytest.mark.slow
    @pytest.mark.usefixtures("float64")
    def test_sample_weights(self):
        """A weight of 2 is an example that is there twice, but the mean divides by N."""
        model, (x, y) = mlp(), examples(10)
        weight = np.where(np.arange(10) < 3, 2.0, 1.0)
        twice = np.concatenate([x, x[:3]]), np.concatenate([y, y[:3]])
        v = np.linspace(-1, 1, 44)
        for kind in (HessianOperator, GaussNewtonOperator, FisherOperator):
            weighted = kind(model, cross_entropy(), (x, y, weight), batch_size=4) @ v
            expected = 1.3 * (kind(model, cross_entropy(), twice) @ v)
            np.testing.assert_allclose(weighted, expected, rtol=1e-5, atol=1e-7)

    @pytest.mark.slow
    def test_dataset(self):
        model, (x, y) = mlp(), examples(dtype="float32")
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
        v = np.linspace(-1, 1, 44)
        expected = HessianOperator(model, cross_entropy(), (x, y), batch_size=16) @ v
        np.testing.assert_array_equal(
            HessianOperator(model, cross_entropy(), dataset) @ v, expected
        )
        cached = dataset.shuffle(40).cache()
        shuffled = HessianOperator(model, cross_entropy(), cached) @ v
        np.testing.assert_allclose(shuffled, expected, atol=1e-6)

    def test_a_dataset_that_shuffles_is_refused(self):
        x, y = examples(dtype="float32")
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(40).batch(16)
        with pytest.raises(ValueError, match="other batches at its second pass"):
            HessianOperator(mlp(), cross_entropy(), dataset)
        endless = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).repeat()
        with pytest.raises(ValueError, match="never ends"):
            HessianOperator(mlp(), cross_entropy(), endless)

    def test_losses_of_layers_count(self):
        layer = keras.layers.Dense(1, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.3))
        model = keras.Sequential([keras.Input((3,)), layer])
        x, _ = examples(20, 3, dtype="float32")
        with_it = matrix(HessianOperator(model, "mse", (x, x[:, :1]), batch_size=7))
        np.testing.assert_allclose(with_it, 2 * x.T @ x / 20 + 0.6 * np.eye(3), atol=1e-5)

    def test_compiled_loss(self):
        model, data = mlp(), examples(dtype="float32")
        model.compile(loss=cross_entropy())
        given = HessianOperator(model, cross_entropy(), data) @ np.ones(44)
        np.testing.assert_array_equal(HessianOperator(model, None, data) @ np.ones(44), given)

    @pytest.mark.slow
    def test_a_loss_function_that_gives_the_mean(self):
        model, data = mlp(), examples(dtype="float32")
        mean = HessianOperator(model, cross_entropy().__call__, data) @ np.ones(44)
        each = HessianOperator(model, cross_entropy(), data) @ np.ones(44)
        np.testing.assert_allclose(mean, each, atol=1e-6)

    @pytest.mark.parametrize(
        ("loss", "data", "message"),
        [
            ("mse", None, "There are no data"),
            ("mse", (np.ones((3, 3)), np.ones(2)), "differ in their number"),
            ("mse", (np.ones((0, 3)), np.ones((0, 4))), "no examples"),
            ("mse", np.ones((3, 3)), "no targets"),
            ("no_such_loss", (np.ones((3, 3)), np.ones((3, 4))), "no loss named"),
            (None, (np.ones((3, 3)), np.ones((3, 4))), "no loss"),
            (3.0, (np.ones((3, 3)), np.ones((3, 4))), "`loss` must be"),
            ("mse", (np.full((3, 3), np.nan), np.ones((3, 4))), "is nan"),
        ],
    )
    def test_bad_input_is_named(self, loss, data, message):
        with pytest.raises(ValueError, match=message):
            HessianOperator(mlp(), loss, data)

    def test_bad_batch_size_and_model(self):
        data = examples(dtype="float32")
        for size in (0, 2.5, True):
            with pytest.raises(ValueError, match="`batch_size` must be"):
                HessianOperator(mlp(), cross_entropy(), data, batch_size=size)
        with pytest.raises(ValueError, match="no weights yet"):
            HessianOperator(keras.Sequential([keras.layers.Dense(2)]), "mse", data)
        with pytest.raises(ValueError, match="must be a Keras model or"):
            HessianOperator("model", "mse", data)


class TestDiagonal:
    def test_of_a_diagonal_matrix_is_exact(self):
        values = np.linspace(-1, 3, 8)
        estimate = HessianOperator(*quadratic(np.diag(values))).diagonal_estimate(4)
        np.testing.assert_allclose(estimate.estimate, values, atol=1e-13)
        np.testing.assert_allclose(estimate.standard_error, 0, atol=1e-6)

    def test_lies_within_its_errors(self):
        a = symmetric(np.linspace(-1, 3, 24))
        h = HessianOperator(*quadratic(a))
        found = h.diagonal_estimate(400, seed=3)
        z = (found.estimate - np.diag(a)) / found.standard_error
        assert np.abs(z).max() < 4
        assert 0.5 < z.std() < 1.5
        again = h.diagonal_estimate(400, seed=3)
        np.testing.assert_array_equal(again.estimate, found.estimate)
        assert np.abs(h.diagonal_estimate(400, seed=4).estimate - found.estimate).max() > 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_central_differences_of_the_gradient_agree_with_batch_norm_too():
    model = mlp(batch_norm=True)
    h = HessianOperator(model, cross_entropy(), examples())
    w = flat([v.numpy() for v in model.trainable_variables])
    expected = central_hessian(lambda v: h.at(v).gradient(), w)
    np.testing.assert_allclose(matrix(h), expected, atol=1e-8)
