"""Lines between networks, against closed forms and networks that are set by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf.landscape import interpolate
from tests.landscape.problems import (
    cross_entropy,
    examples,
    flat,
    mlp,
    mlp_loss,
    quadratic,
    same_state,
    state,
    symmetric,
)

THREE = [0.0, 0.25, 1.5]


def two_wells(w):
    """Minima near -1 and 1, the right one higher."""
    return (w[0][0] ** 2 - 1) ** 2 + 0.3 * w[0][0]


def by_hand(model, weights, data):
    """Loss and error of a copy of the model that holds all these weights."""
    copy = keras.models.clone_model(model)
    copy.set_weights([np.asarray(w, "float32") for w in weights])
    x, y = data
    logits = copy(x, training=False).numpy().astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -log_p[np.arange(len(y)), y].mean(), np.mean(logits.argmax(1) != y)


def mixed(one, other, t):
    return [(1 - t) * a + t * b for a, b in zip(one, other, strict=True)]


def frozen_mlp(seed, frozen="first"):
    model = mlp(batch_norm=True, seed=seed)
    if frozen:
        model.get_layer(frozen).trainable = False
    return model


def batch_norm(model):
    norm = model.get_layer("norm")
    return norm.moving_mean.numpy(), norm.moving_variance.numpy()


class TestQuadratic:
    def setup_method(self):
        self.matrix, self.slope = symmetric(np.linspace(-1, 3, 9)), np.linspace(0, 1, 9)
        rng = np.random.default_rng(0)
        self.a, self.b = rng.standard_normal(9), 3 * rng.standard_normal(9)

    def found(self, **options):
        weights, loss = quadratic(self.matrix, self.slope)
        return interpolate(weights, self.a, self.b, loss=loss, **options)

    def check(self, found, points):
        values = [0.5 * w @ self.matrix @ w + self.slope @ w for w in points]
        slopes = [np.linalg.norm(self.matrix @ w + self.slope) for w in points]
        np.testing.assert_allclose(found.values["data"]["loss"], values, rtol=1e-12)
        np.testing.assert_allclose(found.gradient_norm["data"], slopes, rtol=1e-12)
        np.testing.assert_allclose(found.norm, np.linalg.norm(points, axis=1), rtol=1e-12)
        assert found.distance == pytest.approx(np.linalg.norm(self.a - self.b))

    def test_linear(self):
        found = self.found()
        np.testing.assert_allclose(found.coefficients, np.arange(-10, 21) / 10, atol=1e-15)
        assert found.kind == "linear"
        self.check(found, [(1 - c) * self.a + c * self.b for c in found.coefficients])

    def test_spherical(self):
        found = self.found(kind="spherical")
        norm_a, norm_b = np.linalg.norm(self.a), np.linalg.norm(self.b)
        points = []
        for c in found.coefficients:
            point = (1 - c) * self.a + c * self.b
            length = abs((1 - c) * norm_a + c * norm_b)
            points.append(point / np.linalg.norm(point) * length)
        self.check(found, points)
        assert found.kind == "spherical"
        inside = (found.coefficients >= 0) & (found.coefficients <= 1)
        np.testing.assert_allclose(found.norm[inside], np.linspace(norm_a, norm_b, 11), rtol=1e-12)
        # The ends are the networks, and beyond them nothing is turned around.
        assert found.values["data"]["loss"][10] == self.found().values["data"]["loss"][10]

    def test_coefficients_of_ones_own(self):
        mine = np.array([1.0, 0.5])
        found = self.found(coefficients=mine)
        self.check(found, [self.b, (self.a + self.b) / 2])
        mine[0] = 7  # still ours
        assert found.coefficients[0] == 1

    def test_through_the_origin_there_is_no_norm_to_rescale(self):
        self.b = -self.a
        found = self.found(kind="spherical", coefficients=[0.5])
        assert found.values["data"]["loss"][0] == 0

    def test_lists_of_arrays_and_gradient_off(self):
        weights, loss = quadratic(self.matrix, self.slope)
        shapes = [w.shape for w in weights]
        cut = lambda v: [v[:4].reshape(shapes[0]), v[4:]]  # noqa: E731
        found = interpolate(weights, cut(self.a), cut(self.b), loss=loss, gradient_norm=False)
        reference = self.found()
        np.testing.assert_array_equal(
            found.values["data"]["loss"], reference.values["data"]["loss"]
        )
        assert found.gradient_norm == {}


class TestBarrier:
    def test_between_two_wells(self):
        """On the line between them the tilt cancels, and the hill of 1 is left."""
        found = interpolate([np.zeros(1)], [np.array([-1.0])], [np.array([1.0])], loss=two_wells)
        assert found.barrier() == pytest.approx(1, rel=1e-12)
        assert found.barrier("data", "loss") == found.barrier()
        swapped = interpolate([np.zeros(1)], [np.array([1.0])], [np.array([-1.0])], loss=two_wells)
        assert swapped.barrier() == pytest.approx(1, rel=1e-12)

    def test_of_a_valley_is_zero_whatever_lies_beyond(self):
        weights, loss = quadratic(np.eye(4))
        found = interpolate(weights, np.full(4, -1.0), np.full(4, 2.0), loss=loss)
        assert found.barrier() == 0

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("kind", ["linear", "spherical"])
    def test_between_identical_networks_is_exactly_zero(self, dtype, kind):
        weights, loss = quadratic(symmetric(np.linspace(-1, 3, 9)), dtype=dtype)
        a = np.random.default_rng(0).standard_normal(9)
        found = interpolate(weights, a, a.copy(), loss=loss, kind=kind)
        values = found.values["data"]["loss"]
        if kind == "linear" or dtype == "float32":
            assert set(values) == {values[10]}
            assert found.barrier() == 0
        else:  # here rescaling rounds
            assert found.barrier() < 1e-14
        assert found.distance == 0

    def test_needs_both_ends(self):
        for coefficients in ([0.0, 0.5], [0.5, 1.0]):
            found = interpolate(
                [np.zeros(1)], np.zeros(1), np.ones(1), coefficients, loss=two_wells
            )
            with pytest.raises(ValueError, match="must contain 0 and 1"):
                found.barrier()

    def test_order_of_coefficients_does_not_matter(self):
        found = interpolate(
            [np.zeros(1)], -np.ones(1), np.ones(1), [1.0, 3.0, 0.5, 0.0], loss=two_wells
        )
        assert found.barrier() == pytest.approx(1, rel=1e-12)

    def test_of_what_was_not_measured(self):
        found = interpolate([np.zeros(1)], -np.ones(1), np.ones(1), loss=two_wells)
        with pytest.raises(ValueError, match="'test' was not measured; there is data"):
            found.barrier("test")
        with pytest.raises(ValueError, match="'error' was not measured; there is loss"):
            found.barrier("data", "error")


class TestNetwork:
    @pytest.mark.usefixtures("float64")
    def test_against_numpy(self):
        model, (x, y) = mlp(), examples()
        a, b = ([v.numpy() for v in mlp(seed=s).trainable_variables] for s in (1, 2))
        found = interpolate(model, a, b, THREE, loss=cross_entropy(), data=(x, y), batch_size=16)
        expected = [mlp_loss((1 - t) * flat(a) + t * flat(b), x, y) for t in THREE]
        np.testing.assert_allclose(found.values["data"]["loss"], expected, rtol=1e-12)
        # The gradient, from differences of the NumPy network.
        w = 0.75 * flat(a) + 0.25 * flat(b)
        slope = [
            (mlp_loss(w + 1e-6 * e, x, y) - mlp_loss(w - 1e-6 * e, x, y)) / 2e-6
            for e in np.eye(len(w))
        ]
        assert found.gradient_norm["data"][1] == pytest.approx(np.linalg.norm(slope), rel=1e-6)

    @pytest.mark.few(1)
    @pytest.mark.parametrize("given", ["all weights", "models", "variables"])
    def test_all_weights_bring_their_statistics(self, given):
        """Frozen weights and BatchNormalization statistics go along the line too."""
        model, one, other = frozen_mlp(0), frozen_mlp(1), frozen_mlp(2)
        data = {"train": examples(dtype="float32"), "test": examples(30, seed=1, dtype="float32")}
        ends = {
            "all weights": lambda m: m.get_weights(),
            "models": lambda m: m,
            "variables": lambda m: m.weights,
        }[given]
        found = interpolate(
            model, ends(one), ends(other), THREE, loss=cross_entropy(), data=data, batch_size=16,
            gradient_norm=False,
        )  # fmt: skip
        assert list(found.values) == ["train", "test"]
        assert list(found.values["train"]) == ["loss", "error"]
        for k, t in enumerate(THREE):
            weights = mixed(one.get_weights(), other.get_weights(), t)
            for split, part in data.items():
                loss, error = by_hand(model, weights, part)
                assert found.values[split]["loss"][k] == pytest.approx(loss, rel=1e-5)
                assert found.values[split]["error"][k] == pytest.approx(error, abs=1e-6)
        trained = [flat([v.numpy() for v in m.trainable_variables]) for m in (one, other)]
        assert found.distance == pytest.approx(np.linalg.norm(trained[0] - trained[1]), rel=1e-6)

    def test_trainable_weights_leave_the_statistics_of_the_model(self):
        model, one, other = (mlp(batch_norm=True, seed=s) for s in (0, 1, 2))
        data = examples(dtype="float32")
        a, b = ([v.numpy() for v in m.trainable_variables] for m in (one, other))
        options = {"loss": cross_entropy(), "data": data, "gradient_norm": False}
        found = interpolate(model, a, b, THREE, **options)
        for k, t in enumerate(THREE):
            point = mixed(a, b, t)
            weights = [*point[:4], *batch_norm(model), *point[4:]]
            loss, error = by_hand(model, weights, data)
            assert found.values["data"]["loss"][k] == pytest.approx(loss, rel=1e-5)
            assert found.values["data"]["error"][k] == pytest.approx(error, abs=1e-6)
        # The other end with its own: between the two.
        found = interpolate(model, a, other, [0.25], **options)
        point = mixed(a, b, 0.25)
        statistics = mixed(batch_norm(model), batch_norm(other), 0.25)
        loss, _ = by_hand(model, [*point[:4], *statistics, *point[4:]], data)
        assert found.values["data"]["loss"][0] == pytest.approx(loss, rel=1e-5)

    def test_of_another_model_its_weights_matter_and_not_its_frozen_layers(self):
        model, c = frozen_mlp(0), [0.0, 0.3, 1.0]
        options = {
            "loss": cross_entropy(), "data": examples(dtype="float32"), "gradient_norm": False
        }  # fmt: skip
        reference = interpolate(model, frozen_mlp(1), frozen_mlp(2), c, **options)
        found = interpolate(model, frozen_mlp(1, "last"), frozen_mlp(2, None), c, **options)
        for name, values in reference.values["data"].items():
            np.testing.assert_array_equal(found.values["data"][name], values)

    @pytest.mark.few(1)
    @pytest.mark.parametrize("frozen", [None, "first"])
    def test_reestimate_sets_the_statistics(self, frozen):
        model, one, other = (frozen_mlp(s, frozen) for s in (0, 1, 2))
        x, y = examples(dtype="float32")
        batches = [(x[:20], y[:20]), (x[20:], y[20:])]
        seen = []

        def reestimate(copy):
            seen.append(copy)
            esgd_tf.reestimate_batch_norm(copy, batches)

        before = [state(m) for m in (model, one, other)]
        found = interpolate(
            model, one, other, THREE, loss=cross_entropy(), data={"a": (x, y), "b": (x[:9], y[:9])},
            reestimate=reestimate,
        )  # fmt: skip
        hand = frozen_mlp(5, frozen)
        for k, t in enumerate(THREE):
            hand.set_weights(mixed(one.get_weights(), other.get_weights(), t))
            esgd_tf.reestimate_batch_norm(hand, batches)
            for split, part in (("a", (x, y)), ("b", (x[:9], y[:9]))):
                loss, error = by_hand(hand, hand.get_weights(), part)
                assert found.values[split]["loss"][k] == pytest.approx(loss, rel=1e-5)
                assert found.values[split]["error"][k] == pytest.approx(error, abs=1e-6)
            if k == 1:
                with tf.GradientTape() as tape:
                    loss = cross_entropy()(y, hand(x, training=False))
                slope = flat(tape.gradient(loss, [v.value for v in hand.trainable_variables]))
                assert found.gradient_norm["a"][1] == pytest.approx(np.linalg.norm(slope), rel=1e-4)
        assert len(seen) == 3
        assert not any(copy is m for copy in seen for m in (model, one, other))
        assert all(
            same_state(b, state(m)) for b, m in zip(before, (model, one, other), strict=True)
        )

    def test_reestimate_sees_the_same_copy_at_each_point(self):
        """Seeds of dropout too: what reestimates in training mode draws the same at each point."""
        model, seen = mlp(batch_norm=True), []
        x, y = examples(dtype="float32")

        def reestimate(copy):
            copy(x, training=True)
            seen.append([v.numpy() for v in copy.variables])

        interpolate(
            model, model, mlp(batch_norm=True, seed=1), [1.0, 0.0, 1.0], loss=cross_entropy(),
            data=(x, y), reestimate=reestimate, gradient_norm=False,
        )  # fmt: skip
        for first, again in zip(seen[0], seen[2], strict=True):
            np.testing.assert_array_equal(first, again)
        assert any((a != b).any() for a, b in zip(seen[0], seen[1], strict=True))

    def test_reestimate_of_a_model_of_ones_own_class(self):
        class Plain(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense, self.norm = keras.layers.Dense(4), keras.layers.BatchNormalization()

            def call(self, x, training=False):
                return self.norm(self.dense(x), training=training)

        class Complete(Plain):
            def get_config(self):
                return {}

        x, y = examples(dtype="float32")
        options = {"loss": cross_entropy(), "data": (x, y), "coefficients": [0.5]}
        reestimate = lambda m: m.norm.moving_mean.assign([0, 1, 2, 3])  # noqa: E731
        model = Complete()
        model(x)
        found = interpolate(model, model, model, reestimate=reestimate, **options)
        model.norm.moving_mean.assign([0, 1, 2, 3])
        expected = float(cross_entropy()(y, model(x)))
        assert found.values["data"]["loss"][0] == pytest.approx(expected, rel=1e-5)
        model = Plain()
        model(x)
        with pytest.raises(ValueError, match="Keras cannot make one"):
            interpolate(model, model, model, reestimate=lambda m: None, **options)

    def test_leaves_the_models_as_they_were(self):
        model, one, other = (frozen_mlp(s) for s in (0, 1, 2))
        before = [state(m) for m in (model, one, other)]
        interpolate(
            model, one, other.get_weights(), THREE, loss=cross_entropy(),
            data=examples(dtype="float32"), kind="spherical",
        )  # fmt: skip
        for old, m in zip(before, (model, one, other), strict=True):
            assert same_state(old, state(m))

    @pytest.mark.slow
    def test_compiled_and_fitted(self):
        """Metrics and optimizers have variables that are no weights."""
        model, one = mlp(batch_norm=True), mlp(batch_norm=True, seed=1)
        data = examples(dtype="float32")
        reference = interpolate(
            model, model.get_weights(), one, [0.0, 0.5], loss=cross_entropy(), data=data,
            gradient_norm=False,
        )  # fmt: skip
        weights = model.get_weights()
        model.compile("adam", cross_entropy(), metrics=["accuracy"])
        model.fit(*data, verbose=0)
        found = interpolate(model, weights, one, [0.0, 0.5], data=data, gradient_norm=False)
        np.testing.assert_array_equal(
            found.values["data"]["loss"], reference.values["data"]["loss"]
        )

    def test_gradient_is_that_of_the_loss_if_only_the_error_is_asked_for(self):
        model, one = mlp(), mlp(seed=1)
        data = examples(dtype="float32")
        model.compile("sgd", cross_entropy())
        both = interpolate(model, model, one, [0.5], data=data)
        found = interpolate(model, model, one, [0.5], data=data, metric="error")
        assert list(found.values["data"]) == ["error"]
        assert found.gradient_norm["data"][0] == both.gradient_norm["data"][0] > 0
        plain = mlp()
        with pytest.raises(ValueError, match="There is no loss"):
            interpolate(plain, plain, one, [0.5], data=data, metric="error")
        interpolate(plain, plain, one, [0.5], data=data, metric="error", gradient_norm=False)

    @pytest.mark.slow
    def test_two_devices_are_one(self, two_cpus):
        with two_cpus.scope():
            mirrored = mlp(batch_norm=True)
        data, ends = examples(31, dtype="float32"), [mlp(batch_norm=True, seed=s) for s in (1, 2)]
        one, two = (
            interpolate(m, *ends, THREE, loss=cross_entropy(), data=data, gradient_norm=False)
            for m in (mlp(batch_norm=True), mirrored)
        )
        for name in ("loss", "error"):
            np.testing.assert_allclose(
                two.values["data"][name], one.values["data"][name], rtol=1e-5
            )


class TestArguments:
    def test_weights_that_do_not_fit(self):
        model, data = mlp(batch_norm=True), examples(dtype="float32")
        weights = model.get_weights()
        turned = [w.T for w in weights]
        wrong_statistics = [*weights[:4], np.zeros(6), *weights[5:]]
        for wrong, message in (
            (mlp(), "The other network has 4 weights, and the model 8"),
            (mlp(hidden=6, batch_norm=True), r"first/kernel has shape \(3, 5\).* \(3, 6\)"),
            (turned, r"first/kernel has shape \(3, 5\).* \(5, 3\)"),
            (wrong_statistics, r"norm/moving_mean has shape \(5,\).* \(6,\)"),
            (weights[:-1], "The weights have shapes"),
        ):
            with pytest.raises(ValueError, match=message):
                interpolate(model, model, wrong, loss=cross_entropy(), data=data)


class TestResult:
    def found(self):
        data = {"train": examples(dtype="float32"), "test": examples(9, dtype="float32")}
        return interpolate(mlp(), mlp(seed=1), mlp(), THREE, loss=cross_entropy(), data=data)

    def test_plot(self):
        found = self.found()
        ax = found.plot(label="linear")
        for line, split in zip(ax.get_lines(), ("train", "test"), strict=False):
            assert line.get_label() == f"linear, {split}"
            np.testing.assert_array_equal(line.get_ydata(), found.values[split]["loss"])
        assert ax.get_ylabel() == "loss"
        assert found.plot(ax, metric="error") is ax
        assert ax.get_ylabel() == "error"
        alone = interpolate([np.zeros(1)], -np.ones(1), np.ones(1), loss=two_wells).plot()
        assert alone.get_legend() is None


class TestWhoseWeights:
    @pytest.mark.slow
    def test_networks_in_training_are_taken_at_their_anchors(self):
        """And the plane through one, too: x' is nowhere on it."""
        from esgd_tf import EntropySGD, evaluate_at
        from esgd_tf.landscape import plane

        x, y = examples(40, dtype="float32")
        networks = [mlp(seed=1), mlp(seed=2)]
        for network in networks:
            network.compile(EntropySGD(0.1, langevin_steps=5, noise=0.1), cross_entropy())
            for _ in range(3):
                network.train_on_batch(x, y)
        found = interpolate(networks[0], *networks, [0.0, 1.0], data=(x, y), metric="loss")
        through = plane(networks[0], data=(x, y), metric="loss", points=3)
        with pytest.warns(UserWarning, match="Langevin weights"):
            before = [network.evaluate(x, y, verbose=0) for network in networks]
        expected = []
        for network in networks:
            with evaluate_at(network):
                expected.append(network.evaluate(x, y, verbose=0))
        assert found.measured_at == through.measured_at == "anchor"
        assert found.to_dict()["measured_at"] == "anchor"
        np.testing.assert_allclose(found.values["data"]["loss"], expected, rtol=1e-5)
        assert through.values["data"]["loss"][1, 1] == pytest.approx(expected[0], rel=1e-5)
        assert abs(before[0] - expected[0]) > 1e-3

    def test_weights_that_are_not_finite_are_refused(self):
        model = mlp()
        bad = [np.full(v.shape, np.nan) for v in model.trainable_variables]
        with pytest.raises(ValueError, match="NaN or infinity"):
            interpolate(model, model, bad, loss=cross_entropy(), data=examples(dtype="float32"))

    def test_a_barrier_over_what_was_not_finite_is_no_barrier_of_zero(self):
        model, (x, y) = mlp(), examples(dtype="float32")
        far = [1e38 * np.ones(v.shape) for v in model.trainable_variables]
        found = interpolate(model, model, far, [0.0, 0.5, 1.0], loss=cross_entropy(), data=(x, y))
        assert not np.isfinite(found.values["data"]["loss"]).all()
        assert not np.isfinite(found.barrier())
