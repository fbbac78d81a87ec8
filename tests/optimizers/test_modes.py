"""The same trajectory in every mode of execution and every precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.optimizers import AutoScope, EntropySGD, LocalEntropy
from tests.optimizers import helpers

STEPS = 2 * helpers.STEPS_PER_EPOCH
OPTIONS = {
    "langevin_steps": 3,
    "langevin_learning_rate": 0.2,
    "averaging": 0.6,
    "momentum": 0.8,
    "nesterov": True,
    "weight_decay": 0.02,
    "gamma_in_outer_step": True,
    "seed": 21,
}


def gamma(t):
    return 0.4 * 1.2**t


def outer():
    # Nadam keeps a scalar that advances once per outer update.
    return keras.optimizers.Nadam(0.1, clipnorm=0.2, weight_decay=0.1)


def optimizer(noise=0.05):
    """Return an optimizer with as much as possible switched on."""
    optimizer = LocalEntropy(
        outer(), gamma=0.4, scoping=0.2, noise=noise, statistics=True, use_ema=True,
        ema_momentum=0.5, **OPTIONS,
    )  # fmt: skip
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def in_custom_loop(model):
    """Train without `fit`, in a tf.function of our own."""
    x, y = helpers.data("float64")
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(helpers.BATCH).repeat(2)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        variables = model.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in variables])
        model.optimizer.apply(gradients, variables)

    for batch in batches:
        step(*batch)
    model.optimizer.finalize_variable_values(model.trainable_variables)


def state_after(mode, noise, *, build_in_fit=False):
    """Train for ten steps, which end within the fourth inner loop; return all there is."""
    compile_options = {
        "eager": {"run_eagerly": True},
        "xla": {"jit_compile": True},
        "steps_per_execution": {"steps_per_execution": 3},
    }.get(mode, {})
    model = helpers.network(optimizer(noise), build_in_fit=build_in_fit, **compile_options)
    if mode == "custom loop":
        in_custom_loop(model)
    else:
        helpers.fit(model, epochs=2)
    fingerprints = model.optimizer._swap._fingerprints
    variables = [v for v in model.optimizer.variables if v is not fingerprints]
    return helpers.numpy([*model.trainable_variables, *variables])


EAGER = {}


def eager_state(noise):
    """Train eagerly once for all modes."""
    if noise not in EAGER:
        EAGER[noise] = state_after("eager", noise)
    return EAGER[noise]


@pytest.mark.parametrize(
    ("mode", "noise"),
    [
        ("graph", 0.05),
        ("steps_per_execution", 0.05),
        ("custom loop", 0.05),
        ("xla", 0.05),
    ],
)
def test_mode(float64, mode, noise):
    tested = state_after(mode, noise, build_in_fit=mode == "graph")
    helpers.assert_close(tested, eager_state(noise), rtol=1e-6, atol=1e-10)


def test_mirrored_strategy(float64, two_cpus):
    expected = eager_state(0.05)
    with two_cpus.scope():
        tested = state_after("graph", 0.05)
    helpers.assert_close(tested, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.slow
def test_embeddings_on_a_mirrored_strategy(float64, two_cpus):
    # Every device has a gradient for other rows.
    def trained(run_eagerly):
        model = keras.Sequential(
            [
                keras.Input((2,), dtype="int64"),
                keras.layers.Embedding(7, 3, embeddings_initializer="ones"),
            ]
        )
        tested = LocalEntropy(
            keras.optimizers.Adam(0.1), langevin_steps=2, noise=0.1, seed=4, clipnorm=0.5
        )
        model.compile(tested, loss="mse", run_eagerly=run_eagerly)
        tokens = np.array([[0, 1], [1, 1], [5, 2], [3, 1], [0, 0], [6, 5]])
        targets = np.arange(36.0).reshape(6, 2, 3) / 36
        model.fit(tokens, targets, batch_size=2, epochs=1, verbose=0, shuffle=False)
        return helpers.numpy(model.trainable_variables)

    with two_cpus.scope():
        mirrored = trained(run_eagerly=False)
    helpers.assert_close(mirrored, trained(run_eagerly=True), atol=1e-9)


def test_fit_follows_the_pure_rules(float64):
    model = helpers.network(LocalEntropy(outer(), gamma=0.4, scoping=0.2, noise=0.05, **OPTIONS))
    record = helpers.Record()
    helpers.fit(model, epochs=2, callbacks=[record])
    start, gradient = helpers.network_gradient()
    history = helpers.reference(outer(), start, STEPS, gradient, gamma=gamma, noise=0.05, **OPTIONS)
    for held, expected in zip(record.weights, history, strict=True):
        helpers.assert_close(held, expected["weights"], atol=1e-9)
    # At its end `fit` leaves the anchor in the model.
    helpers.assert_close(model.get_weights(), history[-1]["anchor"], atol=1e-9)


@pytest.mark.slow
def test_noise_under_xla():
    """The same in every run, of the right size, and another one for every step and weight."""
    size = 50_000

    def displacements(seed):
        tested = EntropySGD(
            langevin_steps=10, gamma=0.0, noise=0.5, momentum=0.0, langevin_learning_rate=0.1,
            seed=seed,
        )  # fmt: skip
        model = [keras.Variable(np.zeros(size, "float32")) for _ in range(2)]
        tested.build(model)

        @tf.function(jit_compile=True)
        def step():
            tested.apply([tf.zeros(size)] * 2, model)

        step()
        first = helpers.numpy(model)
        step()
        second = [after - before for after, before in zip(helpers.numpy(model), first, strict=True)]
        return [shift.astype("float64") for shift in (*first, *second)]

    one = displacements(seed=1)
    variance = 2 * 0.1 * 0.5**2
    for i, a in enumerate(one):
        assert abs(a.var() - variance) < 4 * variance * np.sqrt(2 / size)
        for b in one[:i]:
            assert abs(np.mean(a * b)) < 4 * variance / np.sqrt(size)
    helpers.assert_equal(displacements(seed=1), one)
    helpers.assert_differ(displacements(seed=2)[:1], one[:1])


# ---- precisions ---------------------------------------------------------------------------------


def plain(**options):
    return EntropySGD(0.9, langevin_steps=3, gamma=0.4, scoping=0.2, noise=0.01, seed=2, **options)


def plain_reference(steps):
    start, gradient = helpers.network_gradient()
    return helpers.reference(
        keras.optimizers.SGD(0.9), start, steps, gradient, langevin_steps=3, momentum=0.9,
        nesterov=True, gamma=gamma, noise=0.01, seed=2,
    )  # fmt: skip


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = helpers.network(plain())
    record = helpers.Record()
    helpers.fit(model, epochs=2, callbacks=[record])
    tested = model.optimizer
    if policy == "mixed_float16":
        assert isinstance(tested, keras.optimizers.LossScaleOptimizer)
        assert int(tested.step_counter.numpy()) == STEPS  # all steps were finite
        tested = tested.inner_optimizer
    assert int(tested.outer_iterations) == 3
    for slot in (*tested._loop.anchors, *tested._loop.means, *tested._loop.velocities):
        assert slot.dtype == "float32"
    history = plain_reference(STEPS)
    # Rounding the activations moves the gradient in its third digit (bfloat16 has eight bits).
    for held, expected in zip(record.weights, history, strict=True):
        helpers.assert_close(held, expected["weights"], atol=4e-3)
    helpers.assert_close(model.get_weights(), history[-1]["anchor"], atol=4e-3)
    moved = max(
        np.abs(a - b).max() for a, b in zip(record.weights[0], record.weights[-1], strict=True)
    )
    assert moved > 0.1


def test_a_step_that_is_not_finite_is_skipped():
    keras.config.set_dtype_policy("mixed_float16")
    model = helpers.network(plain(statistics=True))
    helpers.train_on_batches(model, 5)  # the next step would be the last of its inner loop
    inner = model.optimizer.inner_optimizer
    variables = [*model.trainable_variables, *inner.variables]
    before, scale = helpers.numpy(variables), float(model.optimizer.dynamic_scale)
    model.train_on_batch(np.full((8, 4), np.inf), np.ones((8, 1)))
    helpers.assert_equal(helpers.numpy(variables), before)
    assert float(model.optimizer.dynamic_scale) == scale / 2
    assert int(inner.langevin_phase) == 2
    # The next finite step goes on where the inner loop stood.
    helpers.train_on_batches(model, 1, start=5)
    assert int(inner.outer_iterations) == 2
    helpers.assert_close(model.get_weights(), plain_reference(6)[-1]["weights"], atol=4e-3)


def test_auto_scope_says_that_loss_scaling_hides_the_loss():
    keras.config.set_dtype_policy("mixed_float16")
    model = helpers.network(EntropySGD(gamma=AutoScope(10)))
    with pytest.raises(ValueError, match="under mixed_float16 give `gamma` a number"):
        helpers.fit(model)


@pytest.mark.slow
def test_loss_scaling_under_a_strategy(two_cpus):
    keras.config.set_dtype_policy("mixed_float16")
    with two_cpus.scope():
        model = helpers.network(plain())
        helpers.fit(model, epochs=1)
    assert int(model.optimizer.inner_optimizer.outer_iterations.numpy()) == 1
    helpers.assert_close(model.get_weights(), plain_reference(5)[-1]["anchor"], atol=4e-3)
