"""Which weights are measured: those of the model, the anchor of Entropy-SGD, a center of replicas.

Beside it: no measure writes to the model, not even to what is not trained.
"""

import json

import keras
import numpy as np
import pytest

from esgd_tf import EntropySGD, Replicas
from esgd_tf.landscape import (
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    eigenpairs,
    interpolate,
    local_energy,
    random_walk,
    sharpness,
    spectral_density,
    trace,
)
from esgd_tf.replicas import ElasticAveraging, Parle, ReplicatedSGD
from esgd_tf.training import evaluate_at

layers = keras.layers


def data(n=30):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 4)).astype("float32"), rng.standard_normal((n, 3)).astype("f4")


def network(a):
    kernel = keras.initializers.GlorotUniform(a + 1)
    return keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh", kernel_initializer=kernel)])


def mean_square(weights, x, y):
    """Return the loss of `network` in NumPy, and its gradient."""
    kernel, bias = (np.asarray(w, np.float64) for w in weights)
    out = np.tanh(x @ kernel + bias)
    back = 2 * (out - y) * (1 - out**2) / out.size
    return np.mean((out - y) ** 2), np.concatenate([(x.T @ back).ravel(), back.sum(0)])


def entropic(steps, **options):
    """Return a network after so many steps of Entropy-SGD, 5 to an outer update."""
    model = network(0)
    optimizer = EntropySGD(
        learning_rate=0.5, langevin_steps=5, langevin_learning_rate=0.3, noise=0.1, seed=1
    )
    model.compile(optimizer, loss="mse", **options)
    walk(model, steps)
    return model


def walk(model, steps):
    """Train without `fit`, which leaves a model at its anchor."""
    x, y = data()
    for k in range(steps):
        model.train_on_batch(x[6 * k : 6 * k + 6], y[6 * k : 6 * k + 6])


def everything(model):
    """Return all variables: of the model, the optimizer and its metrics."""
    kept = [*model.variables, *model.optimizer.variables]
    return [v.numpy().tobytes() for v in kept]


def agrees_with(operator, weights):
    value, slope = mean_square(weights, *data())
    assert operator.loss() == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(operator.gradient(), slope, rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("eagerly")  # where is asked, not how
class TestEntropySGD:
    def test_in_mid_loop_it_is_the_anchor(self):
        model = entropic(3)
        anchor = [np.asarray(a) for a in model.optimizer.anchors()]
        held = model.get_weights()
        assert max(np.abs(a - w).max() for a, w in zip(anchor, held, strict=True)) > 0.01
        before = everything(model)
        for kind in (HessianOperator, GaussNewtonOperator, FisherOperator):
            operator = kind(model, data=data())
            agrees_with(operator, anchor)
            operator @ np.ones(15)
            assert operator.measured_at == "anchor"
        assert everything(model) == before

    def test_is_what_evaluate_gives_at_the_anchor(self):
        model = entropic(3)
        found = HessianOperator(model, data=data())
        with evaluate_at(model, "anchor"):
            expected = model.evaluate(*data(), verbose=0)
            inside = HessianOperator(model, data=data())
            assert inside.loss() == pytest.approx(expected, rel=1e-5)
            assert inside.measured_at == "anchor"
        assert found.loss() == pytest.approx(expected, rel=1e-5)

    def test_inside_evaluate_at_the_mean_it_is_the_mean(self):
        model = entropic(3)
        with evaluate_at(model, "mean"):
            expected = model.evaluate(*data(), verbose=0)
            found = HessianOperator(model, data=data())
            assert found.measured_at == "mean"
            assert found.loss() == pytest.approx(expected, rel=1e-5)

    def test_after_an_outer_update_it_is_the_weights(self):
        model = entropic(5)
        operator = HessianOperator(model, data=data())
        assert operator.measured_at == "weights"
        agrees_with(operator, model.get_weights())

    def test_at_follows(self):
        model = entropic(5)
        operator = HessianOperator(model, data=data())
        old = model.get_weights()
        walk(model, 2)
        agrees_with(operator, old)  # the operator stays
        moved = operator.at()
        assert moved.measured_at == "anchor"
        agrees_with(moved, model.optimizer.anchors())
        assert operator.measured_at == "weights"
        elsewhere = moved.at(np.zeros(15))
        assert elsewhere.measured_at == "weights"
        agrees_with(elsewhere, [np.zeros((4, 3)), np.zeros(3)])

    @pytest.mark.slow
    def test_wrapped_in_a_loss_scale(self):
        model = network(0)
        inner = EntropySGD(langevin_steps=5, langevin_learning_rate=0.3, seed=1)
        model.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0), loss="mse")
        walk(model, 3)
        operator = HessianOperator(model, data=data())
        assert operator.measured_at == "anchor"
        agrees_with(operator, inner.anchors())

    @pytest.mark.slow
    def test_frozen_layers_keep_their_weights(self):
        """The anchors are those of what is trained; the order of all weights stays."""
        first = layers.Dense(4, "tanh", trainable=False)
        model = keras.Sequential([keras.Input((4,)), first, layers.Dense(3)])
        model.compile(EntropySGD(langevin_steps=5, langevin_learning_rate=0.3, seed=1), loss="mse")
        walk(model, 3)
        x, y = data()
        kernel, bias = (np.asarray(a) for a in model.optimizer.anchors())
        hidden = np.tanh(x @ first.get_weights()[0] + first.get_weights()[1])
        expected = np.mean((hidden @ kernel + bias - y) ** 2)
        assert HessianOperator(model, data=data()).loss() == pytest.approx(expected, rel=1e-5)


