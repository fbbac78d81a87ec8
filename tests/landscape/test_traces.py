"""A network is traced once for a measure, and anew when its graph no longer holds."""

import gc
import logging
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import (
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    _traces,
    interpolate,
    local_energy,
    random_walk,
    sharpness,
)

layers = keras.layers


class Counts(layers.Layer):
    """Counts how often Python calls it: once for each trace."""

    calls = 0

    def call(self, x):
        type(self).calls += 1
        return x


@pytest.fixture(autouse=True)
def from_zero():
    Counts.calls = 0


def network():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh"), Counts()])
    model.add(layers.Dense(2, name="last"))
    model.compile(loss="mse")
    return model


def data(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 3)).astype("f4"), rng.standard_normal((n, 2)).astype("f4")


LOSS = keras.losses.Huber()


def products(kind):
    def measure(model, data, loss):
        operator = kind(model, loss, data)
        return operator.loss(), operator.gradient(), operator @ np.ones(operator.shape[0])

    return measure


def path(model, data, loss):
    ends = model.get_weights(), [2 * w for w in model.get_weights()]
    return interpolate(model, *ends, [0.0, 0.5], loss=loss, data=data, metric="loss")


MEASURES = {
    "hessian": products(HessianOperator),
    "gauss_newton": products(GaussNewtonOperator),
    "fisher": products(FisherOperator),
    "sharpness": lambda m, d, loss: sharpness(m, loss, d, max_steps=2),
    "epsilon": lambda m, d, loss: sharpness(m, loss, d, kind="epsilon", max_steps=2),
    "interpolate": path,
    "random_walk": lambda m, d, loss: random_walk(m, loss, d, threshold=9.0, max_steps=2),
    "local_energy": lambda m, d, loss: local_energy(
        m, d, "loss", loss=loss, samples=2, sigmas=[0.1]
    ),
}


def calls_of(measure, *arguments):
    """Return how many traces a measure takes."""
    before = Counts.calls
    measure(*arguments)
    return Counts.calls - before


class TestTracedOnce:
    @pytest.mark.few(2)
    @pytest.mark.parametrize("name", MEASURES)
    @pytest.mark.parametrize("loss", [None, LOSS, "mae"], ids=["compiled", "object", "string"])
    def test_measured_twice(self, name, loss):
        model = network()
        first = calls_of(MEASURES[name], model, data(), loss)
        assert 1 <= first <= 12
        assert calls_of(MEASURES[name], model, data(), loss) == 0

    def test_other_data_of_the_same_shape(self):
        model = network()
        calls_of(MEASURES["hessian"], model, data(), LOSS)
        assert calls_of(MEASURES["hessian"], model, data(seed=1), LOSS) == 0

    def test_other_weights(self):
        model = network()
        calls_of(MEASURES["hessian"], model, data(), LOSS)
        x, y = data()
        before = HessianOperator(model, "mse", (x, y)).loss()
        model.set_weights([w + 1 for w in model.get_weights()])
        assert calls_of(MEASURES["hessian"], model, data(), LOSS) == 0
        found = HessianOperator(model, "mse", (x, y)).loss()
        assert found != before
        assert found == pytest.approx(np.mean((model(x).numpy() - y) ** 2), rel=1e-5)

    def test_further_training(self):
        model = network()
        model.compile("sgd", loss="mse")
        calls_of(MEASURES["hessian"], model, data(), None)
        model.fit(*data(), verbose=0)
        assert calls_of(MEASURES["hessian"], model, data(), None) == 0

    def test_an_operator_elsewhere(self):
        model = network()
        h = HessianOperator(model, data=data())
        h @ np.ones(h.shape[0]), h.gradient()
        before = Counts.calls
        moved = h.at(np.zeros(h.shape[0]))
        moved @ np.ones(h.shape[0]), moved.gradient(), moved.loss()
        assert Counts.calls == before

    def test_an_epoch_of_batches_with_a_remainder(self):
        """At most one more trace of each graph: for the other number of rows."""
        few, many = network(), network()
        one = calls_of(lambda: HessianOperator(few, LOSS, data(20), batch_size=20).gradient())
        other = calls_of(lambda: HessianOperator(many, LOSS, data(20), batch_size=6).gradient())
        assert other <= 2 * one

    @pytest.mark.slow
    def test_metric_functions(self):
        model = network()

        def metric(y, p):
            return tf.reduce_mean(tf.abs(y - p), axis=-1)

        measure = lambda: local_energy(  # noqa: E731
            model, data(), metric, samples=2, sigmas=[0.1]
        )
        calls_of(measure)
        assert calls_of(measure) == 0


