"""LPF-SGD against a reference in NumPy, its noise, and its limits."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf.baselines.lpf_sgd import filter_norms
from esgd_tf.optimizers import _kernels
from tests.baselines import rivals
from tests.optimizers import helpers


def gradient_of(model, weights, x, y):
    model.set_weights(weights)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x))
    return helpers.numpy(tape.gradient(loss, [v.value for v in model.trainable_variables]))


def noise(weights, number):
    key = _kernels.noise_key(tf.constant(5, tf.int64), tf.constant(number, tf.int64))
    result = []
    for i, w in enumerate(weights):
        norms = np.sqrt((w**2).sum(axis=tuple(range(w.ndim - 1)) if w.ndim > 1 else None))
        normal = _kernels.standard_normal(tf.TensorShape(w.shape), tf.float64, key, i).numpy()
        result.append(0.1 * norms * normal)
    return result


def test_fit_follows_the_equations(float64):
    """Three parts of a minibatch of eight have 2, 3 and 3 examples: a mean over all eight."""
    x, y = helpers.data("float64")
    twin = helpers.network("sgd")

    def smoothed(weights, step):
        begin = step % helpers.STEPS_PER_EPOCH * helpers.BATCH
        total = [np.zeros_like(w) for w in weights]
        for part, (a, b) in enumerate([(0, 2), (2, 5), (5, 8)]):
            moved = [w + n for w, n in zip(weights, noise(weights, 3 * step + part), strict=True)]
            at = slice(begin + a, begin + b)
            part_gradient = gradient_of(twin, moved, x[at], y[at])
            total = [t + (b - a) / 8 * g for t, g in zip(total, part_gradient, strict=True)]
        return total

    held, _ = rivals.recorded(rivals.MAKERS["LPFSGD"]())
    start = helpers.network("sgd").get_weights()
    for weights, expected in zip(held, rivals.numpy_sgd(10, smoothed, start), strict=True):
        helpers.assert_close(weights, expected, atol=1e-11)


def test_without_noise_the_parts_make_the_whole(float64):
    held = [
        rivals.recorded(make)[0][-1]
        for make in (esgd_tf.LPFSGD(rivals.sgd(), gamma=0.0, samples=3), rivals.sgd())
    ]
    helpers.assert_close(*held, atol=1e-12)


def test_more_parts_than_examples(float64):
    held = [
        rivals.recorded(make)[0][-1]
        for make in (esgd_tf.LPFSGD(rivals.sgd(), gamma=0.0, samples=11), rivals.sgd())
    ]
    helpers.assert_close(*held, atol=1e-12)


def test_filters():
    kernel = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_allclose(
        filter_norms(tf.constant(kernel))[0, 0], np.sqrt((kernel**2).sum(axis=(0, 1)))
    )
    np.testing.assert_allclose(filter_norms(tf.constant([3.0, 4.0])), [5.0])


def test_the_noise_is_as_large_as_it_says():
    """The gradient of 1/2 ‖w‖² at w + n is w + n: with a step size of -1 the step adds w + n."""
    start = np.ones((200, 50))
    model, batch = rivals.point(
        esgd_tf.LPFSGD(keras.optimizers.SGD(1.0), gamma=0.02, samples=1, seed=3),
        start, np.ones(start.size),
    )  # fmt: skip
    model.train_on_batch(*batch)
    n = -model.w.numpy()  # w - (w + n)
    deviation = 0.02 * np.sqrt(200)
    assert n.std() == pytest.approx(deviation, rel=0.03)  # four standard errors
    assert abs(n.mean()) < 4 * deviation / 100


def test_noise_differs_by_step_part_and_device(two_cpus):
    seen = []

    class Watched(esgd_tf.LPFSGD):
        def _noisy(self, weights, part):
            noisy = super()._noisy(weights, part)
            seen.append(float((noisy[0] - weights[0]).numpy()[0, 0]))
            return noisy

    model = rivals.network(Watched(rivals.sgd(), 0.1, 3, seed=5), run_eagerly=True)
    helpers.train_on_batches(model, 2)
    assert len(set(seen)) == len(seen) == 6
    with two_cpus.scope():
        a = rivals.recorded(rivals.MAKERS["LPFSGD"](), epochs=1)[0][-1]
        b = rivals.recorded(rivals.MAKERS["LPFSGD"](), epochs=1)[0][-1]
    helpers.assert_equal(a, b)


@pytest.mark.parametrize(("t", "gamma"), [(0, 0.1), (5, 0.2), (10, 0.3), (15, 0.3)])
def test_the_noise_grows_along_a_cosine(t, gamma):
    optimizer = esgd_tf.LPFSGD("sgd", 0.1, 1, growth=3.0, steps=10)
    optimizer.iterations.assign(t)
    assert float(optimizer.acting_gamma) == pytest.approx(gamma)


def test_growth_needs_steps():
    with pytest.raises(ValueError, match="`growth` needs `steps`"):
        esgd_tf.LPFSGD("sgd", growth=15.0)


def test_metrics_and_statistics_are_those_of_the_parts():
    """Without noise and dropout, metrics and the loss are those of the minibatch."""
    plain, tested = (
        rivals.network(make, run_eagerly=True)
        for make in (rivals.sgd(), esgd_tf.LPFSGD(rivals.sgd(), gamma=0.0, samples=2))
    )
    logs = [helpers.fit(m).history["loss"] for m in (plain, tested)]
    np.testing.assert_allclose(*logs, rtol=1e-6)
    model = rivals.with_state(esgd_tf.LPFSGD(rivals.sgd(), gamma=0.0, samples=2))
    layer = model.layers[1]
    before, inputs = layer.moving_mean.numpy(), model.layers[0]
    x, y = helpers.data()
    means = [
        keras.ops.convert_to_numpy(inputs(x[part])).mean(0) for part in ([0, 1, 2, 3], [4, 5, 6, 7])
    ]
    model.train_on_batch(x[:8], y[:8])
    expected = before
    for mean in means:
        expected = 0.99 * expected + 0.01 * mean
    np.testing.assert_allclose(layer.moving_mean.numpy(), expected, rtol=1e-5, atol=1e-7)
