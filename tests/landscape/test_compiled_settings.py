"""All that `compile` and layers say about the loss counts, in models of every make."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import (
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    interpolate,
    sharpness,
)
from tests.landscape.keras_losses import (
    BATCH,
    N,
    agrees,
    examples,
    keras_loss,
    network,
    plain_gradient,
    redraw,
    weights_for,
)
from tests.landscape.problems import same_state, state

L2 = keras.regularizers.L2
layers = keras.layers


def regression(**options):
    """Return a network [n, 3] -> [n, 2]."""
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, "tanh", **options), layers.Dense(2)]
    )
    redraw(model)
    return model


@pytest.mark.usefixtures("eagerly")
class TestOneOutput:
    @pytest.mark.parametrize("loss_weights", [3.0, [3.0], {"answer": 3.0}], ids=str)
    @pytest.mark.parametrize("weighting", ["none", "n"])
    @pytest.mark.few(1)
    def test_loss_weights(self, loss_weights, weighting):
        model = network((2,))
        data = (*examples((2,)), *weights_for(weighting, (2,)))
        loss = {"answer": "mse"} if isinstance(loss_weights, dict) else ["mse"]
        loss = "mse" if isinstance(loss_weights, float) else loss
        model.compile(loss=loss, loss_weights=loss_weights, run_eagerly=True)
        weighted = agrees(model, data).loss()
        # A loss that is given is that loss: the weights belong to the compiled one.
        given = HessianOperator(model, "mse", data, batch_size=BATCH).loss()
        assert weighted == pytest.approx(3 * given, rel=1e-5)

    def test_regularisers(self):
        options = {"kernel_regularizer": L2(0.3), "bias_regularizer": keras.regularizers.L1(0.2)}
        model, data = regression(**options), examples((2,))
        model.compile(loss="mse", run_eagerly=True)
        agrees(model, data)
        agrees(model, (*data, *weights_for("n", (2,))))

    @pytest.mark.slow
    def test_regularisers_do_not_depend_on_the_cut(self):
        model, data = regression(kernel_regularizer=L2(0.3)), examples((2,), n=75)
        model.compile(loss="mse", run_eagerly=True)
        expected = keras_loss(model, data, 75)
        assert HessianOperator(model, data=data).loss() == pytest.approx(expected, rel=1e-5)

    def test_activity_regularisers(self):
        model, data = regression(activity_regularizer=L2(0.3)), examples((2,))
        model.compile(loss="mse", run_eagerly=True)
        agrees(model, data)
        agrees(model, data, batch_size=1)

    @pytest.mark.slow
    def test_activity_regularisers_are_cut_as_evaluate_cuts(self):
        model, data = regression(activity_regularizer=L2(0.3)), examples((2,), n=75)
        model.compile(loss="mse", run_eagerly=True)
        expected = keras_loss(model, data, None)
        assert HessianOperator(model, data=data).loss() == pytest.approx(expected, rel=1e-5)

    def test_added_losses(self):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(4), Adds(0.7), layers.Dense(2)])
        redraw(model)
        data = (*examples((2,)), *weights_for("n", (2,)))
        model.compile(loss="mse", run_eagerly=True)
        agrees(model, data)

    def test_in_graphs(self):
        tf.config.run_functions_eagerly(False)
        inner = [layers.Dense(4, activity_regularizer=L2(0.3)), Adds(0.7)]
        model = keras.Sequential([keras.Input((3,)), *inner, layers.Dense(2)])
        redraw(model)
        model.compile(loss=["mse"], loss_weights=[3.0])
        agrees(model, (*examples((2,)), *weights_for("n", (2,))))

    def test_frozen_layers_keep_their_part(self):
        model, data = regression(kernel_regularizer=L2(0.3)), examples((2,))
        model.layers[0].trainable = False
        model.compile(loss="mse", run_eagerly=True)
        agrees(model, data)

    def test_compiled_anew(self):
        """Graphs that are kept must not outlive the settings that they were made for."""
        model, data = network((2,)), examples((2,))
        for options in ({"loss": "mse"}, {"loss": "mae"}, {"loss": "mse", "loss_weights": 2.0}):
            model.compile(**options, run_eagerly=True)
            agrees(model, data)

    def test_not_compiled(self):
        model, data = network((2,)), examples((2,))
        with pytest.raises(ValueError, match="no loss"):
            HessianOperator(model, data=data)


class Adds(layers.Layer):
    """Adds a loss of its inputs, as a variational autoencoder does."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, x):
        self.add_loss(self.factor * keras.ops.mean(keras.ops.square(x)))
        return x


