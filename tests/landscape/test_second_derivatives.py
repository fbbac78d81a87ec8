"""Second derivatives that TensorFlow lacks are made right, or refused by the name of the layer."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf import landscape
from esgd_tf.landscape import FisherOperator, GaussNewtonOperator, HessianOperator
from esgd_tf.landscape import _try as trials
from esgd_tf.landscape._second_derivatives import twice_differentiable
from tests.landscape.problems import cross_entropy, examples, mlp, quadratic, same_state, state

K = keras.layers
KINDS = [HessianOperator, GaussNewtonOperator, FisherOperator]


def matrix(operator):
    return operator @ np.eye(operator.shape[0])


def images(n=6, dtype="float32"):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 4, 4, 2)).astype(dtype), rng.integers(0, 3, n)


def around(*layers, shape=(4, 4, 2)):
    """Return a network with weights before and behind some layers."""
    before = K.Dense(shape[-1], activation="tanh", name="before")
    return keras.Sequential([keras.Input(shape), before, *layers, K.Flatten(), K.Dense(3)])


# ---- made right ---------------------------------------------------------------------------------


def second_derivatives(function, x):
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            value = function(x)
        slope = inner.gradient(value, x)
    return slope.numpy(), outer.jacobian(slope, x).numpy()


@pytest.fixture
def eagerly():
    """Let no graphs be traced, where it is not graphs that matter."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


class TestExact:
    def test_variance_of_k_numbers(self):
        """The Hessian of the variance of k numbers is 2/k (I - 11'/k)."""
        x = tf.constant([1.0, -2.0, 4.0], tf.float64)
        variance = lambda x: tf.nn.moments(x, [0])[1]  # noqa: E731
        with twice_differentiable(keras.Sequential([])):
            slope, hessian = second_derivatives(variance, x)
        np.testing.assert_allclose(hessian, 2 / 3 * (np.eye(3) - 1 / 3), atol=1e-15)
        np.testing.assert_allclose(slope, 2 / 3 * (x - np.mean(x)), atol=1e-15)

    def test_softsign(self):
        x = tf.constant([-2.0, 0.5, 3.0], tf.float64)
        with twice_differentiable(keras.Sequential([])):
            slope, hessian = second_derivatives(tf.nn.softsign, x)
        a = 1 + np.abs(x)
        np.testing.assert_allclose(slope, a**-2, rtol=1e-14)
        np.testing.assert_allclose(np.diag(hessian), -2 * np.sign(x) * a**-3, rtol=1e-14)

    @pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos3", "gaussian"])
    def test_first_derivatives_of_resizing_are_those_of_tensorflow(self, method):
        x = tf.constant(images()[0])

        def slope():
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.image.resize(x, (7, 3), method)
                value = tf.reduce_sum(y**3)
            return y.numpy(), tape.gradient(value, x).numpy()

        before = slope()
        with twice_differentiable(keras.Sequential([])):
            now = slope()
        np.testing.assert_array_equal(now[0], before[0])
        np.testing.assert_allclose(now[1], before[1], rtol=1e-5, atol=1e-5)

    @pytest.mark.slow
    def test_values_stay_as_they_are(self):
        x, y = images()
        layers = [
            K.LayerNormalization(), K.GroupNormalization(1), K.Activation("softsign"),
            K.UpSampling2D(2, interpolation="bilinear"), K.Resizing(3, 3, "bicubic"),
        ]  # fmt: skip
        model = around(*layers)
        expected = model(x).numpy()
        with twice_differentiable(model):
            np.testing.assert_array_equal(model(x), expected)
        before = state(model)
        h = HessianOperator(model, cross_entropy(), (x, y))
        h @ np.ones(h.shape[0])
        assert same_state(before, state(model))

    @pytest.mark.slow
    @pytest.mark.usefixtures("float64", "eagerly")
    def test_a_direction_along_which_the_loss_is_constant(self):
        """LayerNormalization does not see what is added to all features."""
        x, y = examples(20, 3, 3)
        model = keras.Sequential(
            [keras.Input((3,)), K.Dense(2, name="d"), K.LayerNormalization(), K.Dense(3)]
        )
        h = HessianOperator(model, cross_entropy(), (x, y))
        v = np.zeros(h.shape[0])
        v[6:8] = 1.0  # the biases of the first layer
        assert np.abs(h @ v).max() < 1e-10
        assert np.abs(matrix(h)[:8, :8]).max() > 1e-2

    def test_is_undone_whatever_happens(self):
        before = (tf.nn.moments, tf.nn.softsign, tf.image.resize)
        with pytest.raises(RuntimeError), twice_differentiable(keras.Sequential([])):
            with twice_differentiable(keras.Sequential([])):
                assert tf.nn.moments is not before[0]
            assert tf.nn.moments is not before[0]
            raise RuntimeError
        assert (tf.nn.moments, tf.nn.softsign, tf.image.resize) == before

    def test_other_threads_see_nothing_of_it(self):
        x = tf.constant([1.0, -2.0, 4.0], tf.float64)
        variance = lambda x: tf.nn.moments(x, [0])[1]  # noqa: E731
        found, inside, done = [], threading.Event(), threading.Event()

        def other():
            inside.wait()
            found.append(second_derivatives(variance, x)[1])
            with twice_differentiable(keras.Sequential([])):
                done.set()
                found.append(second_derivatives(variance, x)[1])

        thread = threading.Thread(target=other)
        thread.start()
        with twice_differentiable(keras.Sequential([])):
            inside.set()
            done.wait()
        thread.join()
        np.testing.assert_allclose(found[0], 2 / 3 * np.eye(3))
        np.testing.assert_allclose(found[1], 2 / 3 * (np.eye(3) - 1 / 3), atol=1e-15)
        assert tf.nn.moments.__module__.startswith("tensorflow")

    @pytest.mark.slow
    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize("use_cudnn", ["auto", True])
    def test_the_kernels_of_cudnn_are_not_asked_for(self, monkeypatch, use_cudnn):
        asked = []

        def kernel(*arguments, **options):
            asked.append(1)
            raise NotImplementedError

        monkeypatch.setattr(keras.src.backend, "lstm", kernel)
        monkeypatch.setattr(keras.src.backend, "gru", kernel)
        layers = [
            K.LSTM(2, use_cudnn=use_cudnn, return_sequences=True),
            K.Bidirectional(K.GRU(2, use_cudnn="auto")),
        ]
        model = keras.Sequential([keras.Input((2, 3)), *layers, K.Dense(3)])
        # Building the second network has called the first layer's `call`.
        asked.clear()
        x, y = np.ones((4, 2, 3), "float32"), np.arange(4) % 3
        h = HessianOperator(model, cross_entropy(), (x, y))
        h @ np.ones(h.shape[0])
        assert asked == []
        assert layers[0].use_cudnn == use_cudnn
        assert layers[1].forward_layer.use_cudnn == "auto"


