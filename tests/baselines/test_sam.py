"""SAM and ASAM against steps by hand, a reference in NumPy, and what they must not change."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf.baselines.sam import adaptive_perturbation, perturbation
from tests.baselines import rivals
from tests.optimizers import helpers


def test_sam_by_hand(float64):
    """a = (1, 4), w = (3, 1): g = (3, 4), ‖g‖ = 5, e = (0.3, 0.4), g(w + e) = (3.3, 5.6)."""
    model, batch = rivals.point(
        esgd_tf.SAM(keras.optimizers.SGD(0.1), rho=0.5), [3.0, 1.0], [1.0, 4.0]
    )
    model.train_on_batch(*batch)
    np.testing.assert_allclose(model.w.numpy(), [3 - 0.33, 1 - 0.56], rtol=1e-12)


def test_asam_by_hand(float64):
    """T = |w| + 1 = (4, 2): T g = (12, 8), T² g = (48, 16), ‖T g‖ = √208."""
    optimizer = esgd_tf.ASAM(keras.optimizers.SGD(0.1), rho=0.5, eta=1.0)
    model, batch = rivals.point(optimizer, [[3.0, 1.0]], [1.0, 4.0])
    model.train_on_batch(*batch)
    e = 0.5 * np.array([48.0, 16.0]) / np.sqrt(208)
    expected = np.array([3.0, 1.0]) - 0.1 * np.array([1.0, 4.0]) * (np.array([3.0, 1.0]) + e)
    np.testing.assert_allclose(model.w.numpy()[0], expected, rtol=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_asam_scales_vectors_only_if_told_to(float64, adaptive):
    optimizer = esgd_tf.ASAM(keras.optimizers.SGD(0.1), 0.5, 0.0, adaptive_vectors=adaptive)
    w, g = np.array([3.0, 1.0]), np.array([3.0, 4.0])
    (e,) = optimizer.perturbation([tf.constant(w)], [tf.constant(g)])
    scale = w if adaptive else np.ones(2)
    np.testing.assert_allclose(e, 0.5 * scale**2 * g / np.linalg.norm(scale * g), rtol=1e-12)


def reference(perturb):
    start, gradient = helpers.network_gradient()

    def at_the_worst(weights, step):
        moved = perturb(weights, gradient(weights, step))
        return gradient([w + e for w, e in zip(weights, moved, strict=True)], step)

    return rivals.numpy_sgd(10, at_the_worst, start)


def sam_in_numpy(weights, gradients):
    return [0.3 * g / rivals.norm(gradients) for g in gradients]


def asam_in_numpy(weights, gradients):
    scales = [np.abs(w) + 0.01 if w.ndim > 1 else np.ones_like(w) for w in weights]
    scaled = [t * g for t, g in zip(scales, gradients, strict=True)]
    return [0.8 * t * s / rivals.norm(scaled) for t, s in zip(scales, scaled, strict=True)]


@pytest.mark.parametrize(
    ("name", "perturb"), [("SAM", sam_in_numpy), ("ASAM", asam_in_numpy)], ids=["SAM", "ASAM"]
)
def test_fit_follows_the_equations(float64, name, perturb):
    held, _ = rivals.recorded(rivals.MAKERS[name]())
    for weights, expected in zip(held, reference(perturb), strict=True):
        helpers.assert_close(weights, expected, atol=1e-11)


@pytest.mark.parametrize("synchronized", [False, True])
def test_each_device_has_a_perturbation_of_its_own(float64, two_cpus, synchronized):
    with two_cpus.scope():
        held, _ = rivals.recorded(rivals.MAKERS["SAM"](synchronized=synchronized))
    x, y = helpers.data("float64")
    twin = helpers.network("sgd")

    def gradient(weights, at):
        twin.set_weights(weights)
        with tf.GradientTape() as tape:
            loss = twin.compute_loss(x[at], y[at], twin(x[at]))
        return helpers.numpy(tape.gradient(loss, [v.value for v in twin.trainable_variables]))

    def at_the_worst(weights, step):
        begin = step % helpers.STEPS_PER_EPOCH * helpers.BATCH
        middle, end = begin + helpers.BATCH // 2, begin + helpers.BATCH
        parts = [slice(begin, middle), slice(middle, end)]
        whole = slice(begin, end)
        parts_of_e = [whole, whole] if synchronized else parts
        seconds = []
        for part, part_of_e in zip(parts, parts_of_e, strict=True):
            e = sam_in_numpy(weights, gradient(weights, part_of_e))
            seconds.append(gradient([w + d for w, d in zip(weights, e, strict=True)], part))
        return [(a + b) / 2 for a, b in zip(*seconds, strict=True)]

    expected = rivals.numpy_sgd(10, at_the_worst, helpers.network("sgd").get_weights())
    helpers.assert_close(held[-1], expected[-1], atol=1e-11)


class TestWhatItLeavesAlone:
    @pytest.mark.parametrize("name", ["SAM", "ASAM", "GSAM"])
    @pytest.mark.few(1)
    def test_state_moves_as_in_one_forward_pass(self, name):
        """One step from the same start: statistics, dropout's state and metrics are those at w."""
        plain, tested = (rivals.with_state(make()) for make in (rivals.sgd, rivals.MAKERS[name]))
        logs = [helpers.fit(m, batch_size=40).history for m in (plain, tested)]
        assert logs[0] == logs[1]
        states = [helpers.numpy(m.non_trainable_variables) for m in (plain, tested)]
        assert len(states[0]) == 3  # two moving statistics, the state of dropout
        helpers.assert_equal(*states)
        helpers.assert_differ(plain.get_weights(), tested.get_weights())

    def test_dropout_has_the_same_mask_in_both_gradients(self):
        # Without a mask in common, the gradient at w + 0 would be another than that at w.
        seen = []

        class Watched(esgd_tf.SAM):
            def minibatch_gradient(self, minibatch):
                first = minibatch.gradient()
                seen.extend([first, minibatch.gradient_at(minibatch.weights)])
                return first

        model = rivals.with_state(Watched(rivals.sgd()), run_eagerly=True)
        helpers.train_on_batches(model, 1)
        helpers.assert_equal(*(helpers.numpy(g) for g in seen))