@pytest.mark.usefixtures("eagerly")
class TestNoTargets:
    def autoencoder(self):
        x = keras.Input((3,))
        model = keras.Model(x, Adds(0.7)(layers.Dense(4, "tanh", kernel_regularizer=L2(0.1))(x)))
        redraw(model)
        model.compile(run_eagerly=True)
        return model

    @pytest.mark.few(2)
    @pytest.mark.parametrize("kind", ["tuple", "array", "none", "dataset", "dataset_of_tuples"])
    def test_losses_that_layers_add_are_enough(self, kind):
        model, (x, _) = self.autoencoder(), examples((2,))
        dataset = tf.data.Dataset.from_tensor_slices(x)
        data = {
            "tuple": (x,),
            "array": x,
            "none": (x, None),
            "dataset": dataset.batch(BATCH),
            "dataset_of_tuples": dataset.map(lambda t: (t,)).batch(BATCH),
        }[kind]
        size = None if kind.startswith("dataset") else BATCH
        h = HessianOperator(model, data=data, batch_size=size)
        assert h.loss() == pytest.approx(keras_loss(model, (x,)), rel=1e-5)
        np.testing.assert_allclose(
            h.gradient(), plain_gradient(model, (x, None)), rtol=1e-3, atol=1e-6
        )

    def test_the_other_matrices_say_why_not(self):
        model, (x, _) = self.autoencoder(), examples((2,))
        for kind in (GaussNewtonOperator, FisherOperator):
            with pytest.raises(ValueError, match=r"give a loss|give data, and a loss"):
                kind(model, data=(x,)) @ np.ones(sum(w.size for w in model.get_weights()))

    def test_a_loss_of_targets_needs_some(self):
        model, (x, _) = network((2,)), examples((2,))
        with pytest.raises(ValueError, match="no targets"):
            HessianOperator(model, "mse", (x,))


class OwnRule(keras.Model):
    """A loss that no `compile` knows."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + 0.3 * tf.reduce_mean(tf.square(y_pred - x[:, :2])) + (9.0 if training else 0)


class OldRule(OwnRule):
    """Without `training`."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return keras.Model.compute_loss(self, x, y, y_pred, sample_weight) * 2.0


@pytest.mark.usefixtures("eagerly")
class TestOverriddenComputeLoss:
    @pytest.mark.parametrize("weighting", ["none", "n"])
    def test_is_asked(self, weighting):
        model = OwnRule()
        model(np.zeros((1, 3)))
        redraw(model)
        model.compile(loss="mse", run_eagerly=True)
        agrees(model, (*examples((2,)), *weights_for(weighting, (2,))))

    def test_is_cut_as_evaluate_cuts(self):
        model, data = OwnRule(), examples((2,), n=75)
        model(np.zeros((1, 3)))
        model.compile(loss="mse", run_eagerly=True)
        expected = keras_loss(model, data, None)
        assert HessianOperator(model, data=data).loss() == pytest.approx(expected, rel=1e-5)

    def test_without_training(self):
        model, data = OldRule(), examples((2,))
        model(np.zeros((1, 3)))
        model.compile(loss="mse", run_eagerly=True)
        plain = HessianOperator(model, "mse", data, batch_size=BATCH).loss()
        assert HessianOperator(model, data=data, batch_size=BATCH).loss() == pytest.approx(
            2 * plain, rel=1e-5
        )

    def test_needs_no_targets(self):
        class Own(OwnRule):
            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
                return tf.reduce_mean(tf.square(y_pred - x[:, :2]))

        model, x = Own(), examples((2,))[0]
        model(np.zeros((1, 3)))
        model.compile(run_eagerly=True)
        h = HessianOperator(model, data=(x,), batch_size=BATCH)
        assert h.loss() == pytest.approx(keras_loss(model, (x,)), rel=1e-5)

    def test_the_other_matrices_say_why_not(self):
        model, data = OwnRule(), examples((2,))
        model(np.zeros((1, 3)))
        model.compile(loss="mse")
        for kind in (GaussNewtonOperator, FisherOperator):
            with pytest.raises(ValueError, match=r"give a loss|give data, and a loss"):
                kind(model, data=data) @ np.ones(8)


