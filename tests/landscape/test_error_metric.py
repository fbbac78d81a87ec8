"""The error rate, read as the loss says, and metrics of the user's, called as Keras calls them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import interpolate, local_energy
from tests.landscape.keras_losses import examples, network, weights_for

layers = keras.layers
N = 40


def measure(model, data, metric="error", loss=None, **options):
    """Return a metric at the weights of the model: noise of width 0."""
    found = interpolate(
        model, model.get_weights(), model.get_weights(), [0.0], loss=loss, data=data,
        metric=metric, gradient_norm=False, **options,
    )  # fmt: skip
    (name,) = found.values["data"]
    return float(found.values["data"][name][0])


def outputs_as_given(activation=None, shape=(1,), final=()):
    """Return a network whose outputs are its inputs, after an activation."""
    size = int(np.prod(shape))
    model = keras.Sequential([keras.Input((size,)), layers.Dense(size, use_bias=False)])
    model.set_weights([np.eye(size)])
    if activation:
        model.add(layers.Activation(activation))
    if shape != (size,) or final:
        model.add(layers.Reshape(final if final != () else shape))
    return model


def logits_and_labels(wrong=0):
    """Return logits [n, 1] of which so many are on the wrong side, and 0 or 1 [n]."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, N)
    # Between 0 and 0.5 too, where a threshold for probabilities errs.
    x = np.where(y == 1, 1.0, -1.0) * rng.uniform(0.05, 0.45, N)
    x[:wrong] *= -1
    return x[:, None].astype("float32"), y


BCE = keras.losses.BinaryCrossentropy
BINARY = {
    "logits": (BCE(from_logits=True), None),
    "focal_logits": (keras.losses.BinaryFocalCrossentropy(from_logits=True), None),
    "probabilities": (BCE(), "sigmoid"),
    "focal": (keras.losses.BinaryFocalCrossentropy(), "sigmoid"),
    "string": ("binary_crossentropy", "sigmoid"),
    "alias": ("bce", "sigmoid"),
    "by_shape": ("crossentropy", "sigmoid"),
    "function": (keras.losses.binary_crossentropy, "sigmoid"),
    "hinge": ("hinge", None),
    "hinge_object": (keras.losses.Hinge(), "tanh"),
    "squared_hinge": (keras.losses.SquaredHinge(), None),
    "list": ([BCE(from_logits=True)], None),
    "dice": ("dice", "sigmoid"),
}


