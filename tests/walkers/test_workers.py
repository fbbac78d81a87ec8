"""How workers step: against recursions in NumPy, with the minibatches that they saw."""

import keras
import numpy as np
import pytest

from esgd_tf import Replicas
from esgd_tf.replicas import ElasticAveraging, Parle, ReplicatedSGD
from esgd_tf.replicas.minibatches import shuffled
from esgd_tf.walkers import Settings
from esgd_tf.walkers.problem import cross_entropy
from esgd_tf.walkers.workers import Workers
from tests.walkers.helpers import (
    TINY,
    experiment,
    gradient,
    linear,
    of_kind,
    problem,
    weights_of,
)


def norm(weights):
    return np.sqrt(sum(np.sum(w**2) for w in weights))


def minibatches(exp, k):
    """The minibatches of stochastic worker k, as arrays."""
    dataset = exp.workers.minibatches().make(k - 1)
    return iter(dataset.as_numpy_iterator())


def test_elastic_workers_follow_the_recursion_of_the_original():
    """W_i <- W_i - alpha (W_i - W_0) with the old W_0, then W_0 <- mean, rescaled; by hand.

    facts D: after every step of SGD, velocity untouched by the pull.
    """
    exp = experiment(n_workers=3, alpha=0.3, weight_init_std=0.4, n_steps=5, freq=5)
    batches = [minibatches(exp, k) for k in (1, 2, 3)]
    walkers = [weights_of(exp, k) for k in (1, 2, 3)]
    assert norm([walkers[0][0] - walkers[1][0]]) > 0.1
    velocities = [[np.zeros_like(w) for w in walker] for walker in walkers]

    def center():
        means = [np.mean(parts, axis=0) for parts in zip(*walkers, strict=True)]
        return [m * np.mean([norm(w) for w in walkers]) / norm(means) for m in means]

    zero = center()
    for _ in range(5):
        for walker, velocity, own in zip(walkers, velocities, batches, strict=True):
            slopes = gradient(walker, *next(own))
            for w, v, g, c in zip(walker, velocity, slopes, zero, strict=True):
                v[...] = 0.5 * v - 0.2 * g
                w[...] = w + v - 0.3 * (w + v - c)
        zero = center()
    exp.run()
    for k, expected in enumerate([zero, *walkers]):
        for found, wanted in zip(weights_of(exp, k), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)


def test_workers_start_as_one_and_see_other_minibatches():
    exp = experiment(n_workers=2)
    for k in (1, 2):
        for a, b in zip(weights_of(exp, k), weights_of(exp, 0), strict=True):
            np.testing.assert_array_equal(a, b)
    first, second = (next(minibatches(exp, k))[0] for k in (1, 2))
    assert not np.array_equal(first, second)


def descended(weights, steps, batches):
    """Gradient descent with momentum, by hand; batches(t) gives (x, y)."""
    velocity = [np.zeros_like(w) for w in weights]
    for t in range(steps):
        slopes = gradient(weights, *batches(t))
        velocity = [0.5 * v - 0.2 * g for v, g in zip(velocity, slopes, strict=True)]
        weights = [w + v for w, v in zip(weights, velocity, strict=True)]
    return weights


@pytest.mark.slow
def test_worker_zero_descends_on_all_the_data_and_alone_on_minibatches():
    data = problem().train
    exp = experiment(n_workers=1, freq=6)
    expected = descended(weights_of(exp, 0), 6, lambda t: data)
    exp.run()
    for found, wanted in zip(weights_of(exp, 0), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)

    alone = experiment(n_workers=0, freq=6)
    assert alone.settings.method == "SGD"
    x, y = data

    def batch(t):
        epoch, k = divmod(t, 3)
        order = np.random.default_rng([0, epoch]).permutation(24)[8 * k : 8 * k + 8]
        return x[order], y[order]

    expected = descended(weights_of(alone, 0), 6, batch)
    alone.run()
    for found, wanted in zip(weights_of(alone, 0), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert [r["worker"] for r in of_kind(alone, "stats")] == [0, 0]


def test_lbfgs_goes_the_way_of_scipy(tmp_path):
    from scipy.optimize import minimize

    exp = experiment(n_workers=0, optimization="LBFGS", n_steps=4, freq=4)
    objective = exp.workers.zero._objective
    start = objective.flatten(objective.start)
    path = []
    minimize(
        objective.value_and_gradient, start, jac=True, method="L-BFGS-B",
        callback=lambda x: path.append(np.array(x)), options={"maxiter": 4},
    )  # fmt: skip
    exp.run()
    found = objective.flatten(weights_of(exp, 0))
    np.testing.assert_allclose(found, path[3], rtol=1e-6, atol=1e-7)


def test_a_minibatch_at_the_end_of_a_pass_is_filled_up():
    data = Workers(Settings(**TINY, n_workers=1), problem(n=20), linear)
    batches = data.minibatches().make(0).as_numpy_iterator()
    sizes = [len(next(batches)[0]) for _ in range(4)]
    assert sizes == [8] * 4
    _, steps = shuffled(problem(n=20).train, batch_size=8, seed=0, first_step=0, shuffle=True)
    assert steps == 3


PLAIN = {
    "rsgd": (ReplicatedSGD(0.3), keras.optimizers.SGD(0.1, momentum=0.5)),
    "easgd": (ElasticAveraging(0.3), keras.optimizers.SGD(0.1, momentum=0.5)),
    "parle": (
        # The cap: rho does not grow here.
        Parle(2, rho=0.3, rho_max=0.3, langevin_learning_rate=0.05, momentum=0.5),
        keras.optimizers.SGD(0.1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.few(1)
def test_other_couplings_are_those_of_replicas(name):
    """Whose rules have tests of their own, by hand."""
    settings = {"n_workers": 2, "alpha": 0.3, "weight_init_std": 1.0, "lr": 0.1}
    exp = experiment(
        coupling=name, langevin_steps=2, langevin_lr=0.05, n_steps=7, freq=7, **settings
    )
    coupling, optimizer = PLAIN[name]
    plain = Replicas(exp.workers.model.build_model, 2, coupling)
    plain.compile(optimizer, loss=cross_entropy, jit_compile=False)
    plain.fit(exp.workers.minibatches(), steps_per_epoch=7, verbose=0)
    exp.run()
    assert exp.workers.zero_is_center
    theirs = [plain.center(), plain.replica(0), plain.replica(1)]
    for k, network in enumerate(theirs):
        for ours, expected in zip(weights_of(exp, k), network.get_weights(), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_workers_with_entropy_sgd_pull_together():
    """Workers that start apart end nearer to each other."""
    exp = experiment(
        n_workers=2, alpha=0.3, optimizer="entropy-sgd", n_steps=20, freq=20, weight_init_std=1.0,
        langevin_steps=2, langevin_lr=0.01, lr=0.5,
    )  # fmt: skip

    def apart():
        return norm([a - b for a, b in zip(weights_of(exp, 1), weights_of(exp, 2), strict=True)])

    before = apart()
    exp.run()
    assert apart() < 0.8 * before
    # Worker 0 is between them.
    rows = of_kind(exp, "distances")[-1]["distances"]
    assert max(rows[0]) < rows[1][2] + 1e-6