def two_heads(names=("mean", "kind"), outputs=list):
    """Return a network of two outputs: real numbers [n, 2], and classes of each step [n, 2, 3]."""
    x = keras.Input((3,))
    h = layers.Dense(4, "tanh")(x)
    mean = layers.Dense(2, name=names[0])(h)
    kind = layers.Softmax(name=names[1])(layers.Reshape((2, 3))(layers.Dense(6)(h)))
    made = [mean, kind] if outputs is list else {"a": mean, "b": kind}
    model = keras.Model(x, made)
    redraw(model)
    return model


def two_targets(n=N):
    return examples((2,), n=n)[0], examples((2,), n=n)[1], examples((2, 3), "labels", n=n)[1]


SPARSE = "sparse_categorical_crossentropy"
FUNCTIONAL = {  # loss, loss_weights
    "list": (["mse", SPARSE], None),
    "weighted": (["mse", SPARSE], [0.3, 2.0]),
    "dict": ({"mean": "mse", "kind": SPARSE}, {"mean": 0.3, "kind": 2.0}),
    "objects": (
        [keras.losses.Huber(reduction="sum"), keras.losses.SparseCategoricalCrossentropy()],
        [0.3, 2.0],
    ),
    "functions": ([lambda y, p: tf.reduce_mean(tf.square(y - p)), SPARSE], None),
    "only_one": (["mse", None], None),
}


