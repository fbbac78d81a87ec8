"""The bound that holds: its parts in closed form, its limits, and that it covers the true error."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.landscape import kl_inverse, pac_bayes_bound
from esgd_tf.landscape.pac_bayes import gaussian_kl
from tests.landscape.problems import cross_entropy, examples, mlp

M = 50
NOTHING = (np.zeros((M, 1)), np.zeros(M))


def constant(error):
    return lambda weights, x, y: tf.constant(error, tf.float64) + 0 * tf.reduce_sum(weights[0])


def bound_of(error, weights=None, prior=None, **options):
    weights = np.zeros(3) if weights is None else weights
    prior = weights if prior is None else prior
    given = {"loss": constant(error), "sigmas": 0.1, "trials": 1, "samples": 20}
    return pac_bayes_bound([weights], NOTHING, [prior], **given | options)


def test_divergence_of_gaussians_is_the_integral():
    """By quadrature, in one dimension; it adds up over dimensions."""
    sigma, variance, distance = 0.3, 0.5, 0.7
    x = np.linspace(-8, 8, 400_001)
    log_q = -((x - distance) ** 2) / (2 * sigma**2) - math.log(sigma)
    log_p = -(x**2) / (2 * variance) - 0.5 * math.log(variance)
    q = np.exp(log_q) / math.sqrt(2 * math.pi)
    found = np.sum(q * (log_q - log_p)) * (x[1] - x[0])
    assert gaussian_kl(1, distance**2, sigma, variance) == pytest.approx(found, rel=1e-6)
    assert gaussian_kl(3, 3 * distance**2, sigma, variance) == pytest.approx(3 * found, rel=1e-6)
    assert gaussian_kl(7, 0.0, 0.3, 0.09) == pytest.approx(0.0, abs=1e-12)


def test_every_part_of_the_bound():
    weights, prior = np.array([0.3, -0.2, 0.1]), np.array([0.1, 0.1, 0.1])
    found = bound_of(0.2, weights, prior, delta=0.04, sample_delta=0.02)
    square = 0.04 + 0.09
    assert found.distance == pytest.approx(math.sqrt(square))
    assert found.kl == pytest.approx(gaussian_kl(3, square, 0.1, found.prior_variance))
    j = 100 * math.log(0.1 / found.prior_variance)
    assert j == pytest.approx(round(j), abs=1e-6)
    assert found.nats["scale of the prior"] == pytest.approx(2 * math.log(j))
    assert found.nats["confidence"] == pytest.approx(math.log(math.pi**2 * M / (6 * 0.04)))
    assert found.nats["kl"] == found.kl
    assert (found.size, found.examples) == (3, M)
    assert (found.risk, found.error) == pytest.approx((0.2, 0.2))
    assert found.risk_bound == pytest.approx(kl_inverse(0.2, math.log(2 / 0.02) / 20))
    budget = sum(found.nats.values()) / (M - 1)
    assert found.bound == pytest.approx(kl_inverse(found.risk_bound, budget))


def test_the_scale_of_the_prior_is_the_best_of_all():
    weights, prior = np.array([0.3, -0.2, 0.1]), np.zeros(3)
    found = bound_of(0.2, weights, prior)
    square = float(((weights - prior) ** 2).sum())
    totals = [
        gaussian_kl(3, square, 0.1, 0.1 * math.exp(-j / 100)) + 2 * math.log(j)
        for j in range(1, 2000)
    ]
    assert found.kl + found.nats["scale of the prior"] == pytest.approx(min(totals))


def test_a_posterior_like_the_prior_costs_the_confidence_alone():
    """j = 1, and the variance of the noise is that of the prior: what is left is closed."""
    found = bound_of(0.0, sigmas=math.sqrt(0.1 * math.exp(-1 / 100)), samples=1000)
    assert found.kl == pytest.approx(0.0, abs=1e-9)
    assert found.nats["scale of the prior"] == 0
    assert found.risk_bound == pytest.approx(1 - (0.01 / 2) ** (1 / 1000))
    assert found.bound == pytest.approx(
        kl_inverse(found.risk_bound, math.log(math.pi**2 * M / (6 * 0.025)) / (M - 1))
    )


def test_limits():
    assert bound_of(1.0).bound == 1.0
    far = bound_of(0.1, np.full(3, 1e3), np.zeros(3))
    assert far.bound == 1.0 and far.kl > 1e6
    near, further = (bound_of(0.1, np.full(3, d), np.zeros(3)) for d in (0.01, 0.3))
    assert 0.1 < near.bound < further.bound < 1
    assert bound_of(0.1, delta=0.5, sample_delta=0.5).bound < bound_of(0.1).bound
    assert bound_of(0.1, samples=2000).bound < bound_of(0.1).bound


def test_the_best_of_the_grid_is_taken():
    """Without harm by the noise, the sigma with the least divergence is: that near the prior's."""
    grid = [0.001, 0.1, 0.2, 10.0]
    found = bound_of(0.1, np.full(3, 0.05), np.zeros(3), sigmas=grid)
    assert found.sigma == found.sigmas[np.argmin(found.trial_bounds)] == 0.2
    each = [bound_of(0.1, np.full(3, 0.05), np.zeros(3), sigmas=s) for s in grid]
    assert found.bound == min(e.bound for e in each)
    np.testing.assert_allclose(found.trial_bounds, [e.bound for e in each])