class TestTracedAnew:
    """What was traced must not outlive what it was traced of."""

    def loss(self, model, loss=None):
        return HessianOperator(model, loss, data()).loss()

    def test_another_loss(self):
        model = network()
        x, y = data()
        errors = model(x).numpy() - y
        assert self.loss(model) == pytest.approx(np.mean(errors**2), rel=1e-5)
        assert self.loss(model, "mae") == pytest.approx(np.abs(errors).mean(), rel=1e-5)
        assert self.loss(model) == pytest.approx(np.mean(errors**2), rel=1e-5)

    def test_another_compile(self):
        model = network()
        x, y = data()
        errors = model(x).numpy() - y
        self.loss(model)
        model.compile(loss="mae")
        assert self.loss(model) == pytest.approx(np.abs(errors).mean(), rel=1e-5)
        model.compile(loss="mae", loss_weights=3.0)
        assert self.loss(model) == pytest.approx(3 * np.abs(errors).mean(), rel=1e-5)

    @pytest.mark.slow
    @pytest.mark.usefixtures("only_new_garbage")
    def test_functions_that_are_written_anew(self):
        """Two functions of one name at one place in memory, one after the other."""
        model = network()
        x, y = data()
        errors = model(x).numpy() - y
        for factor in range(1, 8):

            def loss(y, p, factor=factor):
                return factor * tf.reduce_mean(tf.square(y - p), axis=-1)

            assert self.loss(model, loss) == pytest.approx(factor * np.mean(errors**2), rel=1e-5)
            del loss
            gc.collect()

    def test_a_frozen_layer(self):
        model = network()
        assert HessianOperator(model, data=data()).shape[0] == 26
        model.layers[0].trainable = False
        h = HessianOperator(model, data=data())
        assert h.shape[0] == 10
        assert h.gradient().shape == (10,)

    def test_another_activation(self):
        model = network()
        x, y = data()
        self.loss(model)
        model.layers[-1].activation = keras.activations.sigmoid
        expected = np.mean((model(x).numpy() - y) ** 2)
        assert self.loss(model) == pytest.approx(expected, rel=1e-5)

    def test_a_regulariser_that_is_added(self):
        model = network()
        plain = self.loss(model)
        layer = model.get_layer("last")
        layer.kernel.regularizer = keras.regularizers.L2(0.5)  # where Keras looks for it
        kernel = layer.kernel.numpy()
        assert self.loss(model) == pytest.approx(plain + 0.5 * np.sum(kernel**2), rel=1e-5)

    @pytest.mark.slow
    def test_other_variables(self):
        model = network()
        whole = HessianOperator(model, data=data()).gradient()
        part = HessianOperator(model, data=data(), variables=["last"]).gradient()
        np.testing.assert_allclose(part, whole[-10:], rtol=1e-5, atol=1e-7)

    def test_what_no_setting_shows_is_seen_after_compile(self):
        """As with `fit`, whose graph is kept until then."""

        class Scaled(keras.Model):
            factor = 1.0

            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
                return self.factor * keras.ops.mean(y_pred**2)

        inner = network()
        model = Scaled(inner.inputs, inner.outputs)
        model.compile()
        before = self.loss(model)
        model.factor = 3.0
        model.compile()
        assert self.loss(model) == pytest.approx(3 * before)

    @pytest.mark.slow
    def test_losses_written_anew_at_each_call_do_not_pile_up(self):
        model = network()
        for power in range(2, 9):
            self.loss(model, lambda y, p, power=power: keras.ops.abs(y - p) ** power)
        assert len(_traces._known[model]) <= 4


@pytest.fixture
def only_new_garbage():
    """Have a full collection look at what the test makes, not at all that is there."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("only_new_garbage")
def test_a_model_that_is_let_go_takes_its_graphs_along():
    model = network()
    HessianOperator(model, data=data()).gradient()
    gone = weakref.ref(model)
    del model
    keras.utils.clear_session(free_memory=False)
    gc.collect()
    assert gone() is None


def test_tensorflow_does_not_warn_of_many_networks():
    """Each is traced once: TensorFlow would take the functions of all of them for one."""
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    tf.get_logger().addHandler(handler)
    try:
        for _ in range(7):
            operator = HessianOperator(network(), LOSS, data())
            operator @ np.ones(operator.shape[0])
    finally:
        tf.get_logger().removeHandler(handler)
    assert not [message for message in seen if "retracing" in message]
