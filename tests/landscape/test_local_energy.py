"""Local energy and the largest sigma, against closed forms and a NumPy loop over the same noise."""

import json

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from esgd_tf.landscape import local_energy, pac_bayes_sigma
from esgd_tf.landscape._error import error_of
from esgd_tf.landscape._vectors import student_factor
from tests.landscape.problems import (
    cross_entropy,
    examples,
    flat,
    mlp,
    quadratic,
    same_state,
    state,
    symmetric,
)

A = symmetric(np.linspace(0.2, 3.0, 12))
W = np.linspace(-1, 2, 12)


def energy(matrix=A, at=W, **options):
    """Return the local energy of 1/2 w'A w around a point, by default not its minimum."""
    weights, loss = quadratic(matrix)
    start = [at[: weights[0].size].reshape(weights[0].shape), at[weights[0].size :]]
    return local_energy(start, None, "loss", loss=loss, **options)


def noise(seed, samples, size):
    """Return the z that are drawn: each pair with a seed of its own; more samples only add."""
    pairs = [
        np.random.default_rng([seed, k]).standard_normal(size) for k in range((samples + 1) // 2)
    ]
    return np.stack([sign * z for z in pairs for sign in (1, -1)])


def spread_of(rises):
    """Return the standard error from pairs of neighbours, with Student's factor."""
    means = np.reshape(rises, (-1, 2, *np.shape(rises)[1:])).mean(axis=1)
    m = len(means)
    factor = scipy.stats.t.ppf(scipy.stats.norm.cdf(2), m - 1) / 2
    return factor * np.std(means, axis=0, ddof=1) / np.sqrt(m)


def network(n=60, **options):
    """Return a small network, and data of which it gets a tenth wrong."""
    model, (x, _) = mlp(**options), examples(n, dtype="float32")
    y = np.argmax(model(x, training=False), axis=1)
    y[: n // 10] = (y[: n // 10] + 1) % 4
    return model, x, y


def logits(model, x, w):
    """Return what `mlp` gives, in NumPy."""
    parts, at = [], 0
    for variable in model.trainable_variables:
        parts.append(w[at : at + variable.numpy().size].reshape(variable.shape))
        at += variable.numpy().size
    return np.tanh(x @ parts[0] + parts[1]) @ parts[2] + parts[3]


def log_loss(scores, y):
    shifted = scores - scores.max(1, keepdims=True)
    return -(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))[np.arange(len(y)), y]


class TestQuadratic:
    @pytest.mark.few(1)
    @pytest.mark.parametrize("kind", ["additive", "multiplicative"])
    def test_closed_form_and_errors_of_the_right_size(self, kind):
        scale = W if kind == "multiplicative" else np.ones(12)
        m, v = A * np.outer(scale, scale), scale * (A @ W)
        sigmas, samples = np.array([0.1, 0.8]), 50
        found = [energy(noise=kind, sigmas=sigmas, samples=samples, seed=s) for s in range(10)]
        value, spread = (np.stack(a) for a in zip(*(f.curve() for f in found), strict=True))
        scores = (value - sigmas**2 / 2 * np.trace(m)) / spread
        assert np.abs(scores).max() < 4
        assert 0.6 < scores[:, 1].std() < 1.6
        # The variance of 1/2 σ² z'Mz + σ z'v is σ⁴/2 tr M² + σ² v'v, and a pair is without v.
        assert v @ v > 1
        variance = sigmas**4 / 2 * np.trace(m @ m) * student_factor(samples // 2) ** 2
        np.testing.assert_allclose((spread**2).mean(0), variance / (samples // 2), rtol=0.25)
        assert found[0].reference == {"data": {"loss": pytest.approx(W @ A @ W / 2)}}

    @pytest.mark.parametrize("kind", ["additive", "multiplicative"])
    def test_each_sample_has_its_own_noise_and_all_sigmas_share_it(self, kind):
        sigmas = np.array([0.0, 0.3, 1.0])
        steps = noise(5, 7, 12) * (W if kind == "multiplicative" else 1)
        assert len(steps) == 8  # pairs
        rises = [[s * d @ A @ W + s**2 * d @ A @ d / 2 for s in sigmas] for d in steps]
        value, spread = energy(noise=kind, sigmas=sigmas, samples=7, seed=5).curve()
        np.testing.assert_allclose(value, np.mean(rises, axis=0), atol=1e-12)
        np.testing.assert_allclose(spread, spread_of(rises), atol=1e-12)
        assert value[0] == 0
        assert spread[0] == 0

    def test_mixed_noise(self):
        """Its VARIANCE is σ² w² + ε²: the released code of the source takes that for its root."""
        sigmas, epsilon = np.array([0.0, 0.2, 1.0]), 0.3
        options = {"noise": "mixed", "epsilon": epsilon, "sigmas": sigmas}
        scales = [np.sqrt(s**2 * W**2 + epsilon**2) for s in sigmas]
        rises = [[(d := c * z) @ A @ W + d @ A @ d / 2 for c in scales] for z in noise(5, 8, 12)]
        found = energy(samples=8, seed=5, **options)
        np.testing.assert_allclose(found.curve()[0], np.mean(rises, axis=0), atol=1e-12)
        assert (found.noise, found.epsilon) == ("mixed", epsilon)
        # In the mean, ½ Σ (σ² w² + ε²) A_ii.
        value, error = energy(samples=2000, **options).curve()
        expected = np.array([c**2 @ np.diag(A) / 2 for c in scales])
        assert np.abs((value - expected) / error).max() < 3
        assert (error < 0.05 * expected).all()
        # With no ε to speak of it is multiplicative.
        shared = {"samples": 8, "sigmas": sigmas, "at": np.abs(W)}
        tiny = energy(noise="mixed", epsilon=1e-12, **shared).curve()[0]
        np.testing.assert_allclose(tiny, energy(**shared).curve()[0], atol=1e-9)
        assert energy(samples=2).epsilon == 0

    def test_one_sigma_may_be_a_number(self):
        assert energy(sigmas=0.3, samples=4).curve()[0].shape == (1,)

    def test_sigmas_stay_the_callers(self):
        sigmas = np.array([0.1, 0.2])
        found = energy(sigmas=sigmas, samples=2)
        sigmas[0] = 5.0
        np.testing.assert_array_equal(found.sigmas, [0.1, 0.2])

    def test_only_the_chosen_weights_are_disturbed(self):
        found = energy(sigmas=[0.5], samples=6, variables=[1], noise="additive")
        steps = np.concatenate([np.zeros((6, 6)), 0.5 * noise(0, 6, 6)], axis=1)
        rises = [d @ A @ W + d @ A @ d / 2 for d in steps]
        assert found.curve()[0][0] == pytest.approx(np.mean(rises), abs=1e-12)


class TestNetwork:
    @pytest.mark.parametrize("kind", ["additive", "multiplicative"])
    def test_against_a_loop_in_numpy(self, kind):
        """Two splits and two metrics at once: all see the same noise."""
        model, x, y = network()
        before = state(model)
        found = local_energy(
            model, {"train": (x, y), "test": (x[:25], y[:25])}, ["error", "loss"],
            sigmas=[0.0, 0.4], samples=5, noise=kind, loss=cross_entropy(), batch_size=16, seed=3,
        )  # fmt: skip
        assert same_state(before, state(model))
        w = flat([v.numpy() for v in model.trainable_variables]).astype("float64")
        steps = 0.4 * noise(3, 5, len(w)) * (w if kind == "multiplicative" else 1)
        measures = {
            "error": lambda scores, y: (scores.argmax(1) != y).mean(),
            "loss": lambda scores, y: log_loss(scores, y).mean(),
        }
        for split, (part, labels) in {"train": (x, y), "test": (x[:25], y[:25])}.items():
            for name, measure in measures.items():
                start = measure(logits(model, part, w), labels)
                rises = [measure(logits(model, part, w + d), labels) - start for d in steps]
                value, spread = found.curve(split, name)
                assert found.reference[split][name] == pytest.approx(start, abs=1e-6)
                assert value[1] == pytest.approx(np.mean(rises), abs=1e-6)
                assert spread[1] == pytest.approx(spread_of(rises), abs=1e-5)
                assert value[0] == spread[0] == 0
        assert found.curve()[0] is found.increase["train"]["error"]
        assert found.curve(metric="error")[0][1] > 0.05

    def test_metrics_of_ones_own(self):
        model, x, y = network()

        def confidence(y_true, y_pred):
            return tf.reduce_max(tf.nn.softmax(y_pred), axis=1)

        margin = keras.losses.CategoricalHinge(name="margin")
        labels = np.eye(4, dtype="float32")[y]
        found = local_energy(model, (x, labels), [confidence, margin], sigmas=[0.3], samples=2)
        scores = logits(model, x, flat([v.numpy() for v in model.trainable_variables]))
        odds = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        hinge = keras.losses.CategoricalHinge()(labels, scores)
        assert found.reference["data"] == {
            "confidence": pytest.approx(odds.max(1).mean(), abs=1e-6),
            "margin": pytest.approx(float(hinge), abs=1e-6),
        }

        def loss(y_true, y_pred):
            return 0 * y_pred[:, 0] + 7

        named_loss = local_energy(model, (x, labels), loss, sigmas=[0.3], samples=2)
        assert named_loss.reference["data"] == {"loss": 7}
        # Of two with one name, one would be lost.
        with pytest.raises(ValueError, match="confidence"):
            local_energy(model, (x, labels), [confidence, confidence], sigmas=[0.3], samples=2)

    def test_nan_is_not_hidden(self):
        """Noise of 1e38 overflows float32: inf - inf is no prediction."""
        model, x, y = network(activation="relu")
        found = local_energy(
            model, (x, y), ["error", "loss"], sigmas=[0.0, 1e38], samples=4, noise="additive",
            loss=cross_entropy(),
        )  # fmt: skip
        for metric in ("error", "loss"):
            value, spread = found.curve(metric=metric)
            assert value[0] == 0
            assert np.isnan(value[1])
            assert np.isnan(spread[1])


class TestError:
    @pytest.mark.parametrize("shape", ["n", "n,1", "one-hot", "smoothed"])
    def test_labels(self, shape):
        scores = np.array([[0.1, 0.7, 0.2], [5, 1, 1], [1, 2, 3], [0, 0, 1]], "float32")
        y = np.array([1, 0, 0, 2])
        labels = {
            "n": y,
            "n,1": y[:, None].astype("float32"),
            "one-hot": np.eye(3, dtype="int32")[y],
            "smoothed": 0.9 * np.eye(3)[y] + 0.1 / 3,
        }
        found = error_of(None)(tf.constant(labels[shape]), tf.constant(scores))
        np.testing.assert_array_equal(found, [0, 0, 1, 0])

    @pytest.mark.parametrize("column", [False, True])
    def test_one_output(self, column):
        probabilities = tf.constant([[0.9], [0.49], [0.51], [0.1]])
        y = np.array([1, 1, 0, 0], "float32")
        found = error_of("binary_crossentropy")(
            tf.constant(y[:, None] if column else y), probabilities
        )
        np.testing.assert_array_equal(found, [0, 1, 1, 0])

    def test_as_many_examples_as_classes(self):
        """[n] labels are not one-hot because n is the number of classes."""
        found = error_of(None)(tf.constant([0, 1, 2]), tf.eye(3))
        np.testing.assert_array_equal(found, [0, 0, 0])

    def test_each_pixel(self):
        scores = tf.constant(np.eye(3, dtype="float32")[[[0, 1], [2, 2]]])
        np.testing.assert_array_equal(
            error_of(None)(tf.constant([[0, 1], [0, 2]]), scores), [[0, 0], [1, 0]]
        )

    def test_nan_is_no_prediction(self):
        scores = tf.constant([[np.nan, 1.0], [1.0, np.nan], [0.0, 1.0]])
        np.testing.assert_array_equal(
            error_of(None)(tf.constant([0, 0, 1]), scores), [np.nan, np.nan, 0]
        )
        column = tf.constant([[np.nan], [0.2]])
        np.testing.assert_array_equal(error_of("bce")(tf.constant([0, 1]), column), [np.nan, 1])


class TestArgumentsAndResult:
    def test_result(self):
        model, x, y = network()
        found = local_energy(
            model, {"train": (x, y), "test": (x[:9], y[:9])}, sigmas=[0.1, 0.3], samples=2
        )
        written = json.loads(json.dumps(found.to_dict()))
        assert written["samples"] == 2
        assert written["noise"] == "multiplicative"
        assert written["increase"]["test"]["error"] == list(found.increase["test"]["error"])
        ax = found.plot(label="here")
        assert ax.get_xlabel() == "σ of multiplicative noise"
        assert ax.get_ylabel() == "increase of error (% points)"
        assert [t.get_text() for t in ax.get_legend().get_texts()] == ["here, train", "here, test"]
        drawn = ax.containers[0].lines[0].get_ydata()
        np.testing.assert_allclose(drawn, 100 * found.increase["train"]["error"])
        assert found.plot(ax) is ax
        assert energy(sigmas=[0.1], samples=2).plot().get_ylabel() == "increase of loss"


def largest_sigma(matrix=A, at=None, **options):
    weights, loss = quadratic(matrix)
    if at is not None:
        weights = [at[: weights[0].size].reshape(weights[0].shape), at[weights[0].size :]]
    return pac_bayes_sigma(weights, None, loss=loss, **options)


class TestPacBayesSigma:
    @pytest.mark.slow
    def test_closed_form_and_errors_of_the_right_size(self):
        curvature, bound = 2.5 * np.eye(12), 0.3
        exact = np.sqrt(2 * bound / np.trace(curvature))
        found = [largest_sigma(curvature, bound=bound, samples=15, seed=s) for s in range(12)]
        scores = np.array([(f.sigma - exact) / f.standard_error for f in found])
        assert np.abs(scores).max() < 4
        assert 0.6 < scores.std() < 1.6
        # The increase of 8 pairs has the relative error sqrt(2 / 12 / 8), sigma half of it.
        stated = np.mean([f.standard_error for f in found])
        expected = student_factor(8) * exact * np.sqrt(2 / 12 / 8) / 2
        assert stated == pytest.approx(expected, rel=0.15)
        for f in found:
            assert f.bracketed
            assert f.increase <= bound == f.bound
            assert f.increase == pytest.approx(bound, rel=3e-3)
            assert f.increase_error == pytest.approx(
                2 * f.standard_error * bound / f.sigma, rel=0.1
            )
            assert f.samples == 16

    def test_is_where_the_increase_of_the_local_energy_is_the_bound(self):
        for kind in ("additive", "multiplicative"):
            found = largest_sigma(at=W, bound=0.2, samples=10, noise=kind, seed=4)
            same = energy(sigmas=[found.sigma], samples=10, noise=kind, seed=4).curve()
            assert found.increase == same[0][0]
            assert found.increase_error == same[1][0]
            assert found.noise == kind

    def test_mixed_noise(self):
        """½ Σ (σ² w² + ε²) A_ii = bound, for the same z."""
        found = largest_sigma(at=W, bound=0.5, samples=2000, noise="mixed", epsilon=0.1)
        true = np.sqrt((2 * 0.5 - 0.1**2 * np.trace(A)) / (W**2 @ np.diag(A)))
        assert abs(found.sigma - true) < 3 * found.standard_error
        assert found.standard_error < 0.05 * true
        assert (found.noise, found.epsilon) == ("mixed", 0.1)
        with pytest.raises(ValueError, match=r"below 0\.01 \(`epsilon` of 0.1 alone exceeds it\)"):
            largest_sigma(at=W, bound=0.01, samples=4, noise="mixed", epsilon=0.1)

    @pytest.mark.parametrize("scale", [1e-12, 1e16])
    def test_accuracy_is_relative(self, scale):
        """However large or small sigma is."""
        options = {"bound": 0.3, "samples": 5, "max_sigma": 30 / np.sqrt(scale), "rtol": 1e-5}
        found = largest_sigma(scale * A, **options)
        z = noise(0, 5, 12)
        mean = np.mean([d @ A @ d / 2 for d in z])
        assert found.sigma == pytest.approx(np.sqrt(0.3 / mean / scale), rel=1e-5)

    def test_below_where_the_search_begins(self):
        found = largest_sigma(1e8 * A, bound=0.3, samples=5)
        assert found.sigma < 1e-3
        assert found.bracketed
        assert found.increase == pytest.approx(0.3, rel=3e-3)

    def test_not_bracketed(self):
        found = largest_sigma(bound=1e6, samples=3, max_sigma=0.7)
        assert found.sigma == 0.7
        assert not found.bracketed
        assert found.increase == pytest.approx(
            np.mean([0.49 * d @ A @ d / 2 for d in noise(0, 3, 12)])
        )
        # Where the increase meets the bound is unknown, and how well too.
        assert np.isnan(found.standard_error)

    @pytest.mark.slow
    def test_error_rate(self):
        """A step function of sigma: the promise holds, and the error is that of a smooth one."""
        model, x, y = network(200)
        options = {"bound": 0.1, "samples": 12, "noise": "multiplicative"}
        found = [pac_bayes_sigma(model, (x, y), "error", seed=s, **options) for s in range(6)]
        for f in found:
            assert f.bracketed
            assert 0.08 < f.increase <= 0.1
        sigmas = np.array([f.sigma for f in found])
        stated = np.array([f.standard_error for f in found])
        assert 0.4 < sigmas.std(ddof=1) / np.sqrt(np.mean(stated**2)) < 2.2
        same = local_energy(model, (x, y), sigmas=[found[5].sigma], samples=12, seed=5).curve()
        assert found[5].increase == same[0][0]

    def test_overflow_is_a_large_increase(self):
        """The search begins where f is NaN or infinite, and ends close to that."""
        loss = lambda w: -tf.reduce_sum(tf.math.log(1 - w[0] ** 2))  # noqa: E731
        options = {"samples": 20, "bound": 0.9, "max_sigma": 1e4}
        found = pac_bayes_sigma([np.zeros(3)], None, loss=loss, **options)
        assert found.bracketed
        assert 0.3 < found.sigma < 1
        rises = [-np.log(1 - (found.sigma * z) ** 2).sum() for z in noise(0, 20, 3)]
        assert found.increase == pytest.approx(np.mean(rises))
        assert found.increase <= 0.9
        assert 0 < found.standard_error < 1

    def test_a_loss_that_never_stays_below(self):
        loss = lambda w: tf.where(tf.reduce_any(w[0] != 0), 1.0, 0.0)  # noqa: E731
        with pytest.raises(ValueError, match="No sigma keeps the increase of loss below"):
            pac_bayes_sigma([np.zeros(3, "float32")], None, loss=loss, samples=2)
        with pytest.raises(ValueError, match="is nan"):
            pac_bayes_sigma(
                [np.zeros(3, "float32")], None, loss=lambda w: np.nan * w[0][0], samples=2
            )

    def test_result(self):
        found = largest_sigma(bound=0.3, samples=3)
        assert "increase ≤ 0.3" in found.plot().get_ylabel()