def step(weights, x, y):
    """An error of 0 or 1, of the sign of the weight."""
    return tf.reduce_mean(tf.cast(weights[0] > 0, tf.float64))


def test_the_noise_is_independent():
    """Pairs of z and -z, whose errors are 0 and 1, would have a mean of exactly 1/2."""
    given = {"loss": step, "sigmas": 0.1, "trials": 40, "samples": 40}
    found = [pac_bayes_bound([np.zeros(1)], NOTHING, [np.zeros(1)], seed=s, **given)
             for s in range(4)]  # fmt: skip
    assert len({f.risk for f in found}) > 1
    assert all(0.2 < f.risk < 0.8 for f in found)
    # The noise of the bound is not that of the search for sigma.
    assert any(f.risk != f.trial_risks[0] for f in found)
    for f in found:
        spread = math.sqrt(f.risk * (1 - f.risk) / 39)
        assert f.risk_error == pytest.approx(spread, rel=0.1)


def test_a_network_of_nan_is_wrong():
    def fragile(weights, x, y):
        zero = tf.reduce_sum(weights[0]) * 0
        return zero + tf.where(weights[0][0] == 0, zero, zero + np.nan)

    found = pac_bayes_bound([np.zeros(2)], NOTHING, [np.zeros(2)], loss=fragile, sigmas=0.1,
                            samples=5)  # fmt: skip
    assert (found.error, found.risk, found.bound) == (0.0, 1.0, 1.0)


DIMENSIONS, FLIPPED = 8, 0.1
TRIALS = 30


def test_it_holds_where_the_true_error_is_known():
    """A linear classifier w of labels sign(u·x), a tenth of them flipped, x ~ N(0, I).

    It errs where x lies between the two planes, which has the probability angle(u, w)/π. Least
    squares on few examples fit them too well: the training error is no bound.
    """
    inputs = keras.Input((DIMENSIONS,))
    layer = keras.layers.Dense(1, use_bias=False)
    model = keras.Model(inputs, layer(inputs))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    u = np.eye(DIMENSIONS)[0]
    held = above = 0
    for trial in range(TRIALS):
        rng = np.random.default_rng(trial)
        x = rng.standard_normal((40, DIMENSIONS))
        y = np.where(rng.random(40) < FLIPPED, -1.0, 1.0) * np.sign(x @ u)
        w = np.linalg.lstsq(x, y, rcond=None)[0]
        w /= np.linalg.norm(w)
        layer.kernel.assign(w[:, None])
        found = pac_bayes_bound(
            model, (x.astype("float32"), (y > 0).astype("int32")), [np.zeros((DIMENSIONS, 1))],
            sigmas=0.15, trials=1, samples=60, prior_scale=1.0, loss=loss, seed=trial,
        )  # fmt: skip
        around = w + 0.15 * rng.standard_normal((20_000, DIMENSIONS))
        angle = np.arccos(around @ u / np.linalg.norm(around, axis=1)) / np.pi
        true = FLIPPED + (1 - 2 * FLIPPED) * angle.mean()
        held += true <= found.bound
        above += true > found.risk
        assert found.risk < found.bound < 0.95
    assert held >= (1 - 0.025 - 0.01) * TRIALS
    assert above > TRIALS / 2


def normed():
    model = mlp(batch_norm=True)
    norm = model.get_layer("norm")
    norm.moving_variance.assign(0.01 * norm.moving_variance)  # so that epsilon matters
    model.compile("sgd", cross_entropy())
    return model