@pytest.mark.usefixtures("eagerly")
class TestEmbedding:
    """A table is a dense layer of one-hot rows."""

    def networks(self):
        table = keras.Sequential(
            [keras.Input((4,), dtype="int32"), K.Embedding(5, 2), K.Flatten(), K.Dense(3)]
        )
        dense = keras.Sequential(
            [keras.Input((4, 5)), K.Dense(2, use_bias=False), K.Flatten(), K.Dense(3)]
        )
        rng = np.random.default_rng(3)
        weights = [rng.normal(size=v.shape) for v in table.trainable_variables]
        table.set_weights(weights)
        dense.set_weights(weights)
        # Some rows are looked up twice by an example, some by none.
        x, y = rng.integers(0, 4, (9, 4)), rng.integers(0, 3, 9)
        return (table, (x, y)), (dense, (np.eye(5)[x], y))

    @pytest.mark.usefixtures("float64")
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.few(1)
    def test_operators(self, kind):
        (table, data), (dense, rows) = self.networks()
        one, other = kind(table, cross_entropy(), data), kind(dense, cross_entropy(), rows)
        np.testing.assert_allclose(matrix(one), matrix(other), atol=1e-12)
        np.testing.assert_allclose(one.gradient(), other.gradient(), atol=1e-12)

    @pytest.mark.slow
    def test_measures(self):
        (table, data), (dense, rows) = self.networks()
        for model, given in ((table, data), (dense, rows)):
            h = HessianOperator(model, cross_entropy(), given)
            values = [landscape.eigenpairs(h, 2, progress=False).eigenvalues]
            values.append([landscape.sharpness(model, cross_entropy(), given, progress=False).loss])
            found = landscape.local_entropy(
                model, cross_entropy(), given, [10.0, 100.0], chains=2, burn_in=8, samples=8,
                progress=False,
            )  # fmt: skip
            values.append(found.values)
            if model is table:
                expected = values
        for one, other in zip(values, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4)


# ---- Gauss-Newton -------------------------------------------------------------------------------


def head(activation, units=3):
    return keras.Sequential([keras.Input((3,)), K.Dense(4, "tanh"), K.Dense(units, activation)])


