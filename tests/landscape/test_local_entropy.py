"""Local entropy along Langevin chains and by Laplace's method, against closed forms."""

import importlib
import itertools
import json
import warnings

import numpy as np
import pytest
import tensorflow as tf
from scipy.integrate import quad

from esgd_tf.landscape import (
    HessianOperator,
    NotConvergedWarning,
    full_spectrum,
    laplace_local_entropy,
    local_entropy,
    spectral_density,
)
from esgd_tf.landscape._objective import Objective
from tests.landscape.problems import (
    cross_entropy,
    examples,
    mlp,
    quadratic,
    same_state,
    state,
    symmetric,
)

# The package has a function of this name, so that `import ... as` finds that.
module = importlib.import_module("esgd_tf.landscape.local_entropy")


def exact(a, b, x, gamma, beta=1.0):
    """F of 1/2 w'Aw + b'w at x: a Gaussian integral."""
    h, m = a + gamma * np.eye(len(a)), gamma * x - b
    sign, log_det = np.linalg.slogdet(beta * h / (2 * np.pi))
    assert sign > 0
    return -log_det / (2 * beta) + m @ np.linalg.solve(h, m) / 2 - gamma / 2 * x @ x


def differences(a, b, x, gammas, beta=1.0):
    values = np.array([exact(a, b, x, g, beta) for g in gammas])
    return values - values[-1]


def exact_slopes(a, b, x, nodes, beta=1.0):
    """d(F - F_0) / d log γ = 1/2 (n/β - γ ⟨‖d‖²⟩)."""
    n, slopes = len(a), []
    for gamma in nodes:
        inverse = np.linalg.inv(a + gamma * np.eye(n))
        square = np.trace(inverse) / beta + ((inverse @ (a @ x + b)) ** 2).sum()
        slopes.append((n / beta - gamma * square) / 2)
    return np.array(slopes)


def nodes_of(logs):
    """Return five in each interval, of which neighbours share one."""
    inner = [(p + q) / 2 + (q - p) / 2 * module._NODES[1:] for p, q in itertools.pairwise(logs)]
    return np.concatenate([logs[:1], *inner])


def problem(n, lowest=-0.3, seed=0):
    """Return A, b and x such that neither curvature nor slope is all that matters at x."""
    a = symmetric(np.linspace(lowest, 4.0, n), seed)
    b, x = 0.3 * np.random.default_rng(seed).standard_normal((2, n))
    return a, b, x


def around(a, b, x):
    """Return the list of weights x, and the loss 1/2 w'Aw + b'w."""
    weights, loss = quadratic(a, b)
    cut = weights[0].size
    return [x[:cut].reshape(weights[0].shape), x[cut:]], loss


@pytest.fixture
def in_numpy(monkeypatch):
    """Return what makes the chains see a function of NumPy, which is much faster than a graph."""

    def use(value, gradient, x):
        monkeypatch.setattr(
            module.Displaced, "__call__", lambda _, d: (value(x + d), gradient(x + d))
        )
        # The loss at the start is all that TensorFlow is asked for.
        return [x], lambda w: tf.numpy_function(lambda v: value(v[None])[0], [w[0]], tf.float64)

    return use


def numpy_quadratic(in_numpy, a, b, x):
    diagonal = np.diag(a)
    # Large matrices are diagonal here, and 1,000 numbers are soon multiplied.
    is_diagonal = (a == np.diag(diagonal)).all()
    product = lambda w: w * diagonal if is_diagonal else w @ a  # noqa: E731
    return in_numpy(lambda w: (w * (product(w) / 2 + b)).sum(1), lambda w: product(w) + b, x)


def combined(found):
    return np.hypot(found.standard_errors, found.quadrature_errors)


