"""Stop in the middle of an inner loop, save, load, and go on bit for bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.optimizers import AutoScope, EntropyAdam, EntropySGD, LocalEntropy
from tests.optimizers import helpers

# No seed: the one that was drawn must be saved. Four steps end in phase 1.
OPTIONS = {"langevin_steps": 3, "noise": 0.05, "gamma": 0.3, "scoping": 0.1}


def rich():
    return LocalEntropy(
        keras.optimizers.Nadam(0.1), langevin_steps=3, noise=0.05, gamma=AutoScope(5),
        statistics=True, use_ema=True,
    )  # fmt: skip


MAKERS = {
    "EntropySGD": lambda: EntropySGD(0.7, outer_momentum=0.5, **OPTIONS),
    "EntropyAdam": lambda: EntropyAdam(0.1, momentum=0.0, **OPTIONS),
    "LocalEntropy": rich,
}
every_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def state(model):
    return helpers.numpy([*model.variables, *model.optimizer.variables])


def save_and_load_keras(model, make, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


def save_and_load_weights(model, make, folder):
    model.save_weights(folder / "model.weights.h5")
    other = helpers.network(make(), run_eagerly=model.run_eagerly)
    other.load_weights(folder / "model.weights.h5")
    return other


def save_and_load_checkpoint(model, make, folder):
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(folder / "ckpt"))
    other = helpers.network(make(), run_eagerly=model.run_eagerly)
    checkpoint = tf.train.Checkpoint(model=other, optimizer=other.optimizer)
    checkpoint.read(path).assert_consumed()
    return other


@every_optimizer
@pytest.mark.parametrize(
    "save_and_load", [save_and_load_keras, save_and_load_weights, save_and_load_checkpoint]
)
def test_resume_in_mid_loop(make, save_and_load, tmp_path):
    # Two of the three eagerly, to save traces.
    model = helpers.network(make(), run_eagerly=make is not MAKERS["EntropySGD"])
    helpers.train_on_batches(model, 4)
    before = state(model)
    other = save_and_load(model, make, tmp_path)
    assert other is not model
    helpers.assert_equal(state(model), before)
    helpers.assert_equal(state(other), before)
    assert int(other.optimizer.langevin_phase) == 1
    for trained in (model, other):
        helpers.train_on_batches(trained, 6, start=4)
    helpers.assert_equal(state(other), state(model))
    assert int(other.optimizer.outer_iterations) == 3
    helpers.assert_differ(state(other), before)


def test_resume_after_fit(tmp_path):
    # `fit` ends with the anchor in the model, and that is what is saved.
    class BackToLangevin(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.optimizer._swap.place("langevin")

    model = helpers.network(MAKERS["EntropySGD"]())
    helpers.fit(model)
    anchor = helpers.numpy(model.trainable_variables)
    other = save_and_load_keras(model, None, tmp_path)
    helpers.assert_equal(helpers.numpy(other.trainable_variables), anchor)
    x, _ = helpers.data()
    np.testing.assert_array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))
    for trained in (model, other):
        helpers.fit(trained, callbacks=[BackToLangevin()])
    helpers.assert_equal(state(other), state(model))


def test_resume_from_a_checkpoint_written_during_fit(tmp_path):
    # ModelCheckpoint saves what the model holds: after four batches, the Langevin weights.
    path = str(tmp_path / "{batch}.keras")
    model = helpers.network(MAKERS["EntropySGD"]())
    record = helpers.Record()
    save = keras.callbacks.ModelCheckpoint(path, save_freq=4)
    helpers.fit(model, callbacks=[save, record])
    other = keras.saving.load_model(path.format(batch=4))
    helpers.assert_equal(other.get_weights(), record.weights[3])
    helpers.train_on_batches(other, 1, start=4)
    helpers.assert_equal(other.get_weights(), record.weights[4])


def test_resume_with_loss_scaling(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = helpers.network(MAKERS["EntropySGD"]())
    helpers.train_on_batches(model, 4)
    other = save_and_load_keras(model, None, tmp_path)
    assert isinstance(other.optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(other.optimizer.inner_optimizer, EntropySGD)
    for trained in (model, other):
        helpers.train_on_batches(trained, 3, start=4)
    helpers.assert_equal(state(other), state(model))


def test_seed_of_the_saved_run_wins(tmp_path):
    model = helpers.network(EntropySGD(seed=5))
    helpers.train_on_batches(model, 1)
    other = save_and_load_weights(model, lambda: EntropySGD(seed=6), tmp_path)
    assert int(other.optimizer._seed.numpy()) == 5


@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.0}, {"statistics": True}, {"use_ema": True}, {"langevin_steps": 0}],
    ids=str,
)
def test_another_configuration_is_refused(options, tmp_path):
    model = helpers.network(EntropySGD(0.7, **OPTIONS))
    helpers.train_on_batches(model, 1)
    with pytest.raises(ValueError, match=r"The saved state of optimizer 'entropy_sgd' has .* and"):
        save_and_load_weights(model, lambda: EntropySGD(0.7, **(OPTIONS | options)), tmp_path)


def test_an_optimizer_that_is_not_built_is_refused():
    built, unbuilt = EntropySGD(), EntropySGD()
    built.build(helpers.variables(helpers.start_weights()))
    store = {}
    built.save_own_variables(store)
    with pytest.raises(ValueError, match="build it on the same model"):
        unbuilt.load_own_variables(store)


def test_weights_without_the_optimizer(tmp_path):
    # Loading into a model that is not compiled leaves the optimizer out, as for any optimizer.
    model = helpers.network(EntropySGD(0.7, **OPTIONS))
    helpers.fit(model)
    model.save_weights(tmp_path / "model.weights.h5")
    bare = keras.models.clone_model(model)
    bare.load_weights(tmp_path / "model.weights.h5")
    helpers.assert_equal(bare.get_weights(), model.get_weights())