def plain_softmax(z):
    """Keras' losses know it by its operation, and only in a graph."""
    return tf.nn.softmax(z)


@pytest.mark.usefixtures("float64")
class TestGaussNewtonOfProbabilities:
    @pytest.mark.usefixtures("eagerly")
    @pytest.mark.parametrize(
        ("activation", "units", "loss"),
        [
            ("softmax", 3, keras.losses.SparseCategoricalCrossentropy),
            ("softmax", 3, keras.losses.CategoricalCrossentropy),
            ("sigmoid", 1, keras.losses.BinaryCrossentropy),
        ],
    )
    @pytest.mark.slow
    def test_is_that_of_the_logits(self, activation, units, loss):
        x, y = examples(12, 3, 3)
        if units == 1:
            y = (y > 0)[:, None].astype(float)
        elif loss is keras.losses.CategoricalCrossentropy:
            y = np.eye(3)[y]
        one, other = head(activation, units), head(None, units)
        other.set_weights(one.get_weights())
        expected = matrix(GaussNewtonOperator(other, loss(from_logits=True), (x, y)))
        found = matrix(GaussNewtonOperator(one, loss(), (x, y), batch_size=5))
        np.testing.assert_allclose(found, expected, atol=1e-10)
        assert np.linalg.eigvalsh(found)[-1] > 1e-3

    @pytest.mark.slow
    def test_of_an_operation_is_that_of_the_logits(self):
        data = examples(12, 3, 3)
        one, other = head(plain_softmax), head(None)
        other.set_weights(one.get_weights())
        v = np.ones(31)
        expected = GaussNewtonOperator(other, cross_entropy(), data) @ v
        loss = keras.losses.SparseCategoricalCrossentropy()
        np.testing.assert_allclose(GaussNewtonOperator(one, loss, data) @ v, expected, atol=1e-10)

    @pytest.mark.usefixtures("eagerly")
    def test_of_another_loss_is_that_of_the_probabilities(self):
        x, y = examples(12, 3, 3)
        model, targets = head("softmax"), np.eye(3)[y]
        jacobian = jacobian_of(model, x, lambda out: out)
        expected = jacobian.T @ jacobian * 2 / 3 / 12
        found = matrix(GaussNewtonOperator(model, "mse", (x, targets)))
        np.testing.assert_allclose(found, expected, atol=1e-12)


def jacobian_of(model, x, pick):
    """Return the Jacobian [outputs, weights] of one output, with all examples below each other."""
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(variables)
        out = tf.reshape(pick(model(x)), [-1])
    parts = tape.jacobian(out, variables, unconnected_gradients="zero")
    return np.concatenate([np.reshape(j, (out.shape[0], -1)) for j in parts], axis=1)


@pytest.mark.usefixtures("float64", "eagerly")
class TestGaussNewtonOfSeveralOutputs:
    @pytest.mark.few(1)
    @pytest.mark.parametrize("as_dict", [False, True])
    def test_is_the_sum(self, as_dict):
        """The second output is made of the first one, which has a loss too."""
        x, _ = examples(8, 3)
        inputs = keras.Input((3,))
        one = K.Dense(2, "tanh", name="one")(inputs)
        two = K.Dense(2, "tanh", name="two")(one)
        model = keras.Model(inputs, {"one": one, "two": two} if as_dict else [one, two])
        rng = np.random.default_rng(1)
        targets = [rng.normal(size=(8, 2)) for _ in range(2)]
        loss, y = ["mse", "mse"], targets
        picks = [lambda out: out[0], lambda out: out[1]]
        if as_dict:
            loss, y = {"one": "mse", "two": "mse"}, dict(zip(("one", "two"), targets, strict=True))
            picks = [lambda out: out["one"], lambda out: out["two"]]
        expected = 0
        for pick in picks:
            jacobian = jacobian_of(model, x, pick)
            expected = expected + jacobian.T @ jacobian * 2 / 2 / 8
        found = matrix(GaussNewtonOperator(model, loss, (x, y)))
        np.testing.assert_allclose(found, expected, atol=1e-12)

    @pytest.mark.slow
    def test_probabilities_and_numbers(self):
        """One output is taken by its logits, the other one as it is."""
        x, y = examples(8, 3, 3)
        inputs = keras.Input((3,))
        hidden = K.Dense(3, "tanh")(inputs)
        logits, number = K.Dense(3)(hidden), K.Dense(1)(hidden)
        plain = keras.Model(inputs, [logits, number])
        model = keras.Model(inputs, [K.Softmax()(logits), number])
        data = (x, [y, x[:, :1]])
        expected = matrix(GaussNewtonOperator(plain, [cross_entropy(), "mse"], data))
        loss = [keras.losses.SparseCategoricalCrossentropy(), "mse"]
        found = matrix(GaussNewtonOperator(model, loss, data))
        np.testing.assert_allclose(found, expected, atol=1e-10)