def test_moving_statistics_are_weights():
    """Two settings of scale, shift and statistics that are one function have one bound."""
    model, data = normed(), examples(dtype="float32")
    first = [0.1 * w for w in model.get_weights()]
    given = {"sigmas": [0.03, 0.3], "samples": 5, "prior_scale": 10.0}
    one = pac_bayes_bound(model, data, first, **given)
    outputs = model.predict(data[0], verbose=0)
    norm = model.get_layer("norm")
    gamma, beta, mean, variance = norm.get_weights()
    scale = gamma / np.sqrt(variance + norm.epsilon)
    same = [scale, beta - scale * mean, 0 * mean, 0 * variance + 1 - norm.epsilon]
    norm.set_weights(same)
    np.testing.assert_allclose(model.predict(data[0], verbose=0), outputs, atol=1e-5)
    other = pac_bayes_bound(model, data, first, **given)
    assert other.distance == pytest.approx(one.distance, rel=1e-5)
    assert other.kl == pytest.approx(one.kl, rel=1e-5)
    assert (other.risk, other.error, other.bound) == pytest.approx((one.risk, one.error, one.bound))
    # Statistics of the prior are absorbed likewise.
    moved = [np.array(w) for w in first]
    moved[4:6] = [moved[4] * 2, moved[5] + 1]
    assert pac_bayes_bound(model, data, moved, **given).distance != one.distance


def test_a_prior_of_a_network_with_statistics_has_its_own():
    model, data = normed(), examples(dtype="float32")
    trainable = [v.numpy() for v in model.trainable_variables]
    with pytest.raises(ValueError, match=r"all weights of the first network"):
        pac_bayes_bound(model, data, trainable, sigmas=0.1)
    given = {"sigmas": 0.1, "samples": 3, "prior_scale": 10.0}
    copy = normed()
    assert pac_bayes_bound(model, data, copy, **given).distance == pytest.approx(0, abs=1e-6)
    weights = model.get_weights()
    assert pac_bayes_bound(model, data, weights, **given).distance == pytest.approx(0, abs=1e-6)


def test_a_layer_that_is_called_twice_and_one_that_is_frozen():
    """The first is absorbed once; the second keeps its statistics, as a constant."""
    inputs = keras.Input((3,))
    shared = keras.layers.BatchNormalization(name="shared")
    frozen = keras.layers.BatchNormalization(name="frozen", trainable=False)
    outputs = keras.layers.Dense(2)(frozen(shared(keras.layers.Dense(3)(shared(inputs)))))
    model = keras.Model(inputs, outputs)
    shared.moving_variance.assign([4.0, 4.0, 4.0])
    frozen.moving_variance.assign([0.1, 0.1, 0.1])
    x, _ = examples(classes=2, dtype="float32")
    outputs = model.predict(x, verbose=0).argmax(1)
    given = {"loss": cross_entropy(), "sigmas": 1e-6, "samples": 2, "trials": 1}
    found = pac_bayes_bound(model, (x, outputs), [0.0 * w for w in model.get_weights()], **given)
    assert found.error == found.risk == 0
    # Of the shared layer 3 scales of 1/2, up to epsilon, and no shifts; the frozen one counts not.
    kernels = [layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")]
    square = 3 / (4 + shared.epsilon) + sum((k**2).sum() for k in kernels)
    assert found.distance == pytest.approx(math.sqrt(square), rel=1e-5)
    assert found.size == 6 + 12 + 8


def test_statistics_without_a_scale_are_refused():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.BatchNormalization(scale=False, name="bare"),
         keras.layers.Dense(2)]
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"'bare' has moving statistics"):
        pac_bayes_bound(model, examples(classes=2), model, loss=cross_entropy())


def test_data_that_no_bound_is_for():
    model = mlp()
    x, y = examples()
    given = {"prior": model, "loss": cross_entropy()}
    with pytest.raises(ValueError, match=r"at least 8 examples; the data have 5"):
        pac_bayes_bound(model, (x[:5], y[:5]), **given)
    with pytest.raises(ValueError, match=r"have sample weights"):
        pac_bayes_bound(model, (x, y, np.ones(len(y))), **given)
    with pytest.raises(ValueError, match=r"training data alone"):
        pac_bayes_bound(model, {"train": (x, y)}, **given)
    with pytest.raises(ValueError, match=r"from 0 to 1, and the loss function gave 3"):
        bound_of(3.0)


def test_the_prior_must_fit():
    with pytest.raises(ValueError, match=r"the network needs"):
        bound_of(0.1, prior=np.zeros(4))
    other = mlp(hidden=6)
    with pytest.raises(ValueError, match=r"has shape"):
        pac_bayes_bound(mlp(), examples(), other, loss=cross_entropy())