class TestPerturbation:
    def test_asam_is_that_of_a_rescaled_network(self, float64):
        """relu(x A) B = relu(x c A) B / c: ASAM's e scales along with the layers, not SAM's."""
        generator = np.random.default_rng(2)
        x, a, b = (generator.normal(size=s) for s in ((9, 4), (4, 5), (5, 2)))
        target = generator.normal(size=(9, 2))

        def loss_after(c, perturb):
            weights = [tf.constant(c * a), tf.constant(b / c)]

            def loss(weights):
                return tf.reduce_mean((tf.nn.relu(x @ weights[0]) @ weights[1] - target) ** 2)

            with tf.GradientTape() as tape:
                tape.watch(weights)
                value = loss(weights)
            e = perturb(weights, tape.gradient(value, weights))
            return float(loss([w + d for w, d in zip(weights, e, strict=True)]))

        def asam(weights, gradients):
            return adaptive_perturbation(gradients, [tf.abs(w) for w in weights], 0.7)

        def sam(weights, gradients):
            return perturbation(gradients, 0.7)

        assert loss_after(10.0, asam) == pytest.approx(loss_after(1.0, asam), rel=1e-10)
        assert loss_after(10.0, sam) != pytest.approx(loss_after(1.0, sam), rel=1e-2)

    def test_no_gradient_no_perturbation(self):
        zero, none = perturbation([tf.zeros([2]), None], 0.5)
        np.testing.assert_array_equal(zero, [0.0, 0.0])
        assert none is None

    def test_half_precision_does_not_overflow(self):
        (e,) = perturbation([tf.constant([300.0, 400.0], tf.float16)], 0.5)
        np.testing.assert_allclose(e, [0.3, 0.4], rtol=1e-3)

    def test_rows_of_an_embedding(self):
        slices = tf.IndexedSlices(tf.constant([[3.0, 4.0]]), tf.constant([1]), tf.constant([3, 2]))
        (e,) = perturbation([slices], 0.5)
        np.testing.assert_allclose(e, [[0.0, 0.0], [0.3, 0.4], [0.0, 0.0]], rtol=1e-6)