# ---- refused ------------------------------------------------------------------------------------


@tf.custom_gradient
def half_differentiable(x):
    """x² with a first derivative, and zero where the second one should be."""
    return tf.square(x), lambda g: g * tf.stop_gradient(2 * x)


class Half(K.Layer):
    def call(self, x):
        return half_differentiable(x)


class Once(K.Layer):
    """TensorFlow has no gradient of the gradient of this operation, and raises."""

    def call(self, x):
        return tf.raw_ops.Softsign(features=x)


class Own32(K.Layer):
    """Insists on float32."""

    def call(self, x):
        return tf.raw_ops.Mul(x=x, y=tf.constant(2.0, tf.float32))


class OwnHalf32(K.Layer):
    def call(self, x):
        return tf.raw_ops.Mul(x=half_differentiable(x), y=tf.constant(2.0, tf.float32))


def half_loss(y, predictions):
    return half_differentiable(predictions[:, 0]) + tf.square(predictions[:, 1])


@pytest.mark.usefixtures("eagerly")
class TestRefused:
    @pytest.mark.parametrize("kind", [HessianOperator])
    def test_a_second_derivative_that_is_silently_zero(self, kind):
        inner = keras.Sequential([keras.Input((4, 4, 2)), K.ReLU(), Half(name="half")])
        model = around(K.Dense(2, "tanh"), inner)
        with pytest.raises(ValueError, match=r"the Hessian.*the layer 'half' \(Half\) twice"):
            kind(model, cross_entropy(), images())

    @pytest.mark.few(1)
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_gradient_that_is_not_registered(self, kind):
        model = around(K.Dense(2, "tanh"), Once(name="once"))
        with pytest.raises(ValueError, match=r"the layer 'once' \(Once\) twice") as caught:
            kind(model, cross_entropy(), images())
        assert isinstance(caught.value.__cause__, LookupError)

    def test_only_weights_behind_it_are_varied(self):
        model = around(K.Dense(2, "tanh"), Once(name="once"))
        last = model.layers[-1]
        h = HessianOperator(model, cross_entropy(), images(), variables=[last])
        assert np.isfinite(matrix(h)).all()

    @pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator])
    def test_a_loss(self, kind):
        with pytest.raises(ValueError, match="differentiate the loss twice: use another loss"):
            kind(mlp(), half_loss, examples(10, dtype="float32"))

    @pytest.mark.few(1)
    @pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator])
    def test_ctc(self, kind):
        model = keras.Sequential([keras.Input((5, 3)), K.Dense(4, "tanh"), K.Dense(4)])
        x = np.random.default_rng(0).normal(size=(3, 5, 3)).astype("float32")
        y = np.array([[1, 2], [3, 1], [2, 2]])
        with pytest.raises(ValueError, match="differentiate the CTC loss twice"):
            kind(model, keras.losses.CTC(), (x, y))
        FisherOperator(model, keras.losses.CTC(), (x, y))

    def test_a_loss_of_weights(self):
        with pytest.raises(ValueError, match="the loss function twice"):
            HessianOperator(
                [np.ones(3, "float32")], lambda w: tf.reduce_sum(half_differentiable(w[0]))
            )

    def test_a_layer_that_insists_on_float32(self):
        """What cannot be tried in float64 is tried for symmetry only."""
        model = around(K.Dense(2, "tanh"), OwnHalf32(name="own"))
        with pytest.raises(ValueError, match=r"the layer 'own' \(OwnHalf32\)"):
            HessianOperator(model, cross_entropy(), images())
        HessianOperator(around(K.Dense(2, "tanh"), Own32()), cross_entropy(), images())

    def test_leaves_all_as_it_was(self):
        model = around(K.Dense(2, "tanh"), Once(name="once"))
        before, policies = state(model), [layer.dtype_policy for layer in model.layers]
        cast, called = tf.cast, keras.layers.Layer.__call__
        with pytest.raises(ValueError, match="once"):
            HessianOperator(model, cross_entropy(), images())
        assert same_state(before, state(model))
        assert [layer.dtype_policy for layer in model.layers] == policies
        assert tf.cast is cast
        assert keras.layers.Layer.__call__ is called
        assert "call" not in vars(model.layers[0])

    def test_an_error_of_a_product_is_a_sentence(self, monkeypatch):
        """Where the trial has found nothing, and the graph of a product has no gradient."""
        monkeypatch.setattr("esgd_tf.landscape.operator.try_products", lambda operator: None)
        h = HessianOperator(around(Once(name="once")), cross_entropy(), images())
        with pytest.raises(ValueError, match="the layer 'once'") as caught:
            h @ np.ones(h.shape[0])
        assert isinstance(caught.value.__cause__, LookupError)


