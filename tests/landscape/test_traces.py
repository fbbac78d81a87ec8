"""Graphs are kept from one measure to the next, and dropped when they no longer hold."""

import gc
import weakref

import keras
import numpy as np
import pytest

from esgd_tf.landscape import HessianOperator, local_energy, random_walk, sharpness
from tests.landscape.problems import cross_entropy, examples


@keras.saving.register_keras_serializable("tests")
class Counting(keras.layers.Layer):
    """Counts how often it is called, which in a graph is how often it is traced."""

    calls = 0

    def call(self, x):
        type(self).calls += 1
        return x


def network(activation="tanh"):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(5, activation, name="first"),
            Counting(),
            keras.layers.Dense(4, name="last"),
        ]
    )
    for k, variable in enumerate(model.weights):
        variable.assign(np.random.default_rng(k).normal(size=variable.shape))
    return model


def traced(function):
    before = Counting.calls
    function()
    return Counting.calls - before


LOSS = cross_entropy()


def loss_of(model):
    return HessianOperator(model, LOSS, examples(50, dtype="float32")).loss()


def in_keras(model):
    x, y = examples(50, dtype="float32")
    model.compile(loss=LOSS)
    return model.evaluate(x, y, batch_size=50, verbose=0)


class TestKept:
    def test_the_second_measure_of_a_kind_traces_nothing(self):
        model, data = network(), examples(50, dtype="float32")
        measures = [
            lambda: HessianOperator(model, LOSS, data) @ np.ones(44),
            lambda: HessianOperator(model, LOSS, data).gradient(),
            lambda: sharpness(model, LOSS, data, kind="sam"),
            lambda: random_walk(model, LOSS, data, threshold=100.0, max_steps=2),
            lambda: local_energy(model, data, ["error", "loss"], loss=LOSS, samples=2),
        ]
        first = [traced(measure) for measure in measures]
        assert first[0] > 0
        assert [traced(measure) for measure in measures] == [0] * len(measures)

    def test_other_data_of_the_same_kind(self):
        model = network()
        x, y = examples(50, dtype="float32")
        assert traced(lambda: HessianOperator(model, LOSS, (x, y)).loss()) > 0
        assert traced(lambda: HessianOperator(model, LOSS, (2 * x, y)).loss()) == 0

    def test_weights_are_no_part_of_it(self):
        model = network()
        before = loss_of(model)
        model.get_layer("last").kernel.assign(np.ones((5, 4)))
        assert traced(lambda: loss_of(model)) == 0
        assert loss_of(model) != before
        assert loss_of(model) == pytest.approx(in_keras(model), rel=1e-6)

    @pytest.mark.slow
    def test_a_model_that_is_gone_is_not_kept(self):
        model = network()
        loss_of(model)
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None


class TestDropped:
    """Each change must be seen: the loss is that of Keras after it."""

    def test_another_activation(self):
        model = network()
        before = loss_of(model)
        model.get_layer("first").activation = keras.activations.relu
        assert loss_of(model) != before
        assert loss_of(model) == pytest.approx(in_keras(model), rel=1e-6)

    def test_a_regulariser(self):
        model = network()
        before = loss_of(model)
        model.get_layer("first").kernel.regularizer = keras.regularizers.L2(0.1)
        kernel = model.get_layer("first").kernel.numpy()
        assert loss_of(model) == pytest.approx(before + 0.1 * (kernel**2).sum(), rel=1e-6)

    def test_a_frozen_layer(self):
        model = network()
        assert HessianOperator(model, LOSS, examples(50, dtype="float32")).shape == (44, 44)
        model.get_layer("first").trainable = False
        operator = HessianOperator(model, LOSS, examples(50, dtype="float32"))
        assert operator.shape == (24, 24)
        assert operator.loss() == pytest.approx(in_keras(model), rel=1e-6)

    def test_another_loss_and_another_compile(self):
        model, (x, y) = network(), examples(50, dtype="float32")
        targets = np.eye(4, dtype="float32")[y]
        settings = [("mse", 0.5), ("mae", 0.5), ("mse", 0.25), (keras.losses.Huber(0.1), 0.5)]
        for loss, weight in [*settings, *settings]:
            model.compile(loss=loss, loss_weights=[weight])
            found = HessianOperator(model, None, (x, targets), batch_size=50).loss()
            expected = model.evaluate(x, targets, batch_size=50, verbose=0)
            assert found == pytest.approx(expected, rel=1e-6)

    def test_what_no_setting_shows_is_seen_after_compile(self):
        """As with `fit`, whose graph is kept until then."""

        class Scaled(keras.Model):
            factor = 1.0

            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
                return self.factor * keras.ops.mean(y_pred**2)

        x, y = examples(20, dtype="float32")
        inner = network()
        model = Scaled(inner.inputs, inner.outputs)
        model.compile()
        before = HessianOperator(model, None, (x, y)).loss()
        model.factor = 3.0
        model.compile()
        assert HessianOperator(model, None, (x, y)).loss() == pytest.approx(3 * before)

    def test_losses_written_anew_at_each_call_do_not_pile_up(self):
        from esgd_tf.landscape import _traces

        model, (x, y) = network(), examples(50, dtype="float32")
        targets = np.eye(4, dtype="float32")[y]
        for power in range(2, 9):
            HessianOperator(model, lambda a, b, p=power: keras.ops.abs(a - b) ** p, (x, targets))
        assert len(_traces._known[model]) <= 4