@pytest.mark.usefixtures("eagerly")
class TestYesOrNo:
    @pytest.mark.few(6)
    @pytest.mark.parametrize("name", BINARY)
    @pytest.mark.parametrize("wrong", [0, 7])
    @pytest.mark.parametrize("compiled", [True, False])
    def test_threshold_is_that_of_the_loss(self, name, wrong, compiled):
        loss, activation = BINARY[name]
        x, y = logits_and_labels(wrong)
        model = outputs_as_given(activation)
        if compiled:
            model.compile(loss=loss)
        found = measure(model, (x, y), loss=None if compiled else loss)
        assert found == pytest.approx(wrong / N)

    def test_agrees_with_accuracy_of_keras(self):
        x, y = logits_and_labels(7)
        model = outputs_as_given("sigmoid")
        model.compile(loss="bce", metrics=["accuracy"])
        accuracy = model.evaluate(x, y, verbose=0, return_dict=True)["accuracy"]
        assert measure(model, (x, y)) == pytest.approx(1 - accuracy)

    @pytest.mark.parametrize("targets", ["n", "n1"])
    @pytest.mark.parametrize("final", [(), (1,)], ids=["n", "n1"])
    @pytest.mark.parametrize("dtype", ["int32", "float32", "float64", "bool"])
    def test_shapes_and_dtypes(self, targets, final, dtype):
        x, y = logits_and_labels(7)
        model = keras.Sequential([keras.Input((1,)), layers.Dense(1), layers.Reshape(final)])
        model.set_weights([np.ones((1, 1)), np.zeros(1)])
        y = y.astype(dtype) if targets == "n" else y[:, None].astype(dtype)
        assert measure(model, (x, y), loss=BCE(from_logits=True)) == pytest.approx(7 / N)

    @pytest.mark.parametrize("labels", [(-1, 1), (0, 1)], ids=str)
    @pytest.mark.parametrize("loss", ["hinge", "squared_hinge", "object"])
    def test_hinge_takes_labels_of_either_convention(self, labels, loss):
        x, y = logits_and_labels(7)
        loss = keras.losses.Hinge() if loss == "object" else loss
        y = np.where(y == 1, labels[1], labels[0])
        assert measure(outputs_as_given(), (x, y), loss=loss) == pytest.approx(7 / N)

    def test_several_outputs_of_yes_or_no(self):
        """Each is right or wrong, and the examples' rate is their mean, as `BinaryAccuracy` is."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((N, 3)).astype("float32")
        y = (x > 0).astype("float32")
        y[:6, 0] = 1 - y[:6, 0]
        model = outputs_as_given(shape=(3,))
        assert measure(model, (x, y), loss=BCE(from_logits=True)) == pytest.approx(6 / (3 * N))

    def test_in_graphs(self):
        tf.config.run_functions_eagerly(False)
        found = measure(outputs_as_given(), logits_and_labels(7), loss=BCE(from_logits=True))
        assert found == pytest.approx(7 / N)

    def test_a_perfect_classifier_of_logits_has_none(self):
        model = outputs_as_given()
        model.compile(loss=BCE(from_logits=True))
        found = local_energy(model, logits_and_labels(0), samples=2, sigmas=[1e-9])
        assert found.reference["data"]["error"] == 0.0


MANY = {
    "sparse": ("sparse_categorical_crossentropy", "softmax", False),
    "sparse_logits": (keras.losses.SparseCategoricalCrossentropy(from_logits=True), None, False),
    "one_hot": ("categorical_crossentropy", "softmax", True),
    "one_hot_logits": (keras.losses.CategoricalCrossentropy(from_logits=True), None, True),
    "focal": ("categorical_focal_crossentropy", "softmax", True),
    "categorical_hinge": ("categorical_hinge", None, True),
    "kld": ("kld", "softmax", True),
    "generalized": (keras.losses.CategoricalGeneralizedCrossEntropy(), "softmax", False),
    "by_shape": ("crossentropy", "softmax", False),
    "own": (lambda y, p: keras.losses.sparse_categorical_crossentropy(y, p, True), None, False),
}


@pytest.mark.usefixtures("eagerly")
class TestClasses:
    @pytest.mark.few(4)
    @pytest.mark.parametrize("name", MANY)
    @pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 3)], ids=str)
    def test_is_the_share_of_wrong_classes(self, name, shape):
        loss, activation, one_hot = MANY[name]
        rng = np.random.default_rng(0)
        x = rng.standard_normal((N, int(np.prod(shape)))).astype("float32")
        y = x.reshape(N, *shape).argmax(-1)
        y.flat[:6] = (y.flat[:6] + 1) % 3
        targets = np.eye(3, dtype="float32")[y] if one_hot else y
        model = outputs_as_given(shape=shape)
        if activation:
            model.add(layers.Activation(activation))
        assert measure(model, (x, targets), loss=loss) == pytest.approx(6 / y.size)
        if not one_hot:
            assert measure(model, (x, y[..., None]), loss=loss) == pytest.approx(6 / y.size)

    @pytest.mark.parametrize("weighting", ["n", "zeros", "each"])
    def test_weights(self, weighting):
        """Σ w m / Σ w, as `weighted_metrics` have it."""
        shape = (2, 3)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((N, 6)).astype("float32")
        y = rng.integers(0, 3, (N, 2))
        (w,) = weights_for(weighting, shape, n=N)
        w = w[:, None] if w.ndim == 1 else w  # Keras takes no (n,) for values (n, t)
        model = outputs_as_given(shape=shape)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        wrong = (x.reshape(N, 2, 3).argmax(-1) != y).astype(float)
        wide = np.broadcast_to(w.reshape(N, -1), (N, 2))
        expected = (wide * wrong).sum() / wide.sum()
        found = measure(model, (x, y, w), loss=loss, batch_size=7)
        assert found == pytest.approx(expected, rel=1e-5)
        model.compile(loss=loss, weighted_metrics=["accuracy"])
        result = model.evaluate(x, y, sample_weight=w, batch_size=7, verbose=0, return_dict=True)
        assert found == pytest.approx(1 - result["accuracy"], rel=1e-5)

    def test_masks(self):
        model = keras.Sequential([keras.Input((5,), dtype="int32")])
        model.add(layers.Embedding(6, 3, mask_zero=True))
        model.add(layers.Dense(3))
        x = np.arange(5 * N).reshape(N, 5) % 6
        y = np.arange(5 * N).reshape(N, 5) % 3
        wrong = model(x).numpy().argmax(-1) != y
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        found = measure(model, (x, y), loss=loss, batch_size=7)
        assert found == pytest.approx(wrong[x > 0].mean(), rel=1e-5)
        assert abs(found - wrong.mean()) > 1e-3

    def test_a_prediction_that_is_not_a_number_is_not_a_class(self):
        model = outputs_as_given(shape=(3,))
        x = np.full((N, 3), np.nan, "float32")
        found = measure(model, (x, np.zeros(N)), loss="sparse_categorical_crossentropy")
        assert np.isnan(found)


def own_loss(y, p):
    return tf.reduce_mean(tf.square(tf.cast(y, p.dtype) - p), axis=-1)


REGRESSION = [
    "mse", "mean_squared_error", "mae", "mape", "msle", "huber", "log_cosh", "cosine_similarity",
    "poisson", keras.losses.MeanSquaredError(), keras.losses.Huber(), keras.losses.Poisson(),
    keras.losses.mean_absolute_error, ["mse"], keras.losses.LogCosh,
]  # fmt: skip


@pytest.mark.usefixtures("eagerly")
class TestRefused:
    @pytest.mark.parametrize("number", range(len(REGRESSION)))
    @pytest.mark.parametrize("shape", [(1,), (3,)], ids=str)
    @pytest.mark.few(4)
    def test_for_regression(self, number, shape):
        model = network(shape)
        with pytest.raises(ValueError, match="knows no classes, so there is no error rate"):
            measure(model, examples(shape), loss=REGRESSION[number])
        model.compile(loss=REGRESSION[number])
        with pytest.raises(ValueError, match="knows no classes"):
            local_energy(model, examples(shape), samples=2, sigmas=[0.1])

    @pytest.mark.parametrize("shape", [(1,), ()], ids=str)
    def test_for_an_own_loss_of_one_output(self, shape):
        with pytest.raises(ValueError, match="one output for each example"):
            measure(network(shape), examples(shape), loss=own_loss)

    def test_for_several_outputs(self):
        x = keras.Input((3,))
        model = keras.Model(x, [layers.Dense(2)(x), layers.Dense(2)(x)])
        inputs, y = examples((2,), "labels")
        with pytest.raises(ValueError, match="several outputs"):
            measure(model, (inputs, [y, y]), loss=["sparse_categorical_crossentropy"] * 2)

    def test_an_unknown_metric(self):
        with pytest.raises(ValueError, match="`metric` must be"):
            measure(network((2,)), examples((2,)), "accuracy", loss="mse")

    def test_a_metric_that_is_no_mean(self):
        with pytest.raises(ValueError, match="not a mean over examples"):
            measure(network((2,)), examples((2,)), keras.metrics.AUC(), loss="mse")


def absolute(y, p):
    return tf.abs(y - p)


def absolute_examples(y, p):
    return tf.reduce_mean(tf.abs(y - p), axis=-1)


def shapes_are_alike(y, p):
    assert y.shape.rank == p.shape.rank
    assert y.shape.as_list()[-1] == p.shape.as_list()[-1]
    return tf.reduce_mean(tf.abs(y - p), axis=-1)


@pytest.mark.usefixtures("eagerly")
class TestMetricsOfTheUser:
    METRICS = (
        absolute, absolute_examples, shapes_are_alike, keras.metrics.mean_squared_error,
        keras.losses.MeanAbsoluteError(name="mae"), keras.metrics.MeanAbsoluteError,
    )  # fmt: skip

    @pytest.mark.few(3)
    @pytest.mark.parametrize("number", range(len(METRICS)))
    @pytest.mark.parametrize("shape", ["n", "n1", "nc", "ntc"])
    @pytest.mark.parametrize("weighting", ["none", "n", "zeros"])
    def test_are_what_evaluate_gives_for_weighted_metrics(self, number, shape, weighting):
        metric = self.METRICS[number]
        metric = metric() if isinstance(metric, type) else metric
        whole = {"n": (), "n1": (1,), "nc": (3,), "ntc": (2, 3)}[shape]
        model = network(whole)
        data = (*examples(whole, n=7), *weights_for(weighting, whole, n=7))
        if not whole and weighting != "none" and number:
            return  # a mean over the last axis is one number then, which Keras cannot weigh
        if len(whole) == 2 and weighting != "none":
            data = (*data[:2], data[2][:, None])  # Keras takes no (n,) for values (n, t)
        kept = metric
        if isinstance(metric, keras.losses.Loss):
            kept = keras.metrics.MeanMetricWrapper(metric.call, name="mae")
        model.compile(loss="mse", weighted_metrics=[kept], run_eagerly=True)
        weight = data[2] if len(data) > 2 else None
        result = model.evaluate(
            *data[:2], sample_weight=weight, batch_size=3, verbose=0, return_dict=True
        )
        result.pop("loss")
        (expected,) = result.values()
        assert measure(model, data, metric, batch_size=3) == pytest.approx(expected, rel=2e-5)

    @pytest.mark.parametrize(
        ("shape", "targets"), [((1,), (7,)), ((), (7, 1)), ((2, 1), (7, 2))], ids=str
    )
    @pytest.mark.parametrize("metric", [absolute, absolute_examples, shapes_are_alike])
    def test_targets_are_squeezed_or_expanded(self, shape, targets, metric):
        """As for losses; Keras' own functions do so, and with others Keras compares all pairs."""
        model, (x, y) = network(shape), examples(shape, n=7)
        expected = np.mean(np.abs(model(x).numpy().ravel() - y.ravel()))
        found = measure(model, (x, y.reshape(targets)), metric, loss="mse")
        assert found == pytest.approx(expected, rel=1e-5)

    def test_a_metric_object_is_not_written_to(self):
        metric = keras.metrics.MeanAbsoluteError()
        metric.update_state([1.0], [3.0])
        measure(network((2,)), examples((2,)), metric, loss="mse")
        assert float(metric.result()) == 2.0

    def test_need_no_loss(self):
        model, (x, y) = network((2,)), examples((2,))
        expected = np.abs(model(x).numpy() - y).mean()
        assert measure(model, (x, y), absolute) == pytest.approx(expected, rel=1e-5)