# ---- and nothing else ---------------------------------------------------------------------------


@pytest.mark.usefixtures("eagerly")
class TestNoFalseAlarm:
    @pytest.mark.few(1)
    @pytest.mark.parametrize("kind", KINDS)
    def test_kinks(self, kind):
        """Thousands of kinks, of which a few are in any direction and at any distance."""
        model = keras.Sequential(
            [
                keras.Input((8, 8, 3)), K.Conv2D(32, 3, activation="relu"), K.MaxPooling2D(2),
                K.Conv2D(64, 2, activation="leaky_relu"), K.GlobalMaxPooling2D(),
                K.Dense(500, "relu"), K.Dense(500, "hard_sigmoid"), K.Dense(4),
            ]
        )  # fmt: skip
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(50, 8, 8, 3)).astype("float32"), rng.integers(0, 4, 50)
        kind(model, cross_entropy(), (x, y))

    def test_a_kink_at_the_place_itself(self):
        """All biases are 0, and some inputs are."""
        x, y = examples(20, 3, dtype="float32")
        x[::2] = 0.0
        for kind in KINDS:
            kind(mlp(activation="relu"), cross_entropy(), (x, y))

    def test_no_curvature(self):
        weights = [np.ones(3, "float32")]
        h = HessianOperator(weights, lambda w: tf.reduce_sum(w[0]))
        np.testing.assert_array_equal(matrix(h), 0)
        h = HessianOperator(weights, lambda w: tf.reduce_sum(tf.abs(w[0])))
        np.testing.assert_array_equal(matrix(h), 0)
        model = keras.Sequential([keras.Input((3,)), K.Dense(4, "relu"), K.Dense(1)])
        model.layers[0].bias.assign(-100.0 * np.ones(4))
        x, _ = examples(20, 3, dtype="float32")
        for kind in KINDS:
            kind(model, "mse", (x, x[:, :1]))

    def test_tiny_and_huge_losses(self):
        for scale in (1e-20, 1e20):
            a = scale * np.diag([1.0, 2.0, 3.0, 4.0])
            HessianOperator(*quadratic(a))
            HessianOperator(*quadratic(a, scale * np.ones(4), dtype="float32"))

    @pytest.mark.parametrize("kind", KINDS)
    def test_costs_no_products_and_no_random_numbers(self, kind):
        model, data = mlp(), examples(dtype="float32")
        np.random.seed(1)
        tf.random.set_seed(1)
        first = np.random.rand(), float(tf.random.uniform([]))
        np.random.seed(1)
        tf.random.set_seed(1)
        operator = kind(model, cross_entropy(), data)
        assert operator.matvecs == 0
        assert first == (np.random.rand(), float(tf.random.uniform([])))

    def test_is_tried_once_for_a_network_and_a_loss(self, monkeypatch):
        tried = []
        monkeypatch.setattr("esgd_tf.landscape.operator.try_products", tried.append)
        model, loss, data = mlp(), cross_entropy(), examples(dtype="float32")
        h = HessianOperator(model, loss, data)
        HessianOperator(model, loss, data)
        h.at(np.zeros(44))
        assert len(tried) == 1
        GaussNewtonOperator(model, loss, data)
        HessianOperator(model, loss, data, variables=["first"])
        HessianOperator(model, cross_entropy(), data)
        assert len(tried) == 4

    def test_the_trial_is_in_float64(self, monkeypatch):
        """Also where layers were built, and losses made, in float32."""
        seen = []
        mistake = trials.mistake

        def watched(trial, weights, *, double):
            seen.append((double, {s.dtype for s in trial.gradient(weights)}))
            return mistake(trial, weights, double=double)

        monkeypatch.setattr(trials, "mistake", watched)
        inner = keras.Sequential([keras.Input((4, 4, 2)), K.Conv2D(2, 2, activation="tanh")])
        HessianOperator(around(inner, K.BatchNormalization()), cross_entropy(), images())
        assert seen == [(True, {tf.float64})]