class TestLangevinOnQuadratics:
    @pytest.mark.parametrize(
        ("n", "beta"), [(10, 3.0), pytest.param(1000, 1.0, marks=pytest.mark.slow)]
    )
    @pytest.mark.slow
    def test_closed_form(self, n, beta):
        """Away from the minimum, with directions in which f falls, through TensorFlow."""
        a, b, x = problem(n)
        long = {"samples": 2000, "burn_in": 500} if n == 1000 else {"samples": 300, "burn_in": 80}
        gammas = [4.0, 12.0]
        found = local_entropy(*around(a, b, x), None, gammas, inverse_temperature=beta, **long)
        expected = differences(a, b, x, gammas, beta)
        error = combined(found)
        assert abs(found.values - expected)[0] < 4 * error[0]
        # The whole effect of f is 8 errors and more.
        flat = n / (2 * beta) * np.log(3)
        assert error[0] < abs(expected[0] - flat) / 8
        assert found.excess[0] == pytest.approx(found.values[0] - flat)
        assert found.converged
        assert found.loss == pytest.approx(x @ a @ x / 2 + b @ x)

    @pytest.mark.parametrize(
        ("n", "beta", "gammas"),
        [
            (2, 1.0, (1.0, 5.0)),
            (10, 0.5, (1.0, 3.0, 20.0)),
            (100, 1.0, (1.0, 3.0)),
            (100, 20.0, (2.0, 6.0)),
            (1000, 1.0, (6.0, 12.0)),
        ],
    )
    @pytest.mark.few(1)
    def test_in_many_dimensions(self, in_numpy, n, beta, gammas):
        a, b, x = problem(n) if n < 1000 else (np.diag(np.linspace(-0.5, 4, n)), *problem(n)[1:])
        options = {"samples": 1200, "burn_in": 300} if n == 1000 else {"samples": 2000}
        weights, loss = numpy_quadratic(in_numpy, a, b, x)
        found = local_entropy(weights, loss, None, gammas, inverse_temperature=beta, **options)
        expected = differences(a, b, x, gammas, beta)
        flat = n / (2 * beta) * np.log(gammas[-1] / np.array(gammas))
        assert found.converged
        np.testing.assert_array_less(abs(found.values - expected)[:-1], 4 * combined(found)[:-1])
        np.testing.assert_array_less(combined(found)[:-1], 0.05 * abs(expected - flat)[:-1])
        assert found.values[-1] == found.standard_errors[-1] == found.quadrature_errors[-1] == 0

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::esgd_tf.landscape.NotConvergedWarning")
    def test_standard_errors_are_of_the_right_size(self, in_numpy):
        """Against the same quadrature of the exact slopes, which leaves the chains' own error."""
        a, b, x = problem(6, 0.1)
        beta, gammas = 2.0, [1.0, 4.0]
        weights, loss = numpy_quadratic(in_numpy, a, b, x)
        scores = []
        for seed in range(12):
            found = local_entropy(
                weights, loss, None, gammas, samples=400, inverse_temperature=beta, seed=seed
            )
            slopes = exact_slopes(a, b, x, found.nodes, beta)
            values, _, quadrature = module._integrated(np.log(gammas), slopes, 0 * slopes)
            free = 6 / (2 * beta) * np.log(4.0 / np.array(gammas))
            scores.append((found.values - values - free)[0] / found.standard_errors[0])
        assert np.abs(scores).max() < 5
        assert 0.5 < np.std(scores) < 1.7
        # And the quadrature of exact slopes is as good as it says.
        error = abs(values + free - differences(a, b, x, gammas, beta))
        assert (error <= quadrature).all()

    def test_isotropic_has_no_noise(self, in_numpy):
        """The control variate takes all of it away."""
        n, c, x = 8, 1.7, np.zeros(8)
        weights, loss = numpy_quadratic(in_numpy, c * np.eye(n), x, x)
        found = local_entropy(weights, loss, None, [1.0, 2.0], samples=300)
        np.testing.assert_array_less(found.standard_errors, 1e-10)
        slopes = n / 2 * c / (c + found.nodes)
        values, _, _ = module._integrated(np.log([1.0, 2.0]), slopes, 0 * slopes)
        assert found.excess[0] == pytest.approx(values[0], rel=1e-9)

    def test_flat_loss_is_the_free_volume(self, in_numpy):
        weights, loss = numpy_quadratic(in_numpy, np.zeros((5, 5)), np.zeros(5), np.ones(5))
        found = local_entropy(weights, loss, None, [1.0, 10.0], samples=300)
        np.testing.assert_allclose(found.excess, 0, atol=1e-10)
        assert found.values[0] == pytest.approx(2.5 * np.log(10))

    def test_what_chains_report(self, in_numpy):
        a, b, x = problem(10, 0.2)
        weights, loss = numpy_quadratic(in_numpy, a, b, x)
        found = local_entropy(weights, loss, None, [4.0, 1.0, 4.0, 2.0], chains=3, samples=1500)
        np.testing.assert_array_equal(found.gammas, [1, 2, 4])
        assert found.reference == 4
        assert len(found.nodes) == 9
        np.testing.assert_allclose(found.nodes[[0, 4, 8]], [1, 2, 4])
        np.testing.assert_allclose(found.nodes[[2, 6]], [np.sqrt(2), np.sqrt(8)])
        exact_square = 10 - 2 * exact_slopes(a, b, x, found.nodes)
        np.testing.assert_allclose(found.nodes * found.square_distance, exact_square, rtol=0.15)
        np.testing.assert_allclose(found.acceptance, 0.574, atol=0.2)
        assert (np.diff(found.step_size) < 0.2 * found.step_size[:-1]).all()
        assert (found.ess > 100).all()
        assert (found.ess < 4500).all()
        assert (found.r_hat < 1.05).all()
        assert (found.chains, found.samples, found.burn_in, found.size) == (3, 1500, 200, 10)