COUPLINGS = {
    "replicated": lambda: (ReplicatedSGD(0.3, every=2), "sgd"),
    "elastic": lambda: (ElasticAveraging(0.2, every=2), "sgd"),
    "parle": lambda: (Parle(langevin_steps=2, scoping=0.2), keras.optimizers.SGD(0.5)),
    "focused_entropy": lambda: (
        ReplicatedSGD(0.3),
        EntropySGD(langevin_steps=3, langevin_learning_rate=0.3, seed=1),
    ),
}


def replicas(name="replicated", epochs=1):
    coupling, optimizer = COUPLINGS[name]()
    model = Replicas(network, 3, coupling, seed=5)
    model.compile(optimizer, loss="mse")
    x, y = data()
    model.fit(x, y, 6, epochs, verbose=0)
    return model


@pytest.mark.usefixtures("eagerly")  # where is asked, not how
class TestReplicas:
    @pytest.mark.parametrize("name", COUPLINGS)
    @pytest.mark.few(1)
    def test_is_the_center(self, name):
        model = replicas(name)
        before = [model.replica(a).get_weights() for a in range(3)]
        operator = HessianOperator(model, data=data())
        assert operator.shape == (15, 15)  # of one network, not of three
        assert operator.measured_at == "center"
        agrees_with(operator, model.center().get_weights())
        for a in range(3):
            for one, other in zip(before[a], model.replica(a).get_weights(), strict=True):
                np.testing.assert_array_equal(one, other)

    def test_is_the_center_of_now(self):
        """And not that of an earlier look."""
        model = replicas()
        stale = model.center().get_weights()
        HessianOperator(model, data=data())
        x, y = data()
        model.fit(x, -y, 6, 2, verbose=0)
        now = model.center().get_weights()
        assert np.abs(now[0] - stale[0]).max() > 0.01
        operator = HessianOperator(model, data=data())
        agrees_with(operator, now)

    @pytest.mark.slow
    def test_at_follows(self):
        model = replicas()
        operator = HessianOperator(model, data=data())
        x, y = data()
        model.fit(x, -y, 6, 2, verbose=0)
        moved = operator.at()
        assert moved.measured_at == "center"
        agrees_with(moved, model.center().get_weights())

    @pytest.mark.slow
    def test_loss_is_that_of_evaluate(self):
        model = replicas()
        expected = model.center()
        expected.compile(loss="mse")
        assert HessianOperator(model, data=data()).loss() == pytest.approx(
            expected.evaluate(*data(), verbose=0), rel=1e-5
        )

    @pytest.mark.slow
    def test_a_loss_may_be_given(self):
        model = replicas()
        x, y = data()
        expected = np.abs(model.center()(x).numpy() - y).mean()
        assert HessianOperator(model, "mae", (x, y)).loss() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.slow
    def test_training_goes_on_as_without_a_measure(self):
        one, other = replicas(), replicas()
        HessianOperator(one, data=data()).gradient()
        x, y = data()
        for model in (one, other):
            model.fit(x, y, 6, 1, shuffle=False, verbose=0)
        for a, b in zip(one.center().get_weights(), other.center().get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def results(model):
    """Return a result of every tool that takes a model."""
    h = HessianOperator(model, data=data())
    options = {"data": data()}
    return {
        "eigenpairs": eigenpairs(h, k=2),
        "trace": trace(h),
        "spectral_density": spectral_density(h),
        "diagonal": h.diagonal_estimate(4),
        "sharpness": sharpness(model, max_steps=2, **options),
        "local_energy": local_energy(model, data(), "loss", samples=2, sigmas=[0.1]),
        "random_walk": random_walk(model, threshold=9.0, max_steps=3, **options),
    }


class TestResultsSayWhere:
    @pytest.mark.parametrize(
        ("make", "where"),
        [
            (lambda: entropic(5), "weights"),
            (lambda: entropic(3), "anchor"),
            (replicas, "center"),
        ],
        ids=["weights", "anchor", "center"],
    )
    @pytest.mark.slow
    def test_measured_at(self, make, where):
        for name, result in results(make()).items():
            assert result.measured_at == where, name
            written = result.to_dict()
            assert written["measured_at"] == where, name
            json.dumps(written)

    def test_of_weights_that_are_given(self):
        """Both ends of a path are given: they are weights, whatever the model holds."""
        model = entropic(3)
        ends = [np.zeros(w.shape) for w in model.get_weights()], model.get_weights()
        path = interpolate(model, *ends, [0.0, 1.0], data=data(), metric="loss")
        value = float(path.values["data"]["loss"][1])
        assert value == pytest.approx(mean_square(model.get_weights(), *data())[0], rel=1e-5)
        assert path.measured_at == "weights"

    def test_of_a_plain_model(self):
        model = network(0)
        model.compile("adam", loss="mse")
        assert HessianOperator(model, data=data()).measured_at == "weights"


class TestNothingIsWritten:
    @pytest.mark.slow
    def test_to_the_variables_of_any_kind(self):
        """Moving statistics, seeds, counters of the user's, the optimizer's, metrics'."""

        class Counts(layers.Layer):
            def build(self, shape):
                self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

            def call(self, x):
                self.calls.assign_add(1.0)
                return x

        model = keras.Sequential(
            [
                keras.Input((4,)), layers.Dense(4), layers.BatchNormalization(),
                layers.Dropout(0.5), Counts(), layers.SpectralNormalization(layers.Dense(3)),
            ]
        )  # fmt: skip
        model.compile("adam", loss="mse", metrics=["mae"])
        model.fit(*data(), verbose=0)
        before = everything(model), [v.numpy() for m in model.metrics for v in m.variables]
        h = HessianOperator(model, data=data(), batch_size=7)
        h.loss(), h.gradient(), h @ np.ones(h.shape[0])
        sharpness(model, data=data(), max_steps=2)
        local_energy(model, data(), "loss", samples=2, sigmas=[0.1])
        after = everything(model), [v.numpy() for m in model.metrics for v in m.variables]
        assert after == before

    @pytest.mark.slow
    def test_when_a_measure_fails(self):
        model = entropic(3)
        before = everything(model)
        with pytest.raises(ValueError, match="no loss named"):
            HessianOperator(model, "no_such_loss", data())
        assert everything(model) == before
