"""A minibatch that is not finite, left out: the run is the one without it, bit for bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf.training import skip_nonfinite
from tests.distribute import job
from tests.tracing import build_before_fit

POISONED = (0, 4, 5)


def train(strategy, optimizer, poison, *, batches=10, run_eagerly=False, mend=True, built=True):
    """Train on batches, three of which have `poison` in their last example, or on the others."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(batches, 8, 5)).astype("float32")
    y = generator.integers(0, 3, (batches, 8))
    if poison is None:
        x, y = np.delete(x, POISONED, axis=0), np.delete(y, POISONED, axis=0)
    else:
        x[POISONED, -1] = poison
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.Dense(7),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.3, seed=2),
                keras.layers.Dense(3),
            ]
        )
        model.compile(
            optimizer=optimizer(),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            run_eagerly=run_eagerly,
        )
    if mend:
        skip_nonfinite(model)
    if built:
        build_before_fit(model, x[0], y[0])
    data = job.batches(x.reshape(-1, 5), y.reshape(-1))
    history = model.fit(data, verbose=0, shuffle=False).history
    variables = {f"model/{i}": v.numpy() for i, v in enumerate(model.variables)}
    for i, variable in enumerate(model.optimizer.variables):
        if variable.name not in ("skipped", "dynamic_scale", "step_counter"):
            variables[f"{i} {variable.name}"] = variable.numpy()
    return variables, history, model.optimizer


def entropy_sgd(**options):
    return lambda: esgd_tf.EntropySGD(
        langevin_steps=3, noise=1e-2, seed=1, statistics=True, skip_nonfinite=True, **options
    )


def baseline():
    return esgd_tf.LocalEntropy(keras.optimizers.Nadam(0.01), langevin_steps=0, skip_nonfinite=True)


def around_nadam():
    return esgd_tf.LocalEntropy(
        keras.optimizers.Nadam(0.01), langevin_steps=2, seed=4, skip_nonfinite=True
    )


@pytest.mark.parametrize(
    ("devices", "poison"),
    [("one", np.nan), pytest.param("two", np.inf, marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_as_if_it_had_not_been_there(poison, devices, two_cpus):
    strategy = {"one": tf.distribute.get_strategy(), "two": two_cpus}[devices]
    # Variables that `fit` makes while it traces are restored as well.
    ours, history, optimizer = train(strategy, entropy_sgd(), poison, built=False)
    theirs, expected, _ = train(strategy, entropy_sgd(), None)
    assert optimizer.skipped == len(POISONED)
    assert history == expected
    for (name, value), other in zip(ours.items(), theirs.values(), strict=True):
        np.testing.assert_array_equal(value, other, err_msg=name)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("optimizer", "run_eagerly"),
    [
        pytest.param(baseline, False, id="L=0"),
        pytest.param(baseline, True, id="L=0, eager", marks=pytest.mark.slow),
        pytest.param(around_nadam, False, id="Nadam", marks=pytest.mark.slow),
        pytest.param(around_nadam, True, id="Nadam, eager"),
    ],
)
@pytest.mark.slow
def test_other_optimizers(optimizer, run_eagerly):
    strategy = tf.distribute.get_strategy()
    ours, history, _ = train(strategy, optimizer, np.nan, run_eagerly=run_eagerly)
    theirs, expected, _ = train(strategy, optimizer, None, run_eagerly=run_eagerly)
    assert history == expected
    for (name, value), other in zip(ours.items(), theirs.values(), strict=True):
        np.testing.assert_array_equal(value, other, err_msg=name)


@pytest.mark.slow
def test_an_evaluation_of_several_minibatches_starts_over():
    strategy = tf.distribute.get_strategy()
    accumulating = entropy_sgd(gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        train(strategy, accumulating, np.nan)
    ours, _, optimizer = train(strategy, accumulating, np.nan, batches=12, mend=False)
    # Pairs (0, 1), (4, 5) are lost: of twelve minibatches eight make four evaluations.
    assert optimizer.skipped == 2
    assert int(optimizer.iterations.numpy()) == 4
    assert np.isfinite(ours["model/0"]).all()


@pytest.mark.slow
def test_without_it_everything_is_lost():
    lost = lambda: esgd_tf.EntropySGD(langevin_steps=3)  # noqa: E731
    ours, history, _ = train(tf.distribute.get_strategy(), lost, np.nan)
    assert np.isnan(history["loss"]).all()
    assert np.isnan(ours["model/0"]).any()


@pytest.mark.slow
def test_the_optimizer_alone_keeps_the_weights_but_not_the_statistics():
    ours, history, optimizer = train(
        tf.distribute.get_strategy(), entropy_sgd(), np.nan, mend=False
    )
    assert optimizer.skipped == len(POISONED)
    assert np.isnan(history["loss"]).all()
    assert np.isfinite(ours["model/0"]).all()


def test_a_gradient_whose_square_overflows_counts_as_not_finite():
    optimizer = entropy_sgd()()
    weights = [keras.Variable(np.ones(3, "float32"))]
    optimizer.build(weights)
    optimizer.apply([tf.constant([1e30, 0.0, 0.0])], weights)
    assert optimizer.skipped == 1
    assert int(optimizer.iterations.numpy()) == 0
    np.testing.assert_array_equal(weights[0].numpy(), np.ones(3))


def test_it_is_part_of_the_configuration():
    optimizer = esgd_tf.EntropySGD(skip_nonfinite=True)
    assert esgd_tf.EntropySGD.from_config(optimizer.get_config()).skip_nonfinite
    assert esgd_tf.EntropySGD().skipped == 0