class TestQuadrature:
    def test_exact_for_polynomials_of_degree_five(self):
        logs = np.array([-0.3, 0.5, 2.0])
        nodes = nodes_of(logs)
        for power in range(6):
            values, _, error = module._integrated(logs, nodes**power, 0 * nodes)
            integral = (logs ** (power + 1) - logs[-1] ** (power + 1)) / (power + 1)
            np.testing.assert_allclose(values, integral, atol=1e-12)
            assert (error[:2] > 1e-6).all() == (power >= 4)
        assert abs(module._integrated(logs, nodes**6, 0 * nodes)[0][0] - integral[0]) > 1e-6

    def test_errors_of_neighbours_share_the_node_between_them(self):
        logs, errors = np.array([0.0, 2.0, 4.0]), np.arange(1.0, 10)
        _, spread, _ = module._integrated(logs, errors, errors)
        w = module._WEIGHTS
        assert spread[1] == pytest.approx(np.linalg.norm(w * errors[4:]))
        both = np.concatenate([w[:4], [w[4] + w[0]], w[1:]])
        assert spread[0] == pytest.approx(np.linalg.norm(both * errors))
        assert spread[2] == 0

    def test_more_gammas_make_the_error_smaller(self):
        a, b, x = np.diag([3.0, 50.0, 0.5]), np.array([1.0, 0, 0]), np.zeros(3)
        stated, true = [], []
        for count in (2, 3, 5, 9):
            gammas = np.geomspace(0.1, 1000, count)
            logs = np.log(gammas)
            nodes = np.exp(nodes_of(logs))
            slopes = exact_slopes(a, b, x, nodes)
            values, _, error = module._integrated(logs, slopes, 0 * slopes)
            free = 1.5 * (logs[-1] - logs[0])
            true.append(abs(values[0] + free - differences(a, b, x, gammas)[0]))
            stated.append(error[0])
            assert true[-1] <= stated[-1]
        assert (np.diff(np.log(stated)) < np.log(0.5)).all(), stated
        assert (np.diff(np.log(true)) < np.log(0.2)).all(), true


