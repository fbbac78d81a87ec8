"""Rescaled layers: other weights, the same function; and which measures see the difference."""

import keras
import numpy as np
import pytest

from esgd_tf.landscape import (
    FisherOperator,
    HessianOperator,
    RelativeOperator,
    fisher_rao_norm,
    local_energy,
    rescaled,
    sharpness,
    trace,
)
from tests.landscape.problems import cross_entropy, examples, randomize, rectified

layers = keras.layers


def lenet():
    """Two convolutions with pooling, and two dense layers, ReLU in many ways."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(3, 3, name="conv_1"),
            layers.MaxPooling2D(2),
            layers.ReLU(),
            layers.ZeroPadding2D(1),
            layers.Conv2D(4, 3, activation="relu", name="conv_2"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(5, name="dense_1"),
            layers.LeakyReLU(0.1),
            layers.Dropout(0.5),
            layers.Dense(3, name="dense_2", activation="softmax"),
        ]
    )
    randomize(model)
    return model


def images(n=6, shape=(8, 8, 1)):
    return np.random.default_rng(1).normal(size=(n, *shape)).astype("float32")


def kernels(model):
    return {layer.name: np.asarray(layer.kernel) for layer in model.layers
            if hasattr(layer, "kernel")}  # fmt: skip


def factors(model, other):
    """Return by what each kernel was multiplied."""
    one, two = kernels(model), kernels(other)
    found = {name: two[name] / one[name] for name in one}
    assert all(np.ptp(ratio) < 1e-5 * ratio.max() for ratio in found.values())
    return {name: float(ratio.mean()) for name, ratio in found.items()}


class TestTheSameFunction:
    def test_bit_for_bit_with_powers_of_two(self):
        model = lenet()
        other = rescaled(model, 4.0)
        np.testing.assert_array_equal(
            other.predict(images(), verbose=0), model.predict(images(), verbose=0)
        )
        assert factors(model, other) == {
            "conv_1": 4.0, "conv_2": 0.25, "dense_1": 4.0, "dense_2": 0.25,
        }  # fmt: skip
        np.testing.assert_array_equal(
            other.get_layer("conv_1").bias, 4 * np.asarray(model.get_layer("conv_1").bias)
        )
        np.testing.assert_array_equal(other.get_layer("conv_2").bias,
                                      model.get_layer("conv_2").bias)  # fmt: skip

    def test_but_for_rounding_with_others(self):
        model = lenet()
        found = rescaled(model, 0.37).predict(images(), verbose=0)
        np.testing.assert_allclose(found, model.predict(images(), verbose=0), rtol=1e-4, atol=1e-6)

    def test_by_name_with_a_factor_each(self):
        model = lenet()
        other = rescaled(model, {"conv_1": 2.0, "conv_2": 8.0})
        assert factors(model, other) == {
            "conv_1": 2.0, "conv_2": 4.0, "dense_1": 0.125, "dense_2": 1.0,
        }  # fmt: skip
        np.testing.assert_array_equal(
            other.predict(images(), verbose=0), model.predict(images(), verbose=0)
        )

    def test_kernels_of_every_kind(self):
        inputs = keras.Input((6, 6, 2))
        x = layers.SeparableConv2D(3, 2, activation="relu", name="a")(inputs)
        x = layers.PReLU()(layers.DepthwiseConv2D(2, name="b")(x))
        x = layers.SeparableConv2D(3, 1, name="s")(x)
        x = layers.Conv2DTranspose(2, 2, name="c", activation="leaky_relu")(x)
        x = layers.GlobalAveragePooling2D()(x)
        x = layers.EinsumDense("ab,bc->ac", 4, bias_axes="c", activation="relu", name="d")(x)
        model = keras.Model(inputs, layers.Dense(2, name="e")(x))
        randomize(model)
        other = rescaled(model, {"a": 2.0, "b": 4.0, "s": 8.0, "c": 0.5, "d": 16.0})
        np.testing.assert_array_equal(
            other.predict(images(shape=(6, 6, 2)), verbose=0),
            model.predict(images(shape=(6, 6, 2)), verbose=0),
        )
        for old, new in zip(model.trainable_variables, other.trainable_variables, strict=True):
            if old.name != "alpha" and not old.path.startswith("e/bias"):
                assert np.abs(np.asarray(old) - np.asarray(new)).max() > 0 or "depth" in old.path

    def test_batch_norm_is_folded(self):
        model = rectified(batch_norm=True)
        x = examples()[0]
        other = rescaled(model, 4.0)
        np.testing.assert_allclose(other(x), model(x, training=False), rtol=1e-9, atol=1e-9)
        assert not any(isinstance(part, layers.BatchNormalization) for part in other.layers)

    def test_of_models_in_models(self):
        inner = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="one"), layers.ReLU()])
        model = keras.Sequential([inner, layers.Dense(2, name="two")])
        model.build((None, 3))
        randomize(model)
        other = rescaled(model, 2.0)
        x = images(shape=(3,))
        np.testing.assert_array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))
        np.testing.assert_array_equal(other.get_layer("one").kernel,
                                      2 * np.asarray(inner.layers[0].kernel))  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize("c", [0.0, -1.0, np.inf, np.nan, "2", True])
    def test_factors(self, c):
        for given, name in ((c, "`c` must be"), ({"conv_1": c}, r"`c\['conv_1'\]` must be")):
            with pytest.raises(ValueError, match=name):
                rescaled(lenet(), given)
        with pytest.raises(ValueError, match="`c` names no layer"):
            rescaled(lenet(), {})

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("dense_2", "its activation 'softmax' does not pass a factor on"),
            ("dense_9", "the model has no such layer with a kernel"),
        ],
    )
    def test_layers_that_are_named(self, name, why):
        with pytest.raises(ValueError, match=f"{name!r} cannot be rescaled: {why}.*can: 'conv_1'"):
            rescaled(lenet(), {name: 2.0})

    @pytest.mark.parametrize(
        ("between", "why"),
        [
            ([layers.Activation("tanh", name="t")], "'t' after it does not pass a factor on"),
            ([layers.ReLU(max_value=6.0, name="six")], "'six' after it does not"),
            ([layers.ReLU(threshold=1.0, name="one")], "'one' after it does not"),
            ([layers.LayerNormalization(name="ln")], "'ln' after it does not"),
            ([lambda x: layers.Add(name="add")([x, x])], "'add' after it does not"),
            ([lambda x: x * 2.0 + x], "goes to several layers"),
        ],
    )
    def test_what_lies_between(self, between, why):
        inputs = keras.Input((3,))
        x = layers.Dense(3, name="first")(inputs)
        for part in between:
            x = part(x)
        model = keras.Model(inputs, layers.Dense(2, name="last")(x))
        with pytest.raises(ValueError, match=rf"No layer of .* \(layer 'first': .*{why}"):
            rescaled(model, 2.0)

    def test_outputs_on_the_way_and_layers_called_twice(self):
        inputs = keras.Input((3,))
        hidden = layers.Dense(3, activation="relu", name="first")(inputs)
        model = keras.Model(inputs, [hidden, layers.Dense(2)(hidden)])
        with pytest.raises(ValueError, match="'first': its factor would reach the output"):
            rescaled(model, 2.0)
        shared = layers.Dense(3, activation="relu", name="shared")
        model = keras.Model(inputs, layers.Dense(2)(shared(shared(inputs))))
        with pytest.raises(ValueError, match="'shared': it is called several times"):
            rescaled(model, 2.0)
        # As the second of a pair, too.
        model = keras.Model(inputs, shared(shared(layers.Dense(3, name="one")(inputs))))
        with pytest.raises(ValueError, match="'one': 'shared' after it is called several times"):
            rescaled(model, 2.0)

    def test_no_layer_with_a_kernel(self):
        inputs = keras.Input((3,))
        with pytest.raises(ValueError, match="none has a kernel"):
            rescaled(keras.Model(inputs, layers.ReLU()(inputs)), 2.0)


class TestWhatMoves:
    """Of a network and the same one rescaled, by measures that see it and others."""

    def both(self, measure):
        model, data = rectified(), examples()
        return [measure(m, data) for m in (model, rescaled(model, 4.0))]

    @pytest.mark.parametrize(
        ("measure", "moves"),
        [
            (lambda m, d: trace(HessianOperator(m, cross_entropy(), d), 99).estimate, True),
            (lambda m, d: trace(
                RelativeOperator(HessianOperator(m, cross_entropy(), d)), 99).estimate, False),
            (lambda m, d: fisher_rao_norm(FisherOperator(m, cross_entropy(), d)).estimate, False),
            (lambda m, d: sharpness(m, cross_entropy(), d, kind="sam").value, True),
            (lambda m, d: sharpness(m, cross_entropy(), d, kind="asam", eta=0.0).value, False),
            (lambda m, d: local_energy(
                m, d, "loss", sigmas=[0.1], samples=10, loss=cross_entropy()).curve()[0][0], False),
            (lambda m, d: local_energy(m, d, "loss", sigmas=[0.1], samples=10, noise="additive",
                                       loss=cross_entropy()).curve()[0][0], True),
        ],
    )  # fmt: skip
    def test_by_a_factor(self, measure, moves):
        one, other = self.both(measure)
        if moves:
            assert abs(other / one - 1) > 0.1
        else:
            assert other == pytest.approx(one, rel=1e-9)
