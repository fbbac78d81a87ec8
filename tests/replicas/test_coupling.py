"""The rules of coupling: limiting cases bit for bit, and trajectories on a quadratic."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf import LocalEntropy, Replicas
from esgd_tf.optimizers import ExponentialScope
from esgd_tf.replicas import (
    Coupling,
    ElasticAveraging,
    Focusing,
    OwnMinibatches,
    Parle,
    ReplicatedSGD,
    coupling,
)
from tests.optimizers.helpers import assert_close, assert_differ, assert_equal
from tests.replicas import helpers

# ---- limiting cases -----------------------------------------------------------------------------


def decaying():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.3, 2, 0.8)
    return helpers.nesterov(schedule, weight_decay=0.01)


def alone(a, optimizer):
    """Train what replica a would be without the others."""
    model = helpers.network(a)
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    record = helpers.Record(lambda model: model.get_weights())
    model.fit(helpers.own_minibatches(a), verbose=0, callbacks=[record])
    return record.kept


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (ReplicatedSGD(0.0), decaying),
        (ElasticAveraging(0.0, every=2), lambda: keras.optimizers.Adam(0.05)),
        (ReplicatedSGD(0.0, every=2), lambda: helpers.entropy(noise=0.0)),
    ],
    ids=["nesterov", "adam", "entropy"],
)
@pytest.mark.few(1)
def test_uncoupled_replicas_are_independent_runs(rule, optimizer):
    model = helpers.replicas(rule, optimizer())
    record = helpers.Record()
    model.fit(helpers.OWN, verbose=0, callbacks=[record])
    runs = zip(alone(0, optimizer()), alone(1, optimizer()), strict=True)
    for ours, (first, second) in zip(record.kept, runs, strict=True):
        assert_equal(ours, [*first, *second])


def parle_alone():
    return LocalEntropy(
        keras.optimizers.SGD(0.5),
        langevin_steps=2,
        langevin_learning_rate=0.2,
        gamma=ExponentialScope(0.3, 0.5, 0.6),
        noise=0.0,
        averaging=0.5,
        momentum=0.8,
        weight_decay=0.01,
    )


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("rule", "optimizer", "inner"),
    [
        (ReplicatedSGD(0.7, every=2), helpers.nesterov, helpers.nesterov),
        (ReplicatedSGD(0.7), helpers.entropy, helpers.entropy),
        (
            Parle(2, 0.3, 0.0, 0.5, 0.6, 10.0, 0.2, 0.8, 0.5, 0.01),
            lambda: keras.optimizers.SGD(0.5),
            parle_alone,
        ),
    ],
    ids=["rsgd", "entropy", "parle"],
)
def test_one_replica_is_the_optimizer_alone(rule, optimizer, inner):
    model = helpers.replicas(rule, optimizer(), count=1)
    record = helpers.Record()
    model.fit(helpers.OWN, verbose=0, callbacks=[record])
    for ours, theirs in zip(record.kept, alone(0, inner()), strict=True):
        assert_equal(ours, theirs)


def test_equal_replicas_with_equal_minibatches_stay_equal():
    model = helpers.replicas(ReplicatedSGD(0.5), helpers.nesterov(), initialization="same")
    model.fit(OwnMinibatches(lambda a: helpers.own_minibatches(0)), verbose=0)
    assert_equal(model.members[0].get_weights(), model.members[1].get_weights())
    assert model.distances().tolist() == [0.0, 0.0]
    assert_equal(model.members[0].get_weights(), alone(0, helpers.nesterov())[-1])


# ---- trajectories on a quadratic ----------------------------------------------------------------

COUNT, SIZE, STEPS, RATE = 3, 4, 8, 0.1


def points():
    generator = np.random.default_rng(2)
    x = generator.normal(size=(12, SIZE)) * np.linspace(0.4, 1.3, SIZE)
    return x, generator.normal(size=(12, 1))


def starts():
    return np.random.default_rng(4).normal(size=(COUNT, SIZE))


def quadratic():
    """The loss is w'Aw / 2 - b'w and a constant."""
    x, y = points()
    return 2 / len(x) * x.T @ x, 2 / len(x) * (x.T @ y)[:, 0]


def linear(a):
    start = keras.initializers.Constant(starts()[a][:, None])
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer=start)
    return keras.Sequential([keras.Input((SIZE,)), layer])


def trajectory(rule, optimizer):
    """Return the replicas [step, a, weight] and the centers [step, weight], and the model."""
    model = helpers.replicas(rule, optimizer, count=COUNT, build=linear)
    full = tf.data.Dataset.from_tensors(points()).repeat(STEPS)
    record = helpers.Record(lambda model: [*helpers.weights(model), *model._center.get_weights()])
    model.fit(OwnMinibatches(lambda a: full), verbose=0, callbacks=[record])
    found = np.array(record.kept)[..., 0]
    return found[:, :COUNT], found[:, COUNT], model


def power(matrix, exponent):
    return np.linalg.matrix_power(matrix, exponent)


SLOW_1 = pytest.param(1, marks=pytest.mark.slow)


@pytest.mark.parametrize("every", [SLOW_1, 3])
def test_replicated_sgd_on_a_quadratic_is_its_closed_form(float64, every):
    """The mean descends alone; the distances to it shrink by a matrix of their own."""
    gamma = 0.4
    found, _, model = trajectory(ReplicatedSGD(gamma, every), keras.optimizers.SGD(RATE))
    A, b = quadratic()
    free, minimum = np.eye(SIZE) - RATE * A, np.linalg.solve(A, b)
    pulled = free - RATE * every * gamma * np.eye(SIZE)
    mean = starts().mean(axis=0)
    for step in range(STEPS):
        couplings = (step + 1) // every
        shrink = power(pulled, couplings) @ power(free, step + 1 - couplings)
        center = minimum + power(free, step + 1) @ (mean - minimum)
        np.testing.assert_allclose(
            found[step], center + (starts() - mean) @ shrink, rtol=0, atol=1e-10
        )
    assert_close([model.center().get_weights()[0][:, 0]], [center], atol=1e-10)


@pytest.mark.parametrize(("every", "rate"), [(1, None), (2, 0.5)])
def test_elastic_averaging_on_a_quadratic_is_its_closed_form(float64, every, rate):
    """Mean and center are one linear system; the distances to the mean are another."""
    alpha = 0.2
    rule = ElasticAveraging(alpha, every, rate)
    found, centers, model = trajectory(rule, keras.optimizers.SGD(RATE))
    A, b = quadratic()
    beta = COUNT * alpha if rate is None else rate
    one, minimum = np.eye(SIZE), np.linalg.solve(A, b)
    free, pulled = one - RATE * A, (1 - alpha) * one - RATE * A
    both_free = np.block([[free, 0 * one], [0 * one, one]])
    both_pulled = np.block([[pulled, alpha * one], [beta * one, (1 - beta) * one]])
    mean = starts().mean(axis=0)
    both = start = np.concatenate([mean - minimum, mean - minimum])
    for step in range(STEPS):
        couplings, since = divmod(step + 1, every)
        both = power(both_free, since) @ power(
            both_pulled @ power(both_free, every - 1), couplings
        ) @ start  # fmt: skip
        shrink = power(pulled, couplings) @ power(free, step + 1 - couplings)
        expected = minimum + both[:SIZE] + (starts() - mean) @ shrink
        np.testing.assert_allclose(found[step], expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(centers[step], minimum + both[SIZE:], rtol=0, atol=1e-10)
    assert_close([model.center().get_weights()[0][:, 0]], [centers[-1]], atol=0)


def recursion(step, held):
    """Iterate `step(t, replicas, held)`, where held is what else is kept; return all replicas."""
    A, b = quadratic()
    w, kept = starts(), []
    for t in range(STEPS):
        w = step(t, w, lambda at: at @ A - b, held)
        kept.append(w)
    return np.array(kept)


def rescaled_mean(w):
    mean = w.mean(axis=0)
    return mean * np.linalg.norm(w, axis=1).mean() / np.linalg.norm(mean)


@pytest.mark.parametrize("every", [SLOW_1, 2])
def test_walkers_on_a_quadratic_by_hand(float64, every):
    alpha, momentum = 0.3, 0.5  # Keras rounds its momentum to float32

    def step(t, w, gradient, held):
        center = rescaled_mean(w)
        held["v"] = momentum * held["v"] - RATE * gradient(w)
        w = w + held["v"]
        return w - alpha * (w - center) if (t + 1) % every == 0 else w

    rule = ElasticAveraging(alpha, every, center="norm_mean")
    found, _, model = trajectory(rule, keras.optimizers.SGD(RATE, momentum=momentum))
    assert_close(found, recursion(step, {"v": 0.0}), atol=1e-10)
    center = model.center().get_weights()[0][:, 0]
    assert_close([center], [rescaled_mean(found[-1])])
    np.testing.assert_allclose(np.linalg.norm(center), np.linalg.norm(found[-1], axis=1).mean())
    np.testing.assert_allclose(model.center_norm, model.norms().mean())


def test_springs_enter_momentum_and_elastic_pulls_do_not(float64):
    strength, momentum = 0.3, 0.5

    def springs(t, w, gradient, held):
        g = gradient(w) + strength * (w - w.mean(axis=0))
        held["v"] = momentum * held["v"] - RATE * g
        return w + held["v"]

    def elastic(t, w, gradient, held):
        center = held.setdefault("c", w.mean(axis=0))
        held["v"] = momentum * held["v"] - RATE * gradient(w)
        held["c"] = center + COUNT * strength * (w.mean(axis=0) - center)
        return w - strength * (w - center) + held["v"]

    for rule, step in (
        (ReplicatedSGD(strength), springs),
        (ElasticAveraging(strength), elastic),
    ):
        found, _, _ = trajectory(rule, keras.optimizers.SGD(RATE, momentum=momentum))
        assert_close(found, recursion(step, {"v": 0.0}), atol=1e-10)


@pytest.mark.parametrize("interval", [SLOW_1, 3])
def test_focused_springs_on_a_quadratic_by_hand(float64, interval):
    def step(t, w, gradient, held):
        last = (STEPS - 1) // interval * interval
        gamma = 0.05 * 30 ** (t // interval * interval / last)
        return w - RATE * (gradient(w) + gamma * (w - w.mean(axis=0)))

    rule = ReplicatedSGD(Focusing(STEPS, gamma=0.05, growth=30.0, interval=interval))
    found, _, _ = trajectory(rule, keras.optimizers.SGD(RATE))
    assert_close(found, recursion(step, {}), atol=1e-10)


def inner_loop(t, w, gradient, held, *, gamma, steps, rate, momentum, averaging):
    """Take one Nesterov step of the inner loop; `held` keeps anchor, mean and velocity."""
    if t % steps == 0:
        held.update(x=w, mean=w, v=0.0)
    g = gradient(w)
    held["v"] = momentum * held["v"] + g
    w = w - rate * (g + momentum * held["v"] + gamma * (w - held["x"]))
    held["mean"] = averaging * held["mean"] + (1 - averaging) * w
    return w


def test_parle_on_a_quadratic_by_hand(float64):
    L, scoping = 2, 0.4

    def step(t, w, gradient, held):
        grown = (1 + scoping) ** (t // L + 1)
        w = inner_loop(
            t, w, gradient, held,
            gamma=min(0.3 * grown, 0.7), steps=L, rate=0.2, momentum=0.8, averaging=0.6,
        )  # fmt: skip
        if t % L < L - 1:
            return w
        x = held["x"]
        # The default strength is 0.01 L y.
        rho = min(0.01 * L * COUNT * grown, 0.15)
        return x - 0.5 * (x - held["mean"] + rho * (x - x.mean(axis=0)))

    rule = Parle(
        L, 0.3, None, scoping, gamma_max=0.7, rho_max=0.15, langevin_learning_rate=0.2,
        momentum=0.8, averaging=0.6,
    )  # fmt: skip
    found, _, model = trajectory(rule, keras.optimizers.SGD(0.5))
    assert_close(found, recursion(step, {}), atol=1e-10)
    assert model.coupling.rho == 0.01 * L * COUNT
    # The center is that of the anchors.
    assert_close([model.center().get_weights()[0][:, 0]], [found[-1].mean(axis=0)], atol=1e-14)


@pytest.mark.slow
def test_parle_without_an_inner_loop_is_elastic_sgd(float64):
    rho = 0.6

    def step(t, w, gradient, held):
        return w - 0.5 * (0.2 * gradient(w) + rho * (w - w.mean(axis=0)))

    rule = Parle(1, 0.0, rho, 0.0, langevin_learning_rate=0.2, momentum=0.0, averaging=0.0)
    found, _, _ = trajectory(rule, keras.optimizers.SGD(0.5))
    assert_close(found, recursion(step, {}), atol=1e-10)


@pytest.mark.parametrize(
    "rule", [ReplicatedSGD(0.3, every=2), ElasticAveraging(0.2, every=2)], ids=["rsgd", "easgd"]
)
@pytest.mark.few(1)
def test_entropy_sgd_couples_its_anchors_at_every_second_outer_update(float64, rule):
    L = 2
    options = {"rate": 0.2, "momentum": 0.8, "averaging": 0.6}

    def step(t, w, gradient, held):
        w = inner_loop(t, w, gradient, held, gamma=0.3, steps=L, **options)
        if t % L < L - 1:
            return w
        x, couples = held["x"], (t + 1) % (2 * L) == 0
        center = held.setdefault("c", x.mean(axis=0))
        if isinstance(rule, ReplicatedSGD):
            return x - 0.5 * (x - held["mean"] + couples * 2 * 0.3 * (x - x.mean(axis=0)))
        if couples:
            held["c"] = center + COUNT * 0.2 * (x.mean(axis=0) - center)
        return x - couples * 0.2 * (x - center) - 0.5 * (x - held["mean"])

    optimizer = LocalEntropy(
        keras.optimizers.SGD(0.5), langevin_steps=L, langevin_learning_rate=0.2, gamma=0.3,
        scoping=0.0, noise=0.0, momentum=0.8, averaging=0.6,
    )  # fmt: skip
    found, _, _ = trajectory(rule, optimizer)
    assert_close(found, recursion(step, {}), atol=1e-10)


def test_replicas_of_entropy_sgd_draw_noises_of_their_own():
    model = helpers.replicas(
        ReplicatedSGD(0.0), helpers.entropy(), initialization="same", run_eagerly=True
    )
    model.fit(OwnMinibatches(lambda a: helpers.own_minibatches(0, steps=1)), verbose=0)
    assert_differ(model.members[0].get_weights(), model.members[1].get_weights())


def test_gradients_do_not_accumulate():
    """A coupling would count minibatches, of which only some move the weights."""
    optimizer = keras.optimizers.SGD(RATE, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="do not take `gradient_accumulation_steps`"):
        trajectory(ElasticAveraging(0.2), optimizer)


@pytest.mark.slow
def test_clipping_by_norm_sees_the_springs_and_globally_does_not(float64):
    def clipped(g):
        return g * np.minimum(1, 0.3 / np.linalg.norm(g, axis=1, keepdims=True))

    def local(t, w, gradient, held):
        return w - RATE * clipped(gradient(w) + 0.5 * (w - w.mean(axis=0)))

    def all_over(t, w, gradient, held):
        return w - RATE * (clipped(gradient(w)) + 0.5 * (w - w.mean(axis=0)))

    for option, step in (("clipnorm", local), ("global_clipnorm", all_over)):
        optimizer = keras.optimizers.SGD(RATE, **{option: 0.3})
        found, _, _ = trajectory(ReplicatedSGD(0.5), optimizer)
        assert_close(found, recursion(step, {}), atol=1e-10)


# ---- the rules themselves, and their arguments --------------------------------------------------


def test_rules_take_numpy_arrays():
    w, c, g = (np.random.default_rng(1).normal(size=(3, 5)) for _ in range(3))
    assert_close([coupling.coupled_gradient(g, w, c, 0.3)], [g + 0.3 * (w - c)])
    assert_close([coupling.elastic_pull(w, c, 0.3)], [0.7 * w + 0.3 * c])
    assert_close([coupling.elastic_center(c, w, 0.3)], [0.7 * c + 0.3 * w])
    assert_close([coupling.norm_mean(w, 2.0, 3.0)], [1.5 * w])


@pytest.mark.parametrize(
    "rule",
    [
        ReplicatedSGD(0.2, every=3),
        ReplicatedSGD(Focusing(10, growth=5.0, kind="cosine", interval=2)),
        ElasticAveraging(0.2, 4, 0.5),
        ElasticAveraging(0.2, center="norm_mean"),
        Parle(3, 0.1, None, 0.2, 0.5, 6.0, 0.3, 0.7, 0.4, 0.01),
    ],
    ids=repr,
)
def test_couplings_are_rebuilt_from_their_config(rule):
    config = keras.saving.serialize_keras_object(rule)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(rule)
    assert repr(again) == repr(rule)
    assert keras.saving.serialize_keras_object(again) == config
    assert repr(rule).startswith(type(rule).__name__)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ReplicatedSGD(-0.1), "`gamma` must be a finite number, at least 0; got -0.1"),
        (lambda: ReplicatedSGD(every=0), "`every` must be an integer of at least 1; got 0"),
        (lambda: ElasticAveraging(-0.1), "`alpha` must be a finite number, at least 0"),
        (lambda: ElasticAveraging(1.1), "`alpha` must be at most 1: beyond, the pull overshoots"),
        (lambda: ElasticAveraging(every=0), "`every` must be an integer of at least 1"),
        (lambda: ElasticAveraging(center="median"), "`center` must be moving or norm_mean; got"),
        (
            lambda: ElasticAveraging(center="norm_mean", center_rate=0.5),
            "`center_rate` has no meaning for center='norm_mean'",
        ),
        (lambda: ElasticAveraging(center_rate=0.0), "`center_rate` must be a finite number, above"),
        (lambda: ElasticAveraging(center_rate=1.5), "`center_rate` must be at most 1; got 1.5"),
        (lambda: Parle(langevin_steps=0), "`langevin_steps` must be an integer of at least 1"),
        (lambda: Parle(gamma=-1), "`gamma` must be a finite number, at least 0"),
        (lambda: Parle(rho=-1), "`rho` must be a finite number, at least 0"),
        (lambda: Parle(scoping=-1), "`scoping` must be a finite number, at least 0"),
        (lambda: Parle(gamma_max=-1), "`gamma_max` must be a finite number, at least 0"),
        (lambda: Parle(rho_max=-1), "`rho_max` must be a finite number, at least 0"),
        (lambda: Parle(langevin_learning_rate=0), "`langevin_learning_rate` must be a finite"),
        (lambda: Parle(momentum=1.0), "`momentum` must be a finite number, at least 0, below 1"),
        (lambda: Parle(averaging=1.0), "`averaging` must be a finite number, at least 0, below 1"),
        (lambda: Parle(weight_decay=-1), "`weight_decay` must be a finite number, at least 0"),
        (lambda: Parle().strength, "Parle's rho depends on the number of replicas"),
    ],
)
def test_arguments_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_too_many_replicas_for_a_symmetric_center_are_refused():
    words = (
        r"4 replicas with alpha = 0.3 would move the center by beta = y alpha = 1.2 .*: take an "
        r"alpha of at most 0.25, or give `center_rate`"
    )
    with pytest.raises(ValueError, match=words):
        Replicas(helpers.network, 4, ElasticAveraging(0.3))
    assert ElasticAveraging(0.25).for_replicas(4).center_rate == 1.0


def test_parle_refuses_an_inner_loop_of_its_own():
    with pytest.raises(ValueError, match="Parle makes the inner loop itself"):
        helpers.replicas(Parle(), helpers.entropy())


def test_the_base_class_asks_for_a_strength():
    with pytest.raises(NotImplementedError):
        Coupling().strength  # noqa: B018
    with pytest.raises(NotImplementedError):
        Coupling().get_config()