class TestLangevinElsewhere:
    @pytest.mark.slow
    @pytest.mark.parametrize("x", [0.0, 0.6])
    def test_double_well(self, in_numpy, x):
        value = lambda w: 2 * (w[:, 0] ** 2 - 1) ** 2 + 0.3 * w[:, 0]  # noqa: E731
        gradient = lambda w: 8 * w * (w**2 - 1) + 0.3  # noqa: E731
        gammas, beta = np.array([0.5, 2.0, 10.0]), 1.5

        def integral(gamma):
            weight = lambda w: np.exp(  # noqa: E731
                -beta * (2 * (w**2 - 1) ** 2 + 0.3 * w + gamma / 2 * (w - x) ** 2)
            )
            return np.log(quad(weight, -4, 4, epsabs=1e-12)[0]) / beta

        expected = np.array([integral(g) for g in gammas])
        weights, loss = in_numpy(value, gradient, np.array([x]))
        found = local_entropy(weights, loss, None, gammas, samples=4000, inverse_temperature=beta)
        assert found.converged
        difference = abs(found.values - (expected - expected[-1]))
        np.testing.assert_array_less(difference[:-1], 4 * combined(found)[:-1])
        np.testing.assert_array_less(combined(found)[:-1], 0.1)
        # Laplace's method is far off there.
        operator = HessianOperator(
            [np.array([x])], lambda w: tf.reduce_sum(2 * (w[0] ** 2 - 1) ** 2 + 0.3 * w[0])
        )
        laplace = laplace_local_entropy(operator, gammas, inverse_temperature=beta)
        off = np.abs(laplace.values - (expected - expected[-1]))[0]
        assert np.isnan(off) or off > 4 * combined(found)[0]

    def test_not_converged(self, in_numpy):
        """Wells so deep that no chain crosses: those in one disagree with those in the other."""
        value = lambda w: 50 * (w[:, 0] ** 2 - 1) ** 2 + w[:, 0]  # noqa: E731
        gradient = lambda w: 200 * w * (w**2 - 1) + 1  # noqa: E731
        weights, loss = in_numpy(value, gradient, np.array([0.1]))
        with pytest.warns(NotConvergedWarning, match="R-hat up to") as record:
            found = local_entropy(weights, loss, None, [0.1, 1.0], chains=8, samples=500)
        assert record[0].filename == __file__
        assert not found.converged
        assert found.r_hat.max() > 1.05

    def test_too_short(self, in_numpy):
        a, b, x = problem(4, 0.2)
        weights, loss = numpy_quadratic(in_numpy, a, b, x)
        with pytest.warns(NotConvergedWarning, match="effective sample size down to"):
            found = local_entropy(weights, loss, None, [1.0, 2.0], burn_in=0, samples=8)
        assert not found.converged
        assert found.ess.min() < 100

    @pytest.mark.parametrize(
        ("spread", "size", "converged"),
        [(1.04, 101, True), (1.06, 101, False), (1.04, 99, False), (np.nan, 101, False)],
    )
    def test_each_criterion_counts(self, in_numpy, monkeypatch, spread, size, converged):
        """At one node is enough, wherever it is."""
        spreads = iter([1.0, spread, 1.0, 1.0, 1.0])
        monkeypatch.setattr(module, "r_hat", lambda _: next(spreads))
        monkeypatch.setattr(module, "effective_sample_size", lambda _: size)
        weights, loss = numpy_quadratic(in_numpy, np.eye(2), np.zeros(2), np.zeros(2))
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            found = local_entropy(weights, loss, None, [1.0, 2.0], burn_in=2, samples=8)
        assert found.converged == converged
        assert converged == (NotConvergedWarning not in [w.category for w in record])

    def test_nan_is_not_convergence(self, in_numpy):
        """Where the chains begin, f is NaN; they cannot move, and all of it shows."""
        nothing = lambda w: np.where((w == 0).all(1), 0.0, np.nan)  # noqa: E731
        weights, loss = in_numpy(nothing, lambda w: np.nan * w, np.zeros(3))
        with pytest.warns(NotConvergedWarning):
            found = local_entropy(weights, loss, None, [1.0, 2.0], samples=20)
        assert not found.converged
        assert np.isnan(found.values[0])

    @pytest.mark.slow
    def test_the_landscape_of_a_network(self):
        """Several chains, several batches: each has its own f and gradient."""
        model, (x, y) = mlp(batch_norm=True), examples(dtype="float32")
        objective = Objective(model, cross_entropy(), (x, y), batch_size=16)
        landscape = module.Displaced(objective, 3)
        d = 0.3 * np.random.default_rng(0).standard_normal((3, objective.size))
        values, slopes = landscape(d)
        energies, forces = landscape.target(2.0, 5.0)(d)
        for k in range(3):
            moved = objective.flatten(objective.start) + d[k]
            value, slope = objective.value_and_gradient(moved)
            assert values[k] == pytest.approx(value, rel=1e-6)
            np.testing.assert_allclose(slopes[k], slope, atol=1e-6)
            assert energies[k] == pytest.approx(2 * (value + 2.5 * d[k] @ d[k]), rel=1e-6)
            np.testing.assert_allclose(forces[k], 2 * (slope + 5 * d[k]), atol=1e-5)
        assert len(set(values)) == 3


