"""Stop in the middle of an inner loop, save, load, and go on bit for bit."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import esgd_tf
from esgd_tf.optimizers import AutoScope, EntropyAdam, EntropySGD, LocalEntropy
from esgd_tf.optimizers._serialization import StateWarning
from tests.optimizers import helpers

# Files are saved and loaded in mid-loop on purpose here.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The model is saved at its Langevin", "ignore:This file was saved in the middle"
)
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
@pytest.mark.few(1)
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


@pytest.mark.slow
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


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.0}, {"statistics": True}, {"use_ema": True}, {"langevin_steps": 0}],
    ids=str,
)
def test_the_state_of_another_configuration_is_left_out_with_a_warning(options, tmp_path):
    model = helpers.network(EntropySGD(0.7, **OPTIONS))
    helpers.train_on_batches(model, 3)  # a whole inner loop
    with pytest.warns(StateWarning, match=r"made with other arguments than 'entropy_sgd'"):
        other = save_and_load_weights(
            model, lambda: EntropySGD(0.7, **(OPTIONS | options)), tmp_path
        )
    helpers.assert_equal(other.get_weights(), model.get_weights())
    assert int(other.optimizer.iterations.numpy()) == 0


ADAM = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "entropy-adam": lambda: EntropyAdam(0.1, **OPTIONS),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("build", [True, False], ids=["built", "unbuilt"])
@pytest.mark.parametrize("make", ADAM.values(), ids=ADAM.keys())
def test_weights_of_any_file_can_be_loaded(make, build, tmp_path):
    """A warm start: Keras' optimizers warn and start anew, and so do these."""
    model = helpers.network(make())
    helpers.train_on_batches(model, 3)
    model.save_weights(tmp_path / "model.weights.h5")
    other = helpers.network(EntropySGD(0.7, seed=1, **OPTIONS), build_in_fit=not build)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other.load_weights(tmp_path / "model.weights.h5")
        helpers.assert_equal(other.get_weights(), model.get_weights())
        helpers.fit(other)
    assert any(issubclass(w.category, StateWarning) for w in caught)
    # EntropyAdam's inner loop is that of EntropySGD, and goes on; Adam has none.
    begins = 3 if make is ADAM["entropy-adam"] else 0
    assert int(other.optimizer.iterations.numpy()) == begins + helpers.STEPS_PER_EPOCH


@pytest.mark.few(1)
@every_optimizer
def test_state_loaded_before_the_slots_are_there_is_restored(make, tmp_path):
    model = helpers.network(make(), run_eagerly=True)
    helpers.train_on_batches(model, 4)
    with esgd_tf.evaluate_at(model, "langevin"):
        model.save_weights(tmp_path / "model.weights.h5")
    other = helpers.network(make(), build_in_fit=True, run_eagerly=True)
    assert not other.optimizer.built
    other.load_weights(tmp_path / "model.weights.h5")
    for trained in (model, other):
        helpers.train_on_batches(trained, 4, start=4)
    helpers.assert_equal(state(other), state(model))


@pytest.mark.slow
def test_another_number_of_steps_ends_the_inner_loop_that_was_saved(tmp_path):
    model = helpers.network(EntropySGD(0.7, **(OPTIONS | {"langevin_steps": 20})))
    helpers.train_on_batches(model, 19)
    at_anchor = helpers.numpy(model.optimizer.anchors())
    with esgd_tf.evaluate_at(model, "langevin"):
        model.save_weights(tmp_path / "model.weights.h5")
    other = helpers.network(EntropySGD(0.7, **(OPTIONS | {"langevin_steps": 19})))
    with pytest.warns(StateWarning, match="saved after 19 of 20 Langevin steps"):
        other.load_weights(tmp_path / "model.weights.h5")
    helpers.assert_equal(helpers.numpy(other.optimizer.anchors()), at_anchor)
    for trained in (model, other):
        helpers.train_on_batches(trained, 1, start=19)
        assert int(trained.optimizer.outer_iterations) == 1
    helpers.assert_equal(other.get_weights(), model.get_weights())


def test_set_weights_sets_the_outer_optimizer_too():
    model, other = (helpers.network(MAKERS["EntropyAdam"]()) for _ in range(2))
    helpers.train_on_batches(model, 7)
    other.set_weights(model.get_weights())
    other.optimizer.set_weights(helpers.numpy(model.optimizer.variables))
    for trained in (model, other):
        helpers.train_on_batches(trained, 3, start=7)
    helpers.assert_equal(state(other), state(model))
    with pytest.raises(ValueError, match="arrays of shapes"):
        other.optimizer.set_weights(helpers.numpy(model.optimizer.variables)[:-1])
    with pytest.raises(ValueError, match="build"):
        EntropySGD().set_weights([])


def test_weights_without_the_optimizer(tmp_path):
    # Loading into a model that is not compiled leaves the optimizer out, as for any optimizer.
    model = helpers.network(EntropySGD(0.7, **OPTIONS))
    helpers.fit(model)
    model.save_weights(tmp_path / "model.weights.h5")
    bare = keras.models.clone_model(model)
    bare.load_weights(tmp_path / "model.weights.h5")
    helpers.assert_equal(bare.get_weights(), model.get_weights())