@pytest.mark.usefixtures("eagerly")
class TestSeveralOutputs:
    @pytest.mark.few(2)
    @pytest.mark.parametrize("name", FUNCTIONAL)
    @pytest.mark.parametrize("weighting", ["none", "lists"])
    @pytest.mark.few(1)
    def test_list(self, name, weighting):
        loss, loss_weights = FUNCTIONAL[name]
        model, (x, a, b) = two_heads(), two_targets()
        data = (x, [a, b])
        if weighting == "lists":
            w = weights_for("n", ())[0]
            data += ([w, weights_for("each", (2, 3))[0]],)
        if name == "dict" and weighting == "none":  # Keras takes no dictionary of weights here
            data = (x, {"mean": a, "kind": b})
        model.compile(loss=loss, loss_weights=loss_weights, run_eagerly=True)
        agrees(model, data)

    @pytest.mark.few(1)
    @pytest.mark.parametrize("weighted", [False, True])
    def test_dict_of_outputs(self, weighted):
        model, (x, a, b) = two_heads(outputs=dict), two_targets()
        data = (x, {"a": a, "b": b})
        if weighted:
            data += ({"a": weights_for("n", ())[0], "b": weights_for("each", (2, 3))[0]},)
        model.compile(
            loss={"a": "mse", "b": SPARSE}, loss_weights={"a": 0.3, "b": 2.0}, run_eagerly=True
        )
        agrees(model, data)

    @pytest.mark.slow
    def test_in_graphs(self):
        tf.config.run_functions_eagerly(False)
        model, (x, a, b) = two_heads(), two_targets()
        model.compile(loss=["mse", SPARSE], loss_weights=[0.3, 2.0])
        agrees(model, (x, [a, b]))

    def test_given_losses(self):
        model, (x, a, b) = two_heads(), two_targets()
        model.compile(loss=["mae", SPARSE], run_eagerly=True)
        expected = keras_loss(model, (x, [a, b]))
        for loss in (["mae", SPARSE], {"mean": "mae", "kind": SPARSE}):
            fresh = two_heads()
            h = HessianOperator(fresh, loss, (x, [a, b]), batch_size=BATCH)
            assert h.loss() == pytest.approx(expected, rel=2e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("outputs", [list, dict])
    def test_gauss_newton_of_linear_heads_is_the_hessian(self, outputs):
        """Without hidden layers, and with losses that are convex in the outputs."""
        x = keras.Input((3,))
        heads = [layers.Dense(2, name="a")(x), layers.Dense(1, name="b")(x)]
        model = keras.Model(x, heads if outputs is list else dict(zip("ab", heads, strict=True)))
        redraw(model)
        inputs, a = examples((2,))
        loss = ["mse", keras.losses.BinaryCrossentropy(from_logits=True)]
        y = [a, (a[:, :1] > 0).astype("float32")]
        if outputs is dict:
            loss, y = dict(zip("ab", loss, strict=True)), dict(zip("ab", y, strict=True))
        h = HessianOperator(model, loss, (inputs, y), batch_size=BATCH)
        g = GaussNewtonOperator(model, loss, (inputs, y), batch_size=BATCH)
        eye = np.eye(h.shape[0])
        np.testing.assert_allclose(g @ eye, h @ eye, atol=2e-5)


class Subclassed(keras.Model):
    """No `training`, outputs in a dictionary, inputs in another."""

    def __init__(self):
        super().__init__()
        self.one, self.two = layers.Dense(2), layers.Dense(1, "tanh")

    def call(self, inputs):
        first, second = inputs["first"], inputs["second"]
        return {"sum": self.one(first) + second[:, :2], "product": self.two(first * second)}


class WithTraining(keras.Model):
    """Adds 100 in training."""

    def __init__(self):
        super().__init__()
        self.dense, self.drop = layers.Dense(2), layers.Dropout(0.9)

    def call(self, x, training=False):
        return self.drop(self.dense(x), training=training) + (100.0 if training else 0.0)


class OneTensor(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


@pytest.mark.usefixtures("eagerly")
class TestMakesOfModels:
    @pytest.mark.parametrize("kind", [WithTraining, OneTensor])
    def test_subclassed(self, kind):
        model, data = kind(), examples((2,))
        model(data[0][:1])
        model.compile(loss="mse", run_eagerly=True)
        agrees(model, data)

    def test_subclassed_in_graphs(self):
        tf.config.run_functions_eagerly(False)
        model, data = OneTensor(), examples((2,))
        model(data[0][:1])
        model.compile(loss="mse")
        agrees(model, data)

    def test_inputs_and_outputs_in_dictionaries(self):
        model, (x, y) = Subclassed(), examples((2,))
        inputs = {"first": x, "second": x[:, ::-1].copy()}
        model({name: part[:1] for name, part in inputs.items()})
        model.compile(loss={"sum": "mse", "product": "mae"}, run_eagerly=True)
        agrees(model, (inputs, {"sum": y, "product": y[:, :1]}))

    @pytest.mark.parametrize("structure", ["list", "dict", "nested"])
    def test_nested_inputs(self, structure):
        one, two, three = keras.Input((3,)), keras.Input((2,)), keras.Input((1,))
        both = layers.Concatenate()([layers.Dense(2, "tanh")(one), two, three])
        inputs = {
            "list": [one, two, three],
            "dict": {"p": one, "q": two, "r": three},
            "nested": {"p": [one, two], "r": three},
        }[structure]
        model = keras.Model(inputs, layers.Dense(2)(both))
        redraw(model)
        x, y = examples((2,))
        arrays = {
            "list": [x, y, y[:, :1]],
            "dict": {"p": x, "q": y, "r": y[:, :1]},
            "nested": {"p": [x, y], "r": y[:, :1]},
        }[structure]
        model.compile(loss="mse", run_eagerly=True)
        agrees(model, (arrays, y))

    def test_one_model_in_another(self):
        inner, x = regression(kernel_regularizer=L2(0.2)), keras.Input((3,))
        model = keras.Model(x, layers.Dense(2)(inner(x)))
        model.compile(loss="mse", run_eagerly=True)
        agrees(model, examples((2,)))

    def test_batch_normalization_uses_its_moving_statistics(self):
        model = keras.Sequential(
            [keras.Input((3,)), layers.Dense(4), layers.BatchNormalization(), layers.Dense(2)]
        )
        redraw(model)
        model.layers[1].moving_variance.assign([0.3, 1.0, 2.0, 3.0])
        model.compile(loss="mse", run_eagerly=True)
        agrees(model, examples((2,)))


@pytest.mark.usefixtures("eagerly")
class TestOtherTools:
    """They go through the same loss: a glance at each."""

    def test_interpolation_and_sharpness_start_at_the_loss_of_keras(self):
        model, data = regression(kernel_regularizer=L2(0.3)), examples((2,))
        model.compile(loss=["mse"], loss_weights=[3.0], run_eagerly=True)
        expected = keras_loss(model, data)
        weights = [v.numpy() for v in model.trainable_variables]
        options = {"data": data, "batch_size": BATCH}
        ends = weights, [2 * w for w in weights]
        path = interpolate(model, *ends, [0.0], metric="loss", **options)
        assert np.ravel(path.values["data"]["loss"])[0] == pytest.approx(expected, rel=1e-5)
        found = sharpness(model, max_steps=1, **options)
        assert found.loss == pytest.approx(expected, rel=1e-5)


class TestTwoDevices:
    @pytest.mark.slow
    @pytest.mark.parametrize("case", ["weights", "regularised", "heads"])
    def test_are_as_one(self, two_cpus, case):
        def make():
            if case == "heads":
                model = two_heads()
                model.compile(loss=["mse", SPARSE], loss_weights=[0.3, 2.0])
            else:
                model = regression(kernel_regularizer=L2(0.3) if case == "regularised" else None)
                model.compile(loss="mse", loss_weights=3.0)
            return model

        if case == "heads":
            x, a, b = two_targets()
            data = (x, [a, b])
        else:
            data = (*examples((2,)), *weights_for("n", (2,)))
        one = HessianOperator(make(), data=data, batch_size=BATCH)
        with two_cpus.scope():
            model = make()
        before = state(model)
        two = HessianOperator(model, data=data, batch_size=BATCH)
        assert two.loss() == pytest.approx(one.loss(), rel=1e-5)
        np.testing.assert_allclose(two.gradient(), one.gradient(), rtol=1e-4, atol=1e-5)
        v = np.random.default_rng(0).standard_normal(one.shape[0])
        np.testing.assert_allclose(two @ v, one @ v, rtol=1e-3, atol=1e-4)
        assert same_state(before, state(model))

    @pytest.mark.slow
    def test_a_sum_is_that_of_each_device(self, two_cpus):
        """As `evaluate` has it: each device sums its half, and counts it as often as its rows."""
        data = (*examples((2,), n=8), *weights_for("n", (2,), n=8))
        with two_cpus.scope():
            model = regression()
            model.compile(loss=keras.losses.MeanSquaredError(reduction="sum"))
        expected = keras_loss(model, data, 4)
        assert HessianOperator(model, data=data, batch_size=4).loss() == pytest.approx(
            expected, rel=1e-5
        )