class TestLaplace:
    @pytest.mark.few(1)
    @pytest.mark.parametrize("beta", [1.0, 30.0])
    def test_exact_for_quadratics(self, beta):
        """Away from the minimum, with directions in which f falls."""
        a, b, x = problem(20)
        operator = HessianOperator(*around(a, b, x))
        gammas = [0.6, 3.0, 50.0]
        found = laplace_local_entropy(
            operator, gammas, spectrum=full_spectrum(operator), inverse_temperature=beta
        )
        expected = differences(a, b, x, gammas, beta)
        np.testing.assert_allclose(found.values, expected, rtol=1e-9)
        np.testing.assert_array_equal(found.standard_errors, 0)
        assert found.method == "laplace"
        assert found.converged
        assert found.loss == pytest.approx(x @ a @ x / 2 + b @ x)
        assert found.inverse_temperature == beta
        np.testing.assert_allclose(
            found.excess, expected - 10 / beta * np.log(50 / np.array(gammas)), rtol=1e-9
        )

    @pytest.mark.slow
    def test_from_the_density(self):
        a, b, x = problem(40)
        operator, gammas, beta = HessianOperator(*around(a, b, x)), [1.0, 3.0, 10.0], 2.0
        expected = differences(a, b, x, gammas, beta)
        scores = []
        for seed in range(12):
            found = laplace_local_entropy(
                operator, gammas, num_probes=8, num_steps=40, inverse_temperature=beta, seed=seed
            )
            scores.append((found.values - expected)[:-1] / found.standard_errors[:-1])
            flat = 20 / beta * np.log(10 / np.array(gammas))
            np.testing.assert_array_less(
                found.standard_errors[:-1], 0.2 * abs(expected - flat)[:-1]
            )
        # Students with 7 degrees of freedom.
        assert np.abs(scores).max() < 5.5
        assert 0.5 < np.std(scores) < 1.8
        given = spectral_density(operator, 8, 40, seed=11)
        same = laplace_local_entropy(operator, gammas, spectrum=given, inverse_temperature=beta)
        np.testing.assert_allclose(same.values, found.values, rtol=1e-9)
        one = laplace_local_entropy(operator, gammas, num_probes=1)
        assert np.isnan(one.standard_errors[:-1]).all()

    def test_nan_where_not_positive_definite(self):
        a, b, x = problem(10, lowest=-2.0)
        operator = HessianOperator(*around(a, b, x))
        spectrum = full_spectrum(operator)
        found = laplace_local_entropy(operator, [0.5, 1.9, 2.1, 9.0], spectrum=spectrum)
        np.testing.assert_array_equal(np.isnan(found.values), [True, True, False, False])
        np.testing.assert_array_equal(np.isnan(found.standard_errors), [True, True, False, False])
        np.testing.assert_allclose(
            found.values[2:], differences(a, b, x, [2.1, 9.0]), rtol=1e-8, atol=1e-12
        )
        none = laplace_local_entropy(operator, [0.5, 1.0], spectrum=spectrum)
        assert np.isnan(none.values).all()

    def test_at_a_stationary_point(self):
        a, zero = np.diag([1.0, 2.0, 3.0, 4.0]), np.zeros(4)
        operator = HessianOperator(*around(a, zero, zero))
        found = laplace_local_entropy(operator, [1.0, 7.0], spectrum=full_spectrum(operator))
        np.testing.assert_allclose(found.values, differences(a, zero, zero, [1.0, 7.0]))


class TestTrainedNetwork:
    @pytest.mark.slow
    def test_both_agree_on_it(self):
        """At β = N and large γ the Gibbs density is nearly Gaussian."""
        model, (x, y) = mlp(), examples(60, dtype="float32")
        variables = [v.value for v in model.trainable_variables]

        @tf.function
        def train():
            for _ in tf.range(400):
                with tf.GradientTape() as tape:
                    value = tf.reduce_mean(cross_entropy()(y, model(x, training=False)))
                for v, slope in zip(variables, tape.gradient(value, variables), strict=True):
                    v.assign_sub(0.5 * slope)

        train()
        before = state(model)
        options = {"inverse_temperature": 60.0}
        found = local_entropy(
            model, cross_entropy(), (x, y), [2.0, 10.0], samples=300, burn_in=100, **options
        )
        assert same_state(before, state(model))
        operator = HessianOperator(model, cross_entropy(), (x, y))
        laplace = laplace_local_entropy(
            operator, [2.0, 10.0], spectrum=full_spectrum(operator), **options
        )
        assert same_state(before, state(model))
        assert found.loss == laplace.loss < 1.2
        assert found.converged
        error = combined(found)[0]
        # What is left of third and fourth derivatives is 2 %.
        effect = abs(laplace.excess[0])
        assert abs(found.values - laplace.values)[0] < 3 * error + 0.02 * effect
        assert 3 * error < 0.2 * effect


class TestArgumentsAndResult:
    def test_result(self, in_numpy):
        a, b, x = problem(4, 0.2)
        weights, loss = numpy_quadratic(in_numpy, a, b, x)
        found = local_entropy(weights, loss, None, [1.0, 2.0], samples=400)
        written = json.loads(json.dumps(found.to_dict()))
        assert written["values"] == list(found.values)
        assert written["converged"] is True
        assert written["method"] == "langevin"
        ax = found.plot()
        assert ax.get_xscale() == "log"
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        operator = HessianOperator(*around(a, b, x))
        laplace = laplace_local_entropy(operator, [1.0, 2.0])
        assert laplace.plot(ax, label="second order") is ax
        names = [t.get_text() for t in ax.get_legend().get_texts()]
        assert names == ["langevin", "second order"]
        np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), found.excess)
        # Fields that only chains have are empty, and can be written too.
        written = json.loads(json.dumps(laplace.to_dict()))
        for name in ("nodes", "square_distance", "acceptance", "step_size", "ess", "r_hat"):
            assert written[name] == []
            assert len(getattr(found, name)) == 5
        assert written["chains"] == written["samples"] == written["burn_in"] == 0
        with pytest.raises(ValueError, match="read-only"):
            found.values[0] = 1
